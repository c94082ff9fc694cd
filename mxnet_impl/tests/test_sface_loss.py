"""SFace in MXNet against what every backend's must compute, and what is MXNet's own."""

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.base import MXNetError

from common.tests.backend_checks.sface_loss import *  # noqa: F403
from common.tests.backend_checks.sface_loss import FORMS, PARAMETERS, error
from mxnet_impl.losses.sface import Rescaling, SFaceHead, sface_loss
from parity_tests.cases.inputs import on_both_knees
from parity_tests.truth import sface as oracle


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w, labels = variable(embeddings, dtype), variable(class_weight, dtype), constant(np.asarray(labels))
    options = {name: constant(v) if isinstance(v, np.ndarray) else v for name, v in parameters.items()}
    with autograd.record():
        result = sface_loss(x, w, labels, form=form, block_size=block_size, **options)
        loss = result.loss
        loss = constant(factor).astype(loss.dtype) * loss if np.ndim(factor) else float(factor) * loss
    loss.backward()
    return result._make(None if v is None else number_or_array(v) for v in result), x.grad.asnumpy(), w.grad.asnumpy()


def constant(array):
    return nd.array(array, dtype=array.dtype)


def number_or_array(array):
    return array.asscalar() if array.shape == (1,) else array.asnumpy()


def variable(array, dtype="float64", grad_req="write"):
    found = nd.array(array, dtype=dtype)
    found.attach_grad(grad_req)
    return found


def labels_of(labels):
    return nd.array(labels, dtype="int64")


def test_labels_of_numpy_are_refused():
    with pytest.raises(ValueError, match=r"labels: expected an NDArray, got ndarray; nd.array\(labels, .* makes one"):
        sface_loss(nd.ones((2, 3)), nd.ones((4, 3)), np.zeros(2, np.int64))


@pytest.mark.parametrize("bad", [np.nan, -0.1, 3.2])
def test_each_center_of_classes_is_an_angle(bad):
    with pytest.raises(ValueError, match="inter_center: expected radians between 0 and pi, got"):
        Rescaling(64, 80, 80, 0.87, nd.array([1.2, bad]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("float32", "float64"), ("float64", "float16")])
def test_the_dtype_is_that_of_the_prototypes(form, dtypes):
    """And at least float32. Gradients have the dtypes of the inputs."""
    case = on_both_knees()
    x, w = (variable(array, dtype) for array, dtype in zip(case[:2], dtypes, strict=True))
    with autograd.record():
        loss = sface_loss(x, w, labels_of(case.labels), form=form, block_size=7).loss
    loss.backward()
    truth = oracle.sface(x.asnumpy(), w.asnumpy(), case.labels)
    assert loss.dtype == np.promote_types(dtypes[1], "float32")
    assert loss.asscalar() == pytest.approx(truth.loss, rel=2e-5)
    for found, expected, dtype in zip((x.grad, w.grad), truth[5:7], dtypes, strict=True):
        assert found.dtype == np.dtype(dtype)
        assert error(found.asnumpy(), expected) < (2**-11 if dtype == "float16" else 2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_is_refused(form):
    """By MXNet itself, whose operators have none in either form."""
    case = on_both_knees()
    x = variable(case.embeddings)
    with autograd.record():
        loss = sface_loss(x, variable(case.class_weight), labels_of(case.labels), form=form, block_size=7).loss
        (gradient,) = autograd.grad(loss, x, create_graph=True, retain_graph=True)
        penalty = (gradient * gradient).sum()
    with pytest.raises(MXNetError, match="is non-differentiable"):
        penalty.backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["embeddings", "class_weight"])
def test_one_input_may_need_no_gradient(form, constant):
    case = on_both_knees()
    _, *expected = run(*case, form=form)
    inputs = [nd.array(array, dtype="float64") for array in case[:2]]
    wanted = 1 if constant == "embeddings" else 0
    inputs[wanted].attach_grad()
    with autograd.record():
        loss = sface_loss(*inputs, labels_of(case.labels), form=form, block_size=7).loss
    loss.backward()
    assert error(inputs[wanted].grad.asnumpy(), expected[wanted]) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_gradients_add_up_where_asked(form):
    case = on_both_knees()
    _, *expected = run(*case, form=form)
    inputs = [nd.array(array, dtype="float64") for array in case[:2]]
    for array in inputs:
        array.attach_grad("add")
    for _ in range(2):
        with autograd.record():
            loss = sface_loss(*inputs, labels_of(case.labels), form=form, block_size=7).loss
        loss.backward()
    for array, gradient in zip(inputs, expected, strict=True):
        assert error(array.grad.asnumpy(), 2 * gradient) < 1e-13


def test_the_head_hands_its_options_on(monkeypatch):
    options = dict(zip(PARAMETERS, (30.0, 60.0, 90.0, 0.8, 1.1), strict=True))
    options |= {"reduction": "sum", "form": "plain", "block_size": 5, "epsilon": 0.1}
    head, weights = SFaceHead(4, 6, **options), nd.ones(2)
    head.initialize()
    monkeypatch.setattr("mxnet_impl.losses.sface.sface_loss", lambda *inputs, **given: given)
    assert head(nd.ones((2, 4)), labels_of([0, 1]), weights) == {**options, "sample_weight": weights}


@pytest.mark.parametrize("form", FORMS)
def test_the_head_learns(form):
    """Prototypes move to fixed embeddings until the angles are below the center of the pull."""
    head = SFaceHead(64, 30, form=form)
    head.initialize()
    x, labels = nd.array(np.random.default_rng(0).standard_normal((16, 64))), labels_of(range(16))
    for _ in range(100):
        with autograd.record():
            result = head(x, labels)
        result.loss.backward()
        head.class_weight.set_data(head.class_weight.data() - 0.05 * head.class_weight.grad())
    assert head.class_weight.shape == (30, 64)
    assert result.accuracy.asscalar() == 1
    assert result.target_cosine.asscalar() > np.cos(0.87)
