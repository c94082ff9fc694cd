"""What every backend's `sface_loss` must compute: the golden results of the published code, and its own properties.

A test file that imports this defines `run(embeddings, class_weight, labels, dtype="float64", form="plain",
block_size=7, factor=1.0, **parameters)`: the result as numbers of NumPy, and both gradients of `factor` times the loss.
"""

from pathlib import Path

import numpy as np
import pytest

from parity_tests.cases.inputs import on_both_knees, planted
from parity_tests.truth import sface as oracle

GOLDEN = sorted((Path(__file__).parents[3] / "parity_tests" / "golden").glob("*.npz"))
PARAMETERS = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
LOSSES = ("loss", "intra_loss", "inter_loss")
METRICS = ("target_cosine", "other_cosine", "accuracy")
FORMS = ("plain", "streamed")

# Relative to the largest entry. float64: a sum of 1,000 terms in another order moves by 1e-13; measured 7e-15.
# float32: one ulp of cos is 6e-8, and the sigmoid turns an error of theta into k/4 = 20 times that; measured 2.7e-6.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


@pytest.fixture
def sface(request):
    return request.module.run


def error(found, expected):
    """The largest difference, relative to the largest entry."""
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def assert_gradients(found, truth, tolerance):
    for gradient, expected in zip(found, (truth.grad_embeddings, truth.grad_class_weight), strict=True):
        assert error(gradient, expected) <= tolerance


def test_there_are_four_golden_files():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(sface, path, dtype, form):
    golden = np.load(path, allow_pickle=False)
    inputs = (golden[name] for name in ("embeddings", "class_weight", "labels"))
    parameters = {name: float(golden[name]) for name in PARAMETERS}
    result, *gradients = sface(*inputs, dtype, form, block_size=64, **parameters)
    for name in LOSSES:
        assert error(getattr(result, name), golden[name]) <= TOLERANCE[dtype], name
    for name, gradient in zip(("grad_embeddings", "grad_class_weight"), gradients, strict=True):
        assert error(gradient, golden[name]) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("form", FORMS)
def test_metrics(sface, form):
    case = planted(33, 101, 17)
    result, *_ = sface(*case, form=form, block_size=10)
    truth = oracle.sface(*case)
    for name in METRICS:
        assert getattr(result, name) == pytest.approx(getattr(truth, name), abs=1e-12), name


@pytest.mark.parametrize("block_size", [1, 2, 8, 29, 30, 31, 4096])
def test_block_size_does_not_matter(sface, block_size):
    case = on_both_knees()
    plain, *expected = sface(*case)
    streamed, *found = sface(*case, form="streamed", block_size=block_size)
    assert tuple(streamed) == pytest.approx(tuple(plain), rel=1e-12)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_factor_of_the_loss_reaches_the_gradients(sface, form):
    case = on_both_knees()
    _, *expected = sface(*case, form=form)
    _, *found = sface(*case, form=form, factor=4.0)
    for one, other in zip(found, expected, strict=True):
        assert error(one, 4 * other) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_on_its_prototype_and_zero_vectors_are_finite(sface, form):
    embeddings = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    class_weight = np.array([[2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    result, *gradients = sface(embeddings, class_weight, [0, 1], form=form)
    truth = oracle.sface(embeddings, class_weight, np.array([0, 1]))
    assert result.loss == pytest.approx(truth.loss, rel=1e-12)
    assert_gradients(gradients, truth, 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", [0, 1], ids=["own prototype", "another prototype"])
def test_cosines_that_round_above_one(sface, shift, form):
    """Of 1,000 float32 unit vectors some have a product with themselves above 1, whose arccos is NaN."""
    embeddings = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert ((unit * unit).sum(1) > 1).any(), "rounding here leaves nothing to test"
    prototypes = np.roll(embeddings, shift, axis=0)
    result, *gradients = sface(embeddings, prototypes, np.arange(1000), "float32", form, block_size=300)
    assert np.isfinite(result.loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("embeddings", "class_weight", "labels", "message"),
    [
        ((3, 4), (30, 4), [0, 30, -1], r"labels: expected 0\.\.29, got 30 at row 1"),
        ((3, 4), (30, 4), [0, 1, -1], r"labels: expected 0\.\.29, got -1 at row 2"),
        ((3, 4), (30, 4), [0.0, 1.0, 2.0], "labels: expected int64 .*got .*float"),
        ((3, 4), (30, 4), [0, 1], r"labels: expected int64 .*\(3,\), got"),
        ((3, 5), (30, 4), [0, 1, 2], r"same D.*\(3, 5\).*\(30, 4\)"),
        ((3, 4), (1, 4), [0, 0, 0], "at least 1 sample and 2 classes, got 3 and 1"),
    ],
)
def test_bad_input_is_named(sface, embeddings, class_weight, labels, message):
    with pytest.raises(ValueError, match=message):
        sface(np.ones(embeddings), np.ones(class_weight), labels)


@pytest.mark.parametrize("epsilon", [-1e-9, 1, float("nan")])
def test_bad_options(sface, epsilon):
    with pytest.raises(ValueError, match="epsilon: expected 0 <= epsilon < 1, or None, got"):
        sface(*planted(), form="streamed", epsilon=epsilon)
    with pytest.raises(ValueError, match='form: expected "plain" or "streamed"'):
        sface(*planted(), form="fast")
