"""SFace in Jittor against the golden results of the published code, and its own properties."""

from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from jittor_impl.losses.sface import SFaceHead, sface_loss
from parity_tests.cases.inputs import on_both_knees, planted
from parity_tests.truth import sface as oracle

GOLDEN = sorted((Path(__file__).parents[2] / "parity_tests" / "golden").glob("*.npz"))
PARAMETERS = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
FORMS = ("plain", "streamed")
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}  # as in parity_tests/tolerances.py, level 3


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w = jt.array(embeddings, dtype), jt.array(class_weight, dtype)
    result = sface_loss(x, w, labels_of(labels), form=form, block_size=block_size, **parameters)
    gradients = jt.grad(jt.array(factor, dtype) * result.loss, [x, w])  # 4 * loss would round in float32
    return result, *[gradient.numpy() for gradient in gradients]


def labels_of(labels):
    return jt.array(labels, "int64")


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
        assert error(getattr(result, name).item(), golden[name]) <= TOLERANCE[dtype], name
    assert error(grad_embeddings, golden["grad_embeddings"]) <= TOLERANCE[dtype]
    assert error(grad_class_weight, golden["grad_class_weight"]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_metrics(form):
    case = planted(33, 101, 17)
    result, *_ = run(*case, form=form, block_size=10)
    truth = oracle.sface(*case)
    for name in ("target_cosine", "other_cosine", "accuracy"):
        assert getattr(result, name).item() == pytest.approx(getattr(truth, name), abs=1e-12), name


@pytest.mark.parametrize("block_size", [1, 8, 30, 31, 4096])
def test_block_size_does_not_matter(block_size):
    case = on_both_knees()
    _, *expected = run(*case)
    _, *found = run(*case, form="streamed", block_size=block_size)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_factor_of_the_loss_reaches_the_gradients(form):
    case = on_both_knees()
    _, *expected = run(*case, form=form)
    _, *found = run(*case, form=form, factor=4.0)
    for one, other in zip(found, expected, strict=True):
        assert error(one, 4 * other) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_on_its_prototype_and_zero_vectors_are_finite(form):
    embeddings = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    class_weight = np.array([[2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    result, grad_embeddings, grad_class_weight = run(embeddings, class_weight, [0, 1], form=form)
    truth = oracle.sface(embeddings, class_weight, np.array([0, 1]))
    assert result.loss.item() == pytest.approx(truth.loss, rel=1e-12)
    assert error(grad_embeddings, truth.grad_embeddings) < 1e-12
    assert error(grad_class_weight, truth.grad_class_weight) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_cosines_that_round_above_one(form):
    """Of 1,000 float32 unit vectors some have a product with themselves above 1, whose arccos is NaN."""
    embeddings = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert ((unit * unit).sum(1) > 1).any(), "rounding here leaves nothing to test"
    result, *gradients = run(embeddings, embeddings, np.arange(1000), "float32", form, block_size=300)
    assert np.isfinite(result.loss.item())
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("embeddings", "class_weight", "labels", "message"),
    [
        ((2, 3), (4, 3), [0, 4], r"labels: expected 0..3, got 4 at row 1"),
        ((2, 3), (4, 3), [-1, 0], r"labels: expected 0..3, got -1 at row 0"),
        ((2, 3), (4, 3), [0.0, 1.0], "labels: expected int64 or int32 .* got float"),
        ((2, 3), (4, 3), [0], r"labels: expected int64 or int32 \(2,\)"),
        ((2, 3), (4, 5), [0, 1], "with the same D"),
        ((2, 3), (1, 3), [0, 0], "2 classes"),
    ],
)
def test_bad_input_is_named(embeddings, class_weight, labels, message):
    with pytest.raises(ValueError, match=message):
        sface_loss(jt.ones(embeddings), jt.ones(class_weight), jt.array(labels))
    with pytest.raises(ValueError, match='form: expected "plain" or "streamed"'):
        sface_loss(jt.ones((1, 3)), jt.ones((4, 3)), labels_of([0]), form="fast")


@pytest.mark.parametrize("form", FORMS)
def test_the_head_learns(form):
    """Prototypes move to fixed embeddings until the angles are below the center of the pull."""
    head = SFaceHead(64, 30, form=form)
    optimizer = jt.optim.SGD(head.parameters(), 0.05)
    x, labels = jt.array(np.random.default_rng(0).standard_normal((16, 64)), "float32"), labels_of(range(16))
    for _ in range(100):
        result = head(x, labels)
        optimizer.step(result.loss)
    assert tuple(head.class_weight.shape) == (30, 64)
    assert result.accuracy.item() == 1
    assert result.target_cosine.item() > np.cos(0.87)


@pytest.mark.cuda
@pytest.mark.skipif(not jt.has_cuda, reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_cuda_matches_the_oracle(form):
    """In float32: products of float64 matrices fail on a CUDA device (Jittor asks cuBLAS for sums in float32)."""
    case = planted()
    truth = oracle.sface(*case)
    with jt.flag_scope(use_cuda=1):
        _, grad_embeddings, grad_class_weight = run(*case, "float32", form)
    assert error(grad_embeddings, truth.grad_embeddings) < TOLERANCE["float32"]
    assert error(grad_class_weight, truth.grad_class_weight) < TOLERANCE["float32"]
