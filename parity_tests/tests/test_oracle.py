"""The truth itself is tested: SFace in 50 digits, all gradients by central differences."""

import mpmath
import numpy as np
import pytest

from parity_tests.cases.backbones import disturbed
from parity_tests.cases.heads import assert_on_knees
from parity_tests.cases.inputs import on_both_knees, planted
from parity_tests.truth import margin_heads
from parity_tests.truth import sface as oracle
from parity_tests.truth.margin_heads import margin_loss
from parity_tests.truth.networks import Tape, Value, copy_arrays, forward

STEP = 1e-6  # of central differences, whose error is about STEP^2 plus, from rounding, 1e-16 / STEP
HEADS = ("softmax", "normalised-softmax", "cosface", "arcface", "sphereface")


def central_differences(function, array: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        ends = []
        for sign in (1, -1):
            moved = array.copy()
            moved[index] += sign * STEP
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()


def in_50_digits(case, scale=64, slope=80, a=0.87, b=1.2):
    """Loss and gradient with respect to the embeddings, from the definition."""
    with mpmath.workdps(50):
        x, w = (mpmath.matrix(array.tolist()) for array in case[:2])

        def unit(m):
            norms = [mpmath.sqrt(sum(m[i, d] ** 2 for d in range(m.cols))) for i in range(m.rows)]
            return mpmath.matrix([[m[i, d] / norms[i] for d in range(m.cols)] for i in range(m.rows)]), norms

        (unit_x, norms), (unit_w, _) = unit(x), unit(w)
        loss, gradient = mpmath.mpf(0), mpmath.zeros(x.rows, x.cols)
        for i in range(x.rows):
            pull = [mpmath.mpf(0)] * x.cols
            for j in range(w.rows):
                cosine = sum(unit_x[i, d] * unit_w[j, d] for d in range(x.cols))
                theta = mpmath.acos(cosine)
                if j == case.labels[i]:
                    g = -scale / (1 + mpmath.exp(-slope * (theta - mpmath.mpf(a)))) / x.rows
                else:
                    g = scale / (1 + mpmath.exp(slope * (theta - mpmath.mpf(b)))) / x.rows
                loss += g * cosine
                pull = [p + g * unit_w[j, d] for d, p in enumerate(pull)]
            radial = sum(pull[d] * unit_x[i, d] for d in range(x.cols))
            for d in range(x.cols):
                gradient[i, d] = (pull[d] - radial * unit_x[i, d]) / norms[i]
        return float(loss), np.array(gradient.tolist(), dtype=np.float64)


@pytest.mark.parametrize("case", [planted(3, 4, 5), planted(4, 6, 3, seed=1), on_both_knees(3, 5, 8)])
def test_sface_in_50_digits(case):
    truth = oracle.sface(*case)
    loss, gradient = in_50_digits(case)
    assert truth.loss == pytest.approx(loss, rel=1e-13)  # measured 2e-15
    assert error(truth.grad_embeddings, gradient) < 1e-12  # measured 2e-14: k / 4 = 20 times the rounding of theta


def test_the_gradient_is_that_of_frozen_weights():
    """Central differences match with frozen r and not with moving r: SFace's gradient is defined so."""
    case = on_both_knees(4, 6, 8)
    truth = oracle.sface(*case)

    def with_frozen_weights(class_weight):
        unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (case.embeddings, class_weight))
        cosines = unit_x @ unit_w.T
        own = cosines[np.arange(len(cosines)), case.labels]
        return np.mean(-truth.intra_weight * own) + np.mean(np.sum(truth.inter_weight * cosines, 1))

    frozen = central_differences(with_frozen_weights, case.class_weight)
    moving = central_differences(lambda w: oracle.sface(case.embeddings, w, case.labels).loss, case.class_weight)
    assert error(frozen, truth.grad_class_weight) < 1e-6
    assert error(moving, truth.grad_class_weight) > 0.1


def assert_margin_truth_is_differentiable(head, case):
    def truth(embeddings, class_weight):
        return margin_loss(head, embeddings, class_weight, case.labels, margin=0.5, step=100)

    found = truth(*case[:2])
    by_embeddings = central_differences(lambda x: truth(x, case.class_weight).loss, case.embeddings)
    by_prototypes = central_differences(lambda w: truth(case.embeddings, w).loss, case.class_weight)
    assert error(by_embeddings, found.grad_embeddings) < 1e-6
    assert error(by_prototypes, found.grad_class_weight) < 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_margin_heads_match_central_differences(head):
    assert_margin_truth_is_differentiable(head, planted(5, 7, 6, intra_center=1.4))


@pytest.mark.parametrize("head", HEADS)
def test_margin_heads_match_central_differences_opposite_to_a_prototype(head):
    """Where sin(theta) is 0."""
    case = planted(5, 7, 6, intra_center=1.4)
    case.embeddings[2] = -case.class_weight[case.labels[2]]
    assert_margin_truth_is_differentiable(head, case)


@pytest.mark.parametrize("head", HEADS)
def test_margin_heads_match_central_differences_below_the_floor_of_norms(head, monkeypatch):
    """With a floor that is high above the steps of the differences; some vectors are below it, one is zero."""
    for module in (oracle, margin_heads):
        monkeypatch.setattr(module, "NORM_FLOOR", 2.0)
    case = planted(5, 7, 6, intra_center=1.4)
    case.embeddings[2] = 0
    for vectors in case[:2]:
        assert 0 < np.sum(np.linalg.norm(vectors, axis=1) < 2) < len(vectors)
    assert_margin_truth_is_differentiable(head, case)


@pytest.mark.parametrize(
    ("backbone", "size"), [("iresnet_small", 16), ("ir_se50", 16), ("mobilefacenet", 17), ("mobilenet_v1", 17)]
)
@pytest.mark.parametrize("training", [True, False])
def test_backbones_match_central_differences(backbone, size, training):
    """Differences along one random direction of all parameters and the input; an odd size finds wrong padding."""
    random = np.random.default_rng(0)
    images, grad_output = random.standard_normal((4, 3, size, size)), random.standard_normal((4, 5))
    arrays: dict[str, np.ndarray] = {}
    forward(Tape(arrays), backbone, Value(images), 5)
    arrays = {name: disturbed(name, array, random) for name, array in arrays.items()}
    tape, x = Tape(copy_arrays(arrays), training=training), Value(images)
    tape.backward(forward(tape, backbone, x, 5), grad_output)
    direction = {name: random.standard_normal(value.data.shape) for name, value in tape.parameters.items()}
    input_direction = random.standard_normal(images.shape)
    direction.pop("features.weight", None)

    def moved(distance: float) -> float:
        there = {name: array + distance * direction.get(name, 0) for name, array in copy_arrays(arrays).items()}
        there_images = Value(images + distance * input_direction)
        return np.sum(forward(Tape(there, training=training), backbone, there_images, 5).data * grad_output)

    expected = np.sum(x.grad * input_direction) + sum(np.sum(tape.parameters[n].grad * d) for n, d in direction.items())
    step = 1e-8  # short, so that few PReLU inputs change sign on the way
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(expected, rel=1e-3)


def test_running_statistics_take_the_unbiased_variance():
    tape = Tape({}, training=True)
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 4)) * 3 + 1
    tape.batch_norm(Value(x), "bn")
    assert tape.arrays["bn.running_var"] == pytest.approx(0.9 + 0.1 * x.var((0, 2, 3), ddof=1), rel=1e-14)
    assert tape.arrays["bn.running_mean"] == pytest.approx(0.1 * x.mean((0, 2, 3)), rel=1e-14)


def test_a_case_off_the_knees_is_refused():
    case = on_both_knees()
    assert_on_knees(oracle.sface(*case), 64)
    random = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="r_intra: expected 20 %"):
        assert_on_knees(oracle.sface(random.standard_normal((9, 64)), case.class_weight, np.arange(9)), 64)
