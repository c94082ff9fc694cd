"""The streamed form of SFace in Jittor: what it leaves out, how it lists entries, and its memory."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jittor as jt
import numpy as np
import pytest

from common.tests.backend_checks.sface_loss import LOSSES, METRICS, assert_gradients, error
from jittor_impl.losses import skipping
from jittor_impl.losses import streamed as streamed_module
from jittor_impl.losses.sface import Rescaling, SFaceHead, sface_loss
from jittor_impl.losses.streamed import streamed
from jittor_impl.tests.test_sface_loss import run as sface
from parity_tests.cases.inputs import Case, on_both_knees, planted
from parity_tests.truth import sface as oracle

DENSE, LISTED = 0.0, 1.0  # shares above which a block is multiplied densely: always, never
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


@pytest.fixture(params=[DENSE, LISTED], ids=["dense", "listed"])
def share(request, monkeypatch):
    monkeypatch.setattr(skipping, "_DENSE_SHARE", request.param)


def run(case, dtype="float64", **options):
    return sface(*case, dtype, **{"form": "streamed", "block_size": None, **options})


def at_angles(*angles):
    """One embedding on its prototype, of class 0, and a prototype of norm 3 at each angle from it."""
    others = [[3 * np.cos(angle), 3 * np.sin(angle)] for angle in angles]
    return Case(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], *others]), np.array([0]))


@pytest.mark.parametrize("block_size", [7, 300, None])
def test_the_blocks_of_a_gpu_agree_with_the_oracle(monkeypatch, block_size):
    """Their operators run on a CPU too."""
    monkeypatch.setattr(streamed_module, "_on_gpu", lambda: True)
    case = on_both_knees(37, 300)
    result, *gradients = run(case, block_size=block_size)
    truth = oracle.sface(*case)
    for name in (*LOSSES, *METRICS):
        assert error(getattr(result, name), getattr(truth, name)) < 1e-12, name
    assert_gradients(gradients, truth, 1e-12)


@pytest.mark.parametrize("form", ["plain", "streamed", "of a gpu"])
def test_an_embedding_that_is_not_a_number_is_not_accurate(monkeypatch, form):
    monkeypatch.setattr(streamed_module, "_on_gpu", lambda: form == "of a gpu")
    x = jt.array(np.array([[np.nan, 1.0], [1.0, 0.0]]), "float32")
    w = jt.array(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), "float32")
    result = sface_loss(x, w, jt.array([0, 0], "int64"), form="plain" if form == "plain" else "streamed")
    assert np.isnan(result.loss.item())
    assert result.accuracy.item() == 0.5


@pytest.mark.parametrize("block_size", [7, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_dense_and_listed_blocks_agree_with_the_oracle(share, dtype, tolerance, block_size):
    """300 classes: more than a tile of the loops, and the last block is smaller than the others."""
    case = on_both_knees(37, 300)
    result, *gradients = run(case, dtype, block_size=block_size, epsilon=0.0)
    truth = oracle.sface(*case)
    assert_gradients(gradients, truth, tolerance)
    for name in (*LOSSES, *METRICS):
        assert getattr(result, name) == pytest.approx(getattr(truth, name), rel=tolerance, abs=1e-7), name


def test_labels_that_repeat(share):
    case = planted(32, 20)._replace(labels=np.arange(32) // 11)
    result, *gradients = run(case, epsilon=0.0, block_size=8)
    truth = oracle.sface(*case)
    assert result.other_cosine == pytest.approx(truth.other_cosine, abs=1e-12)
    assert_gradients(gradients, truth, 1e-12)


def test_blocks_of_both_kinds_and_without_any_entry(monkeypatch):
    """Of 3 blocks of 100 classes one has no active entry, one a few and one all."""
    pushed = []
    push = Rescaling.push
    monkeypatch.setattr(Rescaling, "push", lambda self, theta: (pushed.append(len(theta)), push(self, theta))[1])
    random = np.random.default_rng(0)
    axis = np.zeros(64)
    axis[0] = 1
    blocks = [0.05 * random.standard_normal((100, 64)) + sign * axis for sign in (-1, -1, 1)]
    blocks[1][5] *= -1
    case = Case(axis + 0.05 * random.standard_normal((9, 64)), np.concatenate(blocks), np.arange(9) * 30)
    truth = oracle.sface(*case)
    _, *gradients = run(case, block_size=100)
    assert_gradients(gradients, truth, 1e-12)
    assert len(pushed) == 2, "Jittor would compile other operators for no entries"
    untouched = [j for j in range(100) if j not in case.labels]
    assert not gradients[1][untouched].any(), "a class without an active entry has no gradient at all"


@pytest.mark.parametrize(("slope", "center", "epsilon"), [(80.0, 1.2, 1e-3), (20.0, 0.9, 1e-6), (80.0, 1.2, 0.9)])
def test_the_cut_is_where_the_bound_says(share, slope, center, epsilon):
    """Of two prototypes, 1e-6 rad before and beyond the cut, only the first is pushed."""
    cut = center + np.log(1 / epsilon - 1) / slope
    case = at_angles(cut - 1e-6, cut + 1e-6)
    _, _, grad = run(case, inter_slope=slope, inter_center=center, epsilon=epsilon)
    push = 64 / (1 + np.exp(slope * (cut - 1e-6 - center)))
    assert np.linalg.norm(grad[1]) == pytest.approx(push * np.sin(cut - 1e-6) / 3, rel=1e-9)
    left_out = skipping._DENSE_SHARE == LISTED  # a dense block has all of them
    assert (not grad[2].any()) == left_out


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, None])
@pytest.mark.parametrize("dtype", EPSILON)
def test_what_is_left_out_is_below_the_bound(monkeypatch, dtype, epsilon):
    monkeypatch.setattr(skipping, "_DENSE_SHARE", LISTED)
    case = planted(40, 200, 32, spread=0.1)
    result, grad_embeddings, grad_class_weight = run(case, dtype, epsilon=epsilon, block_size=64)
    truth = oracle.sface(*case)
    left_out = 64 * (EPSILON[dtype] if epsilon is None else epsilon)
    rounding = 1e-12 if dtype == "float64" else 2e-5
    norms = [np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (case.embeddings, case.class_weight)]
    found = np.abs(result.inter_loss - truth.inter_loss)
    assert found <= left_out * 199 + rounding * abs(truth.inter_loss)
    for gradient, expected, bound in (
        (grad_embeddings, truth.grad_embeddings, left_out * 199 / (40 * norms[0])),
        (grad_class_weight, truth.grad_class_weight, left_out / norms[1]),
    ):
        distance = np.linalg.norm(gradient - expected, axis=1, keepdims=True)
        assert (distance <= bound + rounding * np.abs(expected).max()).all()
    if epsilon == 1e-2:
        assert error(grad_class_weight, truth.grad_class_weight) > 1e-6, "nothing was left out: the test is void"


def test_epsilon_0_leaves_nothing_out(monkeypatch):
    """Not even an opposite prototype, whose cosine may round to less than -1."""
    monkeypatch.setattr(skipping, "_DENSE_SHARE", LISTED)
    embeddings = np.random.default_rng(0).standard_normal((100, 64))
    case = Case(embeddings, -embeddings[::-1].copy(), np.arange(100))
    seen = []

    def flat(theta):
        seen.append(theta.numel())
        return jt.ones_like(theta)

    x, w = jt.array(case.embeddings, "float32"), jt.array(case.class_weight, "float32")
    rescaling = SimpleNamespace(pull=flat, push=flat)
    streamed(x, w, jt.array(case.labels), rescaling, jt.ones(100), "sum", least_cosine=-1.0, block_size=40)
    assert seen == [100, *[100 * size - min(size, 40) for size in (40, 40, 20)]], "the targets, then all others"


def test_weights_are_any_functions_of_theta(share):
    """r = theta squared: mean_i(sum_j r cos) has a gradient that autograd knows."""
    case = planted(8, 20)
    x, w = jt.array(case.embeddings, "float64"), jt.array(case.class_weight, "float64")
    labels = jt.array(case.labels)
    squares = SimpleNamespace(pull=lambda t: t * t, push=lambda t: t * t)
    factors = jt.array(np.full(8, 1 / 8), "float64")
    loss, *_ = streamed(x, w, labels, squares, factors, "sum", least_cosine=-1.0, block_size=6)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (case.embeddings, case.class_weight)]
    cosines = unit[0] @ unit[1].T
    signs = np.where(np.arange(20) == case.labels[:, None], -1, 1)
    g = signs * np.arccos(cosines) ** 2 / 8
    assert loss.item() == pytest.approx((g * cosines).sum(), rel=1e-12)
    along = g.T @ unit[0]
    along -= (along * unit[1]).sum(1, keepdims=True) * unit[1]
    expected = along / np.linalg.norm(case.class_weight, axis=1, keepdims=True)
    assert error(jt.grad(loss, w).numpy(), expected) < 1e-12


def test_the_gradients_can_be_asked_for_twice():
    case = planted()
    x, w = jt.array(case.embeddings, "float64"), jt.array(case.class_weight, "float64")
    loss = sface_loss(x, w, jt.array(case.labels)).loss
    once = jt.grad(loss, w).numpy().copy()
    assert error(jt.grad(jt.array(3.0, "float64") * loss, w).numpy(), 3 * once) < 1e-15
    assert (jt.grad(loss, w).numpy() == once).all()


@pytest.mark.parametrize("gpu", [False, True])
def test_without_a_use_for_gradients_none_are_computed(monkeypatch, share, gpu):
    monkeypatch.setattr(streamed_module, "_on_gpu", lambda: gpu)
    monkeypatch.setattr(streamed_module.DensePass, "gradients", None)
    case = on_both_knees()
    truth = oracle.sface(*case)
    x, w, labels = jt.array(case.embeddings, "float64"), jt.array(case.class_weight, "float64"), jt.array(case.labels)
    with jt.no_grad():
        results = [sface_loss(x, w, labels)]
    results.append(sface_loss(x, w, labels, reduction="none"))
    results.append(sface_loss(x.clone().stop_grad(), w.clone().stop_grad(), labels))
    for result in results:
        assert result.inter_loss.numpy().mean() == pytest.approx(truth.inter_loss)
        assert result.accuracy.item() == truth.accuracy
    with pytest.raises(TypeError, match="not callable"):
        sface_loss(x, w.clone().stop_grad(), labels)


@pytest.mark.parametrize("row", ["embeddings", "class_weight"])
def test_a_nan_reaches_the_loss(share, row):
    """Also from a class that no sample of the batch belongs to: a diverging run must be noticed."""
    case = planted(4, 30)
    getattr(case, row)[3 if row == "embeddings" else 29, 0] = np.nan
    assert 29 not in case.labels
    result, *_ = run(case, "float32")
    assert np.isnan(result.loss)


def test_without_onednn_plain_loops_multiply(share, monkeypatch):
    case = on_both_knees()
    _, *expected = run(case, "float32")
    monkeypatch.setattr(jt.compile_extern, "use_mkl", False)
    _, *found = run(case, "float32")
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-6


def test_the_head_passes_epsilon_on():
    case = planted(spread=0.1)
    head = SFaceHead(24, 30, epsilon=0.4)
    head.class_weight = jt.array(case.class_weight, "float64")
    result = head(jt.array(case.embeddings, "float64"), jt.array(case.labels))
    expected, *_ = run(case, epsilon=0.4)
    exact, *_ = run(case, epsilon=0.0)
    assert result.loss.item() == expected.loss != exact.loss


MEMORY = """
from jittor_impl.runtime import jt
from jittor_impl.losses.sface import sface_loss

def kilobytes(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

def peak_over_inputs(num_classes):
    x, w, y = jt.randn(64, 32), jt.randn(num_classes, 32), jt.randint(0, num_classes, (64,))
    jt.sync([x, w, y])
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    work(x, w, y)
    return kilobytes("VmHWM") - before

def with_gradients(x, w, y):
    jt.sync(jt.grad(sface_loss(x, w, y, block_size=1024).loss, [x, w]))

def without(x, w, y):
    with jt.no_grad():
        sface_loss(x, w, y, block_size=1024).loss.sync()

for work in (without, with_gradients):
    peak_over_inputs(2000)
    print(peak_over_inputs(200_000))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_classes_beyond_the_gradient():
    """200,000 classes: the gradient has 24.4 MiB, a second one or an (N, C) matrix (48.8 MiB) would show.

    Without gradients there is not even one.
    """
    run = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    without, with_gradients = (int(size) / 1024 for size in run([sys.executable, "-c", MEMORY]).stdout.split()[-2:])
    assert without < 12
    assert with_gradients < 24.4 + 12
