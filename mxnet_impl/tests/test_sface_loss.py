"""SFace in MXNet against the golden results of the published code, and its own properties."""

from pathlib import Path

import numpy as np
import pytest
from mxnet import autograd, nd

from mxnet_impl.losses.sface import SFaceHead, sface_loss
from parity_tests.cases.inputs import on_both_knees, planted
from parity_tests.truth import sface as oracle

GOLDEN = sorted((Path(__file__).parents[2] / "parity_tests" / "golden").glob("*.npz"))
PARAMETERS = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
FORMS = ("plain", "streamed")
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}  # as in parity_tests/tolerances.py, level 3


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, **parameters):
    x, w = nd.array(embeddings, dtype=dtype), nd.array(class_weight, dtype=dtype)
    x.attach_grad()
    w.attach_grad()
    with autograd.record():
        result = sface_loss(x, w, labels_of(labels), form=form, block_size=block_size, **parameters)
    result.loss.backward()
    return result, x.grad.asnumpy(), w.grad.asnumpy()


def labels_of(labels):
    return nd.array(labels, dtype="int64")


def error(found, expected):
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def test_there_are_four_golden_files():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path, dtype, form):
    golden = np.load(path, allow_pickle=False)
    inputs = golden["embeddings"], golden["class_weight"], golden["labels"]
    parameters = {name: float(golden[name]) for name in PARAMETERS}
    result, grad_embeddings, grad_class_weight = run(*inputs, dtype, form, block_size=64, **parameters)
    for name in ("loss", "intra_loss", "inter_loss"):
        assert error(getattr(result, name).asscalar(), golden[name]) <= TOLERANCE[dtype], name
    assert error(grad_embeddings, golden["grad_embeddings"]) <= TOLERANCE[dtype]
    assert error(grad_class_weight, golden["grad_class_weight"]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_metrics(form):
    case = planted(33, 101, 17)
    result, _, _ = run(*case, form=form, block_size=10)
    truth = oracle.sface(*case)
    for name in ("target_cosine", "other_cosine", "accuracy"):
        assert getattr(result, name).asscalar() == pytest.approx(getattr(truth, name), abs=1e-12), name


@pytest.mark.parametrize("form", FORMS)
def test_a_factor_of_the_loss_reaches_the_gradients(form):
    case = on_both_knees()
    _, expected, _ = run(*case, form=form)
    x = nd.array(case.embeddings, dtype="float64")
    x.attach_grad()
    with autograd.record():
        loss = 3 * sface_loss(x, nd.array(case.class_weight, dtype="float64"), labels_of(case.labels), form=form).loss
    loss.backward()
    assert error(x.grad.asnumpy(), 3 * expected) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_on_its_prototype_and_zero_vectors_are_finite(form):
    embeddings = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    class_weight = np.array([[2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    result, grad_embeddings, grad_class_weight = run(embeddings, class_weight, [0, 1], form=form)
    truth = oracle.sface(embeddings, class_weight, np.array([0, 1]))
    assert result.loss.asscalar() == pytest.approx(truth.loss, rel=1e-12)
    assert error(grad_embeddings, truth.grad_embeddings) < 1e-12
    assert error(grad_class_weight, truth.grad_class_weight) < 1e-12


@pytest.mark.parametrize(
    ("embeddings", "class_weight", "labels", "message"),
    [
        (nd.ones((2, 3)), nd.ones((4, 3)), labels_of([0, 4]), r"labels: expected 0..3, got 4 at row 1"),
        (nd.ones((2, 3)), nd.ones((4, 3)), labels_of([-1, 0]), r"labels: expected 0..3, got -1 at row 0"),
        (nd.ones((2, 3)), nd.ones((4, 3)), nd.array([0, 1]), "labels: expected int64"),
        (nd.ones((2, 3)), nd.ones((4, 5)), labels_of([0, 1]), "with the same D"),
        (nd.ones((2, 3)), nd.ones((4, 3), dtype="float64"), labels_of([0, 1]), "of the same dtype"),
        (nd.ones((2, 3)), nd.ones((1, 3)), labels_of([0, 0]), "2 classes"),
    ],
)
def test_bad_input_is_named(embeddings, class_weight, labels, message):
    with pytest.raises(ValueError, match=message):
        sface_loss(embeddings, class_weight, labels)
    with pytest.raises(ValueError, match='form: expected "plain" or "streamed"'):
        sface_loss(nd.ones((1, 3)), nd.ones((4, 3)), labels_of([0]), form="fast")
    for epsilon in (-1e-9, 1, float("nan")):
        with pytest.raises(ValueError, match="epsilon: expected 0 <= epsilon < 1"):
            sface_loss(nd.ones((1, 3)), nd.ones((4, 3)), labels_of([0]), epsilon=epsilon)


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
