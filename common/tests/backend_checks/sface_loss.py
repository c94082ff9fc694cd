"""What every backend's `sface_loss` must compute: the golden results of the published code, and its own properties.

A test file that imports this defines `run(embeddings, class_weight, labels, dtype="float64", form="plain",
block_size=7, factor=1.0, **parameters)`: the result as numbers and arrays of NumPy, and both gradients of the sum of
`factor` times the loss. `factor` and some parameters may be arrays. It also defines `Rescaling` and `SFaceHead`.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from parity_tests.cases.inputs import Case, on_both_knees, planted
from parity_tests.truth import sface as oracle

GOLDEN = sorted((Path(__file__).parents[3] / "parity_tests" / "golden").glob("*.npz"))
PARAMETERS = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
LOSSES = ("loss", "intra_loss", "inter_loss")
METRICS = ("target_cosine", "other_cosine", "accuracy")
FORMS = ("plain", "streamed")
NAN = float("nan")

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
    for name in (*LOSSES, *METRICS, "target_cosines"):
        assert getattr(streamed, name) == pytest.approx(getattr(plain, name), rel=1e-12), name
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
        ((3, 4), (30, 4), [0.0, 1.0, 2.0], "labels: expected int64 or int32 .*got .*float.*; .* converts"),
        ((3, 4), (30, 4), [0, 1], r"labels: expected int64 or int32 \(3,\), got"),
        ((3, 5), (30, 4), [0, 1, 2], r"same D.*\(3, 5\).*\(30, 4\)"),
        ((3, 4), (1, 4), [0, 0, 0], "at least 1 sample and 2 classes, got 3 and 1"),
    ],
)
def test_bad_input_is_named(sface, embeddings, class_weight, labels, message):
    with pytest.raises(ValueError, match=message):
        sface(np.ones(embeddings), np.ones(class_weight), labels)


BAD_OPTIONS = [
    ({"epsilon": -1e-9}, "epsilon: expected 0 <= epsilon < 1, or None, got -1e-09"),
    ({"epsilon": 1}, "epsilon: expected 0 <= epsilon < 1, or None, got 1"),
    ({"epsilon": NAN}, "epsilon: expected 0 <= epsilon < 1, or None, got nan"),
    ({"form": "fast"}, 'form: expected "plain" or "streamed", got \'fast\''),
    ({"reduction": "max"}, 'reduction: expected "mean" or "sum" or "none", got \'max\''),
    ({"block_size": 0}, "block_size: expected at least 1, or None, got 0"),
    ({"block_size": 2.5}, "block_size: expected at least 1, or None, got 2.5"),
    *(
        ({name: value}, f"{name}: expected a finite number above 0, got {value}")
        for name in ("scale", "intra_slope", "inter_slope")
        for value in (NAN, np.inf, 0.0, -80.0)
    ),
    *(
        ({name: value}, f"{name}: expected radians between 0 and pi, got {value}; math.radians converts")
        for name in ("intra_center", "inter_center")
        for value in (NAN, np.inf, -0.1, 3.2, 69.0)
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_options_are_named(sface, request, options, message):
    """By the function and by the constructor of the head, before a step."""
    with pytest.raises(ValueError, match=re.escape(message)):
        sface(*planted(), **{"form": "streamed", **options})
    with pytest.raises(ValueError, match=re.escape(message)):
        request.module.SFaceHead(24, 30, **options)


@pytest.mark.parametrize(
    ("center", "epsilon", "expected"),
    [(1.2, 0.0, -1.0), (1.2, 1e-6, 1.2 + np.log(1e6 - 1) / 80), (3.0, 1e-7, np.pi), (0.01, 0.9, 0.0)],
)
def test_the_least_cosine_is_where_the_push_falls_to_epsilon(request, center, epsilon, expected):
    found = request.module.Rescaling(64, 80, 80, 0.87, center).least_cosine(epsilon)
    assert found == pytest.approx(expected if epsilon == 0 else np.cos(expected), abs=1e-12)


WEIGHTS = np.array([0.0, 0.5, 1.0, 2.0, -1.0, 3.0, 0.25, 1e-3])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_reductions_and_sample_weights(sface, reduction, weighted, dtype, form):
    case = on_both_knees()
    weights = np.resize(WEIGHTS, len(case.labels)) if weighted else None
    upstream = np.linspace(-1, 2, len(case.labels)) if reduction == "none" else np.float64(4)
    result, *gradients = sface(*case, dtype, form, factor=upstream, reduction=reduction, sample_weight=weights)
    truth = oracle.sface(*case, reduction=reduction, sample_weight=weights)
    for name in (*LOSSES, "target_cosines"):
        assert np.shape(getattr(result, name)) == np.shape(getattr(truth, name)), name
    scale = max(np.abs(truth.intra_loss).max(), np.abs(truth.inter_loss).max())
    for name in LOSSES:
        assert np.abs(getattr(result, name) - getattr(truth, name)).max() <= TOLERANCE[dtype] * scale, name
    weights = upstream * (1 if weights is None else weights)
    whole = oracle.sface(*case, reduction=reduction, sample_weight=np.broadcast_to(weights, len(case.labels)))
    assert_gradients(gradients, whole, TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_the_cosines_are_there(sface, form):
    case = on_both_knees()
    result, *_ = sface(*case, form=form)
    unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in case[:2])
    cosines = unit_x @ unit_w.T
    assert error(result.target_cosines, cosines[np.arange(len(cosines)), case.labels]) < 1e-13
    if form == "plain":
        assert error(result.cosines, cosines) < 1e-13
    else:
        assert result.cosines is None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["intra_center", "inter_center"])
def test_centers_of_classes(sface, name, dtype):
    case = on_both_knees()
    centers = np.linspace(0.5, 1.4, len(case.class_weight))
    result, *gradients = sface(*case, dtype, **{name: centers})
    truth = oracle.sface(*case, **{name: centers})
    assert result.loss.dtype == dtype
    assert result.loss == pytest.approx(truth.loss, rel=TOLERANCE[dtype])
    assert_gradients(gradients, truth, TOLERANCE[dtype])
    with pytest.raises(ValueError, match=rf'{name}: expected one number, got \(.*\); use form="plain"'):
        sface(*case, form="streamed", **{name: centers})
    with pytest.raises(ValueError, match=rf"{name}: expected a number, or \({len(centers)},\) of them, got \(1,\)"):
        sface(*case, **{name: centers[:1]})


def test_the_head_can_be_rescaled_between_steps(request):
    head = request.module.SFaceHead(4, 6, block_size=3, intra_center=0.8)
    assert "SFaceHead(4, 6, scale=64.0, intra_slope=80.0, inter_slope=80.0, intra_center=0.8" in str(head)
    head.rescale(intra_center=0.9)
    assert (head.rescaling.intra_center, head.rescaling.inter_center) == (0.9, 1.2)
    with pytest.raises(ValueError, match="inter_center: expected radians between 0 and pi, got 69"):
        head.rescale(inter_center=69)


@pytest.mark.parametrize("form", FORMS)
def test_labels_may_be_int32(sface, form):
    case = on_both_knees()
    expected, *_ = sface(*case, form=form)
    found, *_ = sface(*case._replace(labels=case.labels.astype(np.int32)), form=form)
    assert found.loss == expected.loss


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_float32(sface, form):
    """In float16 an angle has a step of 0.001, and r turns that into 2 % of s."""
    case = [held_by_half(array) for array in on_both_knees()[:2]] + [on_both_knees().labels]
    expected, *gradients = sface(*case, "float32", form)
    found, *halves = sface(*case, "float16", form)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for half, gradient in zip(halves, gradients, strict=True):
        assert half.dtype == np.float16
        assert error(half, gradient) < 2**-11  # half of float16's step


# Relative to the largest entry, beside 100 roundings of the largest weight. Near 1 a cosine's rounding moves the angle
# by 1.5e-8 in float64 and 3.5e-4 in float32, and r by slope / 4 times that; measured 1.4e-8 and 5.8e-5 in 12,000 cases.
HOSTILE = {"float64": 1e-7, "float32": 1e-3}


def test_hostile_random_cases(sface):
    """Zero, equal, opposite, huge and tiny vectors, all options; SFACE_FUZZ is the number of cases."""
    random = np.random.default_rng(int(os.environ.get("SFACE_FUZZ_SEED", "0")))
    for count in range(int(os.environ.get("SFACE_FUZZ", "60"))):
        case, options, run = hostile_case(random)
        result, *gradients = sface(*case, **run, **options)
        inputs = [array.astype(run["dtype"]) for array in case[:2]]
        truth = oracle.sface(*inputs, case.labels, **options)
        what, bound = (count, run, options), HOSTILE[run["dtype"]]
        weights = 1 if options["sample_weight"] is None else np.abs(options["sample_weight"]).max()
        rounding = 100 * np.finfo(run["dtype"]).eps * options["scale"] * weights * len(case.labels)
        scale = max(np.abs(truth.intra_loss).max(), np.abs(truth.inter_loss).max())
        for name in LOSSES:
            difference = np.abs(getattr(result, name) - getattr(truth, name)).max()
            assert difference <= bound * scale + rounding, (name, *what)
        for name, gradient, vectors in zip(("grad_embeddings", "grad_class_weight"), gradients, inputs, strict=True):
            # a gradient goes with 1 / norm: without that factor the shortest vector would hide the others
            norms = np.maximum(np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True), 1e-12)
            expected = getattr(truth, name) * norms
            assert np.abs(gradient * norms - expected).max() <= bound * np.abs(expected).max() + rounding, (name, *what)


def hostile_case(random):
    batch_size, num_classes, embedding_size = random.integers([1, 2, 2], [20, 60, 40])
    x, w = (random.standard_normal((rows, embedding_size)) for rows in (batch_size, num_classes))
    labels = random.integers(0, num_classes, batch_size)
    for vectors in (x, w):
        vectors *= 10.0 ** random.uniform(-6, 6, (len(vectors), 1))
        vectors[random.random(len(vectors)) < 0.05] = 0
        vectors[random.random(len(vectors)) < 0.05] *= 1e-14  # below the floor of the norm
    for row in np.flatnonzero(random.random(batch_size) < 0.2):
        x[row] = random.choice([-3.0, 1.0, 1e5]) * w[random.choice([labels[row], 0])]
    dtype, form = random.choice(list(HOSTILE)), random.choice(FORMS)
    options = {name: random.uniform(0.3, 2.8) for name in ("intra_center", "inter_center")}
    options |= {name: random.uniform(5, 100) for name in ("scale", "intra_slope", "inter_slope")}
    options["reduction"] = str(random.choice(["mean", "sum", "none"]))
    options["sample_weight"] = random.uniform(-1, 3, batch_size) if random.random() < 0.5 else None
    run = {"dtype": str(dtype), "form": str(form), "block_size": int(random.integers(1, num_classes + 5))}
    return Case(x, w, labels), options, run


def held_by_half(array):
    return array.astype(np.float16).astype(np.float64)
