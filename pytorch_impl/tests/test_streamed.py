"""What the streamed form leaves out, and the three ways in which it computes a block: the same results by each."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tests.backend_checks.sface_loss import LOSSES, METRICS
from pytorch_impl.losses import compacting, skipping, streamed
from pytorch_impl.losses.compacting import CompactingPass
from pytorch_impl.losses.dense import DensePass
from pytorch_impl.losses.sface import Rescaling, sface_loss
from pytorch_impl.losses.skipping import SkippingPass

SCALE, SLOPE, CENTER = 64, 80, 1.2
WAYS = ("dense", "gathered", "screened", "compacted", "overflowed", "compiled")
COMPLETE = ("dense", "overflowed", "compiled")  # leave out nothing


@pytest.fixture
def way(request, monkeypatch):
    """Every block in one way, whatever its counts and this processor."""
    monkeypatch.setattr(skipping, "_DENSE_SHARE", -1 if request.param == "dense" else 9)
    monkeypatch.setattr(skipping, "_SCREEN_SHARE", 1)
    screens = request.param == "screened"
    monkeypatch.setattr(skipping, "can_screen", lambda embeddings: screens and embeddings.dtype == torch.float32)
    if request.param in ("compacted", "overflowed"):
        monkeypatch.setattr(streamed, "SkippingPass", CompactingPass)
        monkeypatch.setattr(compacting, "_ROOM", 8000 if request.param == "compacted" else 20)
    if request.param == "compiled":  # as on a CUDA device: every entry counts
        dense = partial(DensePass, compiled=True)
        monkeypatch.setattr(
            streamed, "SkippingPass", lambda *inputs, least_cosine, **options: dense(*inputs, **options)
        )
    return request.param


every_way = pytest.mark.parametrize("way", WAYS, indirect=True)


def problem(seed=0, batch_size=12, num_classes=90, embedding_size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(batch_size, embedding_size, generator=generator, dtype=dtype)
    w = 2 * torch.randn(num_classes, embedding_size, generator=generator, dtype=dtype)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(num_classes, (batch_size,), generator=generator)


def run(x, w, labels, **options):
    x.grad = w.grad = None
    result = sface_loss(x, w, labels, **{"block_size": 16, **options})
    result.loss.backward()
    return result, x.grad, w.grad


@every_way
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_the_error_is_within_its_bound(way, epsilon):
    dtype = torch.float32 if way == "screened" else torch.float64
    x, w, labels = problem(dtype=dtype)
    found, truth = (
        run(x, w, labels, epsilon=epsilon),
        run(x.double().detach().requires_grad_(), w.double().detach().requires_grad_(), labels, form="plain"),
    )
    theta = torch.acos(torch.nn.functional.cosine_similarity(x[:, None].double(), w[None].double(), dim=2).clamp(-1, 1))
    left_out = Rescaling(SCALE, SLOPE, SLOPE, 0.87, CENTER).push(theta) < SCALE * epsilon
    left_out[torch.arange(len(x)), labels] = False
    assert left_out.any(0).sum() > 10

    rounding = 2e-5 if dtype == torch.float32 else 1e-12
    bound = SCALE * epsilon / len(x) * (way not in COMPLETE)
    assert abs(found[0].inter_loss - truth[0].inter_loss) <= bound * left_out.sum() + rounding * abs(
        truth[0].inter_loss
    )
    for found_grad, true_grad, vectors, count in (
        (found[1], truth[1], x, left_out.sum(1)),
        (found[2], truth[2], w, left_out.sum(0)),
    ):
        error = (found_grad - true_grad).norm(dim=1)
        assert (error <= bound * count / vectors.norm(dim=1) + rounding * true_grad.abs().max()).all()
        assert (error > 1e-3 * bound * count / vectors.norm(dim=1)).any() or way in COMPLETE


@pytest.mark.parametrize("way", ["gathered", "screened", "compacted"], indirect=True)
def test_pushes_are_left_out_from_the_angle_on_where_they_are_below_epsilon(way):
    epsilon = 1e-2
    cut = CENTER + math.log(1 / epsilon - 1) / SLOPE
    angles = torch.tensor([0.5, cut - 1e-4, cut + 1e-4])
    w = torch.stack([angles.cos(), angles.sin(), torch.zeros(3)], 1).requires_grad_()
    x = torch.tensor([[2.0, 0, 0]], requires_grad=True)
    _, _, grad = run(x, w, torch.tensor([0]), epsilon=epsilon)
    assert grad[1].norm() == pytest.approx(SCALE * epsilon * math.sin(cut), rel=2e-2)
    assert (grad[2] == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 6), st.sampled_from([1e-7, 1e-3, 0.3]))
def test_ways_agree(seed, num_classes, embedding_size, epsilon):
    x, w, labels = problem(seed, 9, num_classes, embedding_size)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skipping, "_DENSE_SHARE", 9)
        patch.setattr(skipping, "_SCREEN_SHARE", 1)
        for screens in (False, True):
            patch.setattr(skipping, "can_screen", lambda x, screens=screens: screens and x.shape[1] > 1)
            results.append(run(x, w, labels, epsilon=epsilon))
    (gathered, *gradients), (screened, *others) = results
    for name in (*LOSSES, *METRICS):
        assert getattr(screened, name).item() == pytest.approx(getattr(gathered, name).item(), rel=1e-4, abs=1e-5), name
    for found, expected in zip(others, gradients, strict=True):
        # an entry on the cut may fall on either side of it
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * expected.abs().max() + 2 * SCALE * epsilon)


@pytest.mark.parametrize("screened", [None, True], ids=["8 bits", "float16"])
def test_screening_decides_near_ties_exactly(monkeypatch, screened):
    """Own and others' cosines closer together than screening can tell, and below the cosine that matters to a push."""
    monkeypatch.setattr(skipping, "_SCREEN_SHARE", 1)
    monkeypatch.setattr(skipping, "can_screen", lambda _: True)
    own = torch.linspace(1.45, 1.55, 200)
    for closer in (-1e-4, -3e-6, 3e-6, 1e-4):
        angles = torch.cat([own, own - closer])
        w = torch.stack([angles.cos(), angles.sin()], 1)
        for row in range(0, 200, 7):  # one sample, one rival
            result = sface_loss(
                torch.tensor([[1.0, 0]]), w[[row, row + 200]], torch.tensor([0]), block_size=2, screened=screened
            )
            assert result.accuracy == float(closer < 0)


@pytest.mark.parametrize("center", [0.3, 1.2, 1.9])
@pytest.mark.parametrize("screened", [None, True], ids=["8 bits", "float16"])
def test_screening_finds_what_lies_on_the_cut(monkeypatch, center, screened):
    """Prototypes just inside the cut, in directions and lengths of all roundings: each gets its push."""
    monkeypatch.setattr(skipping, "_SCREEN_SHARE", 1)
    monkeypatch.setattr(skipping, "can_screen", lambda _: True)
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(1, 32, generator=generator))
    across = torch.randn(4000, 32, generator=generator)
    across = F.normalize(across - (across @ x.T) * x)
    angle = center + math.log(1 / 1e-7 - 1) / SLOPE - 1e-5
    w = (math.cos(angle) * x + math.sin(angle) * across) * torch.rand(4000, 1, generator=generator).exp()
    w[0] = -x[0]
    options = {"inter_center": center, "epsilon": 1e-7, "screened": screened}
    _, _, grad = run(x.requires_grad_(), w.requires_grad_(), torch.tensor([0]), **options)
    assert (grad[1:] != 0).any(1).all()


def test_a_block_with_many_entries_ends_screening_and_one_with_few_starts_it_again(monkeypatch):
    monkeypatch.setattr(skipping, "can_screen", lambda _: True)
    screened = []
    original = SkippingPass._screen

    def watched(self, block):
        screened.append(block.classes.start)
        return original(self, block)

    monkeypatch.setattr(SkippingPass, "_screen", watched)
    x = torch.eye(64)[:4]
    near, far = torch.eye(64)[:4].repeat(25, 1), torch.eye(64)[10:].repeat(2, 1)[:100]
    w = torch.cat([far, near, near, far, far])
    sface_loss(x, w, torch.tensor([0, 1, 2, 3]), block_size=100)
    assert screened == [0, 100, 400]


@every_way
def test_a_prototype_that_is_not_a_number_shows(way):
    x, w, labels = problem()
    with torch.no_grad():
        w[(labels.max() + 1) % len(w), 0] = math.nan
    assert sface_loss(x, w, labels, block_size=16).loss.isnan()


@every_way
def test_gradients_can_be_asked_for_again(way):
    x, w, labels = problem()
    loss = 3 * sface_loss(x, w, labels, block_size=16).loss
    loss.backward(retain_graph=True)
    once = x.grad.clone(), w.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once[0])
    torch.testing.assert_close(w.grad, 2 * once[1])


def test_the_gradient_exists_once():
    """That of class_weight is as large as the model."""
    x, w, labels = problem()
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == w.shape:
                made.append(out.untyped_storage().data_ptr())
            return out

    with Watch():
        sface_loss(x, w, labels, block_size=16).loss.backward()
    assert {w.grad.data_ptr()} == set(made) - {w.data_ptr()}


@every_way
def test_a_prototype_below_the_floor_of_norms(way):
    """It is divided by the floor, not by its norm, so the gradient keeps its radial part."""
    dtype = torch.float32 if way == "screened" else torch.float64
    x, w, labels = problem(dtype=dtype)
    small = (labels.max() + 1) % len(w)
    with torch.no_grad():
        w[small] = 0.5e-12 * x[0] / x[0].norm()
    truth = run(x, w, labels, form="plain")[2][small]
    found = run(x, w, labels)[2][small]
    assert truth.norm() > 1e9
    torch.testing.assert_close(found, truth, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)


@every_way
def test_a_rival_as_near_as_can_be_does_not_win_by_rounding(way):
    generator = torch.Generator().manual_seed(0)
    on_the_spot = 0
    for _ in range(60):
        x = torch.randn(1, 100, generator=generator)
        result = sface_loss(x, torch.cat([2 * x, 3 * x]), torch.tensor([0]), block_size=2)
        if result.target_cosine == 1:
            on_the_spot += 1
            assert result.accuracy == 1
    assert on_the_spot > 10


@every_way
def test_cosines_that_round_above_one(way):
    """The own and another prototype: without a clip, r of the arccos of such a cosine is NaN."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(x)
    assert ((unit * unit).sum(1) > 1).any(), "rounding here leaves nothing to test"
    for prototypes in (x, x.roll(1, 0)):
        result, *gradients = run(x.requires_grad_(), prototypes.detach().clone().requires_grad_(), torch.arange(200))
        assert all(value.isfinite().all() for value in (result.loss, *gradients))


def test_a_small_problem_is_computed_whole(monkeypatch):
    """Looking for the entries that count would take longer; a block size asks for it."""
    monkeypatch.setattr(streamed, "SkippingPass", None)
    sface_loss(*problem())
    with pytest.raises(TypeError):
        run(*problem())


def test_entries_do_not_wait_for_long(monkeypatch):
    monkeypatch.setattr(skipping, "_DENSE_SHARE", 9)
    x, w, labels = problem()
    expected = run(x, w, labels)
    monkeypatch.setattr(skipping, "_CROWDED", 9)
    monkeypatch.setattr(skipping, "_WAITING", 5)
    done = []
    original = SkippingPass._add_waiting
    monkeypatch.setattr(SkippingPass, "_add_waiting", lambda self: done.append(1) or original(self))
    torch.testing.assert_close(run(x, w, labels), expected)
    assert len(done) > 3
