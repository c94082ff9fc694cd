"""SFace in MXNet against what every backend's must compute, and what is MXNet's own."""

import numpy as np
import pytest
from mxnet import autograd, nd

from common.tests.backend_checks.sface_loss import *  # noqa: F403
from common.tests.backend_checks.sface_loss import FORMS, error
from mxnet_impl.losses.sface import SFaceHead, sface_loss
from parity_tests.cases.inputs import on_both_knees


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w, labels = variable(embeddings, dtype), variable(class_weight, dtype), np.asarray(labels)
    with autograd.record():
        labels = nd.array(labels, dtype=labels.dtype)
        result = sface_loss(x, w, labels, form=form, block_size=block_size, **parameters)
        loss = factor * result.loss
    loss.backward()
    return result._make(value.asscalar() for value in result), x.grad.asnumpy(), w.grad.asnumpy()


def variable(array, dtype="float64", grad_req="write"):
    found = nd.array(array, dtype=dtype)
    found.attach_grad(grad_req)
    return found


def labels_of(labels):
    return nd.array(labels, dtype="int64")


def test_two_dtypes_are_refused():
    with pytest.raises(ValueError, match="of the same dtype"):
        sface_loss(nd.ones((2, 3)), nd.ones((4, 3), dtype="float64"), labels_of([0, 1]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["embeddings", "class_weight"])
def test_one_input_may_need_no_gradient(form, constant):
    case = on_both_knees()
    _, *expected = run(*case, form=form)
    inputs = [nd.array(array, dtype="float64") for array in case[:2]]
    wanted = 1 if constant == "embeddings" else 0
    inputs[wanted].attach_grad()
    with autograd.record():
        loss = sface_loss(*inputs, labels_of(case.labels), form=form).loss
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
            loss = sface_loss(*inputs, labels_of(case.labels), form=form).loss
        loss.backward()
    for array, gradient in zip(inputs, expected, strict=True):
        assert error(array.grad.asnumpy(), 2 * gradient) < 1e-13


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
