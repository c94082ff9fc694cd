"""The streamed form alone: what it leaves out and the bound of that, its sparse, dense and device parts, its memory."""

import contextlib
import gc
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from mxnet import autograd, nd

from common.tests.backend_checks.sface_loss import LOSSES, METRICS, TOLERANCE, assert_gradients, error
from mxnet_impl.losses import skipping, streamed
from mxnet_impl.losses.sface import Rescaling, sface_loss
from mxnet_impl.losses.streamed import _dense, _differentiable, _skipping
from mxnet_impl.tests.test_sface_loss import constant, labels_of, variable
from mxnet_impl.tests.test_sface_loss import run as sface
from parity_tests.cases.inputs import planted
from parity_tests.truth import sface as oracle

EPSILON = 2.0**-23
RESCALING = Rescaling(64, 80, 80, 0.87, 1.2)
CUT = 1.2 + np.log(1 / EPSILON - 1) / 80  # the angle from which r_inter < 64 * EPSILON


def run(case, dtype="float64", **options):
    return sface(*case, dtype, "streamed", **{"block_size": 2048, **options})


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sparse_case():
    """Blocks of 32 with a few active entries each, the last with none; two samples of class 0."""
    embeddings, class_weight, labels = planted(12, 150, 256)
    embeddings[1], labels[1] = embeddings[0] + 0.1 * embeddings[2], labels[0]
    class_weight[128:] = 0.01 * class_weight[128:] - _unit(embeddings).sum(0)
    return embeddings, class_weight, labels


@pytest.fixture(params=["sparse", "dense", "by count"])
def kind(request, monkeypatch):
    if request.param != "by count":
        monkeypatch.setattr(skipping, "_DENSE_SHARE", {"sparse": 2.0, "dense": 0.0}[request.param])
    return request.param


@pytest.mark.parametrize("waiting", [1, 20, 65536])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_results_and_gradients_are_those_of_the_truth(dtype, kind, waiting, monkeypatch):
    monkeypatch.setattr(skipping, "_WAITING", waiting)
    case, weights = sparse_case(), np.linspace(0, 2, 12)
    result, *gradients = run(case, dtype, block_size=32, sample_weight=weights)
    truth = oracle.sface(*case, sample_weight=weights)
    for name in (*LOSSES, *METRICS):
        assert getattr(result, name) == pytest.approx(getattr(truth, name), rel=TOLERANCE[dtype]), name
    assert_gradients(gradients, truth, TOLERANCE[dtype])
    assert result.loss.dtype == np.dtype(dtype)


def test_below_the_floor_of_a_norm_the_gradient_is_a_plain_division(kind):
    embeddings, class_weight, labels = sparse_case()
    embeddings[2] *= 5e-13 / np.linalg.norm(embeddings[2])
    class_weight[labels[3]] *= 5e-13 / np.linalg.norm(class_weight[labels[3]])
    _, *gradients = run((embeddings, class_weight, labels), block_size=32)
    truth = oracle.sface(embeddings, class_weight, labels)
    assert_gradients(gradients, truth, 1e-10)


def test_blocks_are_sparse_or_dense_by_the_count_of_their_entries():
    embeddings, class_weight, labels = sparse_case()
    class_weight[64:96] = embeddings[0] + class_weight[64:96] / 16
    for block_size, expected in ((32, {64}), (8, {64, 72, 80, 88})):
        one_pass = skipping.SkippingPass(labels, np.ones(12), RESCALING, np.cos(CUT), block_size)
        one_pass.run(embeddings, class_weight)
        assert one_pass.dense_blocks == expected


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("block_size", [7, 150, 1024])
def test_the_device_part_gives_the_truth_too(block_size, reduction):
    case, factors = sparse_case(), np.linspace(-1, 2, 12)
    upstream = factors**2 if reduction == "none" else np.full(1, 3.0)
    x, w = variable(case[0]), variable(case[1])
    with autograd.record():
        run_dense = partial(_dense, labels_of(case[2]), RESCALING, block_size)
        result = _differentiable(run_dense, x, w, constant(factors), reduction)
        loss = result.loss * constant(upstream)
    loss.backward()
    truth = oracle.sface(*case, reduction=reduction, sample_weight=factors)
    for name in (*LOSSES, *METRICS, "target_cosines"):
        assert getattr(result, name).asnumpy() == pytest.approx(getattr(truth, name), rel=1e-10), name
    truth = oracle.sface(*case, reduction="sum", sample_weight=factors * upstream)
    assert_gradients((x.grad.asnumpy(), w.grad.asnumpy()), truth, 1e-10)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_gradient_is_computed_that_no_one_asked_for(reduction):
    """Without recording there is none; with reduction "none" it waits for the factors of the samples."""
    x, w, labels = sparse_case()
    inputs = variable(x), variable(w), nd.ones(12, dtype="float64")
    dense = Mock(wraps=partial(_dense, labels_of(labels), RESCALING, 32))
    skipping = Mock(wraps=partial(_skipping, labels, RESCALING, np.cos(CUT), 32))
    for run_pass in (dense, skipping):
        with autograd.record() if reduction == "none" else contextlib.nullcontext():
            _differentiable(run_pass, *inputs, reduction)
        run_pass.assert_called_once_with(*inputs, with_gradients=False)
    assert not hasattr(dense(*inputs, with_gradients=False), "grad_class_weight")
    assert skipping(*inputs, with_gradients=False).groups == []


def at_angles(angles, size=400):
    """One embedding, its own prototype at 0.87, the next ones at the angles, and far ones, for blocks to be sparse."""
    random = np.random.default_rng(0)
    axis = np.eye(1, 64)
    around = random.standard_normal((size, 64))
    around[:, 0] = 0
    theta = np.full((size, 1), 2.5)
    theta[: 1 + len(angles), 0] = [0.87, *angles]
    prototypes = np.cos(theta) * axis + np.sin(theta) * _unit(around)
    return axis, prototypes * 2.0 ** random.uniform(-2, 2, (size, 1)), np.array([0])


def test_the_cut_lies_where_the_push_falls_below_epsilon():
    inside, outside = CUT - 1e-9, CUT + 1e-9
    case = at_angles([inside, outside, inside, outside])
    truth = oracle.sface(*case)
    assert ((truth.inter_weight[0, 1:5] > 64 * EPSILON) == [True, False, True, False]).all()
    _, _, found = run(case, epsilon=EPSILON)
    assert error(found[[1, 3]], truth.grad_class_weight[[1, 3]]) < 1e-10
    assert np.array_equal(found[[2, *range(4, 400)]], np.zeros((397, 64)))


@pytest.mark.parametrize("epsilon", [0.3, 1e-2, 1e-5])
def test_what_is_left_out_stays_below_the_bound(epsilon):
    cut = 1.2 + np.log(1 / epsilon - 1) / 80
    random = np.random.default_rng(1)
    case = at_angles(np.clip(cut + 0.02 * np.abs(random.standard_normal(300)), None, 3))
    x = np.repeat(case[0], 4, 0) * np.array([[0.5], [1], [2], [4]])
    case = x, case[1], np.zeros(4, np.int64)
    result, *gradients = run(case, epsilon=epsilon, block_size=400)
    truth = oracle.sface(*case)
    errors = [np.linalg.norm(a - b, axis=1) for a, b in zip(gradients, truth[5:7], strict=True)]
    norms = [np.linalg.norm(array, axis=1) for array in case[:2]]
    assert 0 < abs(result.inter_loss - truth.inter_loss) < 64 * epsilon * 399
    assert (errors[0] < 64 * epsilon * 399 / (4 * norms[0])).all()
    assert (errors[1][1:] < 64 * epsilon / norms[1][1:]).all()
    assert (errors[1][1:301] > 0).all()


def test_epsilon_0_leaves_nothing_out():
    case = at_angles([CUT + 0.1, 3.0, np.pi])
    result, *gradients = run(case, epsilon=0, inter_slope=2.0)
    truth = oracle.sface(*case, inter_slope=2.0)
    assert result.loss == pytest.approx(truth.loss, rel=1e-13)
    assert error(gradients[0], truth.grad_embeddings) < 1e-13
    assert error(gradients[1][1:], truth.grad_class_weight[1:]) < 1e-12


def test_the_default_epsilon_does_not_move_float32_results():
    case = sparse_case()
    result, *gradients = run(case, "float32", block_size=32)
    exact, *expected = run(case, "float32", block_size=32, epsilon=0)
    assert result.loss == pytest.approx(exact.loss, rel=1e-6)
    assert error(gradients[0], expected[0]) < 1e-6
    assert error(gradients[1], expected[1]) < 1e-6


@pytest.mark.parametrize("grad_req", ["write", "add"])
def test_gradients_join_those_of_other_uses(kind, grad_req):
    """Of the same arrays, the second time through a part of a larger array, times factors."""
    case = sparse_case()
    truth = oracle.sface(*case)
    x, w = variable(case[0], grad_req=grad_req), variable(np.concatenate([case[1][:9], case[1]]), grad_req=grad_req)
    for array in (x, w):
        array.grad[:] = 5
    with autograd.record():
        results = [sface_loss(x, w[9:], labels_of(case[2]), block_size=32).loss for _ in range(2)]
        loss = 3 * results[0] - 0.5 * results[1] + w.sum() + x.sum()
    loss.backward()
    rest = 1 + 5 * (grad_req == "add")
    assert error(x.grad.asnumpy() - rest, 2.5 * truth.grad_embeddings) < 1e-10
    assert error(w.grad.asnumpy()[9:] - rest, 2.5 * truth.grad_class_weight) < 1e-10
    assert np.array_equal(w.grad.asnumpy()[:9], np.full((9, 256), rest))


def test_gradients_replace_or_join_what_was_there(kind):
    case = sparse_case()
    truth = oracle.sface(*case)
    for grad_req, before in (("write", 0), ("add", 5)):
        x, w = variable(case[0], grad_req=grad_req), variable(case[1], grad_req=grad_req)
        for array in (x, w):
            array.grad[:] = 5
        with autograd.record():
            loss = sface_loss(x, w, labels_of(case[2]), block_size=32).loss
        for _ in range(2 if grad_req == "write" else 1):
            loss.backward(retain_graph=True)
        assert_gradients((x.grad.asnumpy() - before, w.grad.asnumpy() - before), truth, 1e-10)


def test_one_input_may_need_no_gradient(kind):
    case = sparse_case()
    truth = oracle.sface(*case)
    for wanted, expected in enumerate((truth.grad_embeddings, truth.grad_class_weight)):
        inputs = [nd.array(array, dtype="float64") for array in case[:2]]
        inputs[wanted].attach_grad()
        with autograd.record():
            loss = sface_loss(*inputs, labels_of(case[2]), block_size=32).loss
        loss.backward()
        assert error(inputs[wanted].grad.asnumpy(), expected) < 1e-10


def test_a_small_problem_is_computed_as_the_plain_form(monkeypatch):
    """To start a pass would take longer; a block size asks for it."""
    case = sparse_case()
    expected = sface(*case, "float32", "plain")
    monkeypatch.setattr(streamed, "streamed", None)
    result, *gradients = run(case, "float32", block_size=None)
    assert result.loss == expected[0].loss
    assert result.cosines is None
    assert all(map(np.array_equal, gradients, expected[1:]))
    with pytest.raises(TypeError):
        run(case)
    with pytest.raises(TypeError):
        run((np.tile(case[0], (20, 1)), case[1], np.tile(case[2], 20)), block_size=None)


def test_without_recording_there_is_a_result():
    case = sparse_case()
    result = sface_loss(*(nd.array(array, dtype="float64") for array in case[:2]), labels_of(case[2]), block_size=2**40)
    assert result.loss.asscalar() == pytest.approx(oracle.sface(*case).loss, rel=1e-12)


def test_what_a_step_keeps_is_gone_after_it():
    """However many operators wait for the garbage collector."""
    case = sparse_case()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            run(case)
        sface_loss(nd.array(case[0]), nd.array(case[1]), labels_of(case[2]), block_size=2048)
        nd.waitall()
        kept = [found for found in gc.get_objects() if isinstance(found, skipping.SkippingPass)]
    finally:
        gc.enable()
    assert kept == []


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prototype_that_is_not_finite_shows_in_the_loss(kind, bad):
    """A trainer must see that a run has diverged, though such a prototype is near to no embedding."""
    embeddings, class_weight, labels = sparse_case()
    class_weight[140, 3] = bad
    result, _, _ = run((embeddings, class_weight, labels), "float32", block_size=32)
    assert np.isnan(result.loss)


PEAK = """
import mxnet_impl
from mxnet import autograd, nd
from mxnet_impl.losses.sface import sface_loss

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

def step(w, epsilon):
    with autograd.record():
        loss = sface_loss(x, w, labels, epsilon=epsilon, block_size=256).loss
    loss.backward()
    nd.waitall()

x, labels = nd.random.normal(shape=(32, 256)), nd.arange(32, dtype="int64")
x.attach_grad()
for num_classes, epsilon in ((2048, 0.0), (65536, None), (65536, 0.0)):
    w = nd.zeros((num_classes, 256))
    w.attach_grad()
    w[:] = nd.random.normal(shape=w.shape)
    w.grad[:] = 0
    nd.waitall()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = status("VmRSS")
    step(w, epsilon)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux")
def test_memory_does_not_grow_with_the_classes():
    """class_weight has 64 MiB, and so has its gradient: no third is held, where entries are left out nor where not."""
    command = [sys.executable, "-c", PEAK]
    output = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True).stdout
    _, sparse, dense = map(int, output.split())
    assert sparse < 16 * 1024
    assert dense < 16 * 1024
