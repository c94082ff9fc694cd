"""Cosines by products of float16 copies: their error and its bound, rooms that overflow, and no wait for the device."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_impl.losses import compacting
from pytorch_impl.losses.compacting import errors
from pytorch_impl.losses.sface import sface_loss


def run(x, w, labels, **options):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    result = sface_loss(x, w, labels, **options)
    result.loss.sum().backward()
    return result, x.grad, w.grad


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 600), st.sampled_from([1, 3, 9]))
def test_the_error_is_within_its_bound(seed, dimensions, tails):
    """Vectors with all kinds of tails, so that some entries are below float16's smallest number."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (F.normalize(torch.randn(30, dimensions, generator=generator) ** tails) for _ in range(2))
    found = (w.half() @ x.half().T).T.double()
    bound = errors(x, x.half())
    assert ((found - x.double() @ w.double().T).abs() <= bound[:, None]).all()
    assert (bound < 2e-3).all()


def test_the_bound_has_all_its_parts():
    """Both roundings, their product, the sum's and the result's."""
    x = F.normalize(torch.randn(9, 64, generator=torch.Generator().manual_seed(0)))
    of_x = (x.double() - x.half().double()).norm(dim=1)
    of_w = 2**-11 + 8 * 2**-25
    assert (errors(x, x.half()) >= of_x + of_w + of_x * of_w + 64 * 2**-22 + 2**-11).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("room", [0, 100, 10**4])
def test_some_blocks_overflow(monkeypatch, room, reduction):
    """Classes near the samples, far from them, and both in a block; own classes in each; the last block is short."""
    monkeypatch.setattr(compacting, "_ROOM", room)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    near = x.repeat(4, 1) + 0.3 * torch.randn(48, 8, generator=generator, dtype=torch.float64)
    w = torch.cat([-near, near, torch.randn(40, 8, generator=generator, dtype=torch.float64), -near[:5]])
    labels = torch.tensor([0, 50, 60, 100, 110, 140, 140, 140, 5, 95, 96, 47])
    overflowed = []
    original = compacting.CompactingPass.run
    monkeypatch.setattr(
        compacting.CompactingPass, "run", lambda self, size: (original(self, size), overflowed.extend(self.overflowed))
    )
    options = {"block_size": 16, "reduction": reduction, "sample_weight": torch.linspace(-1, 2, 12)}
    found = run(x, w, labels, screened=True, epsilon=1e-12, **options)
    plain = run(x, w, labels, form="plain", **options)
    assert {bool(one) for one in overflowed} == {0: {True}, 100: {True, False}, 10**4: {False}}[room]
    for name, value in found[0]._asdict().items():
        if value is not None:
            torch.testing.assert_close(value, getattr(plain[0], name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1:], plain[1:], rtol=1e-9, atol=1e-9)


def test_the_host_waits_once(monkeypatch):
    """For the overflowed blocks. What has a size that depends on values, or becomes a Python number, is a wait."""
    waits = Counter()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name in (
                "nonzero",
                "_local_scalar_dense",
                "masked_select",
                "unique_consecutive",
                "_unique2",
                "bincount",
            ):
                waits[name] += 1
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr("pytorch_impl.losses.sface._check_values", lambda *_: None)
    x, w, labels = torch.randn(8, 16), torch.randn(300, 16), torch.arange(8)
    with Watch():
        loss = sface_loss(x.requires_grad_(), w.requires_grad_(), labels, screened=True, block_size=64).loss
    assert waits == {}, "the one wait is `tolist`, which is no operator"
    loss.backward()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_matches_the_cpu():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 128, generator=generator), torch.randn(5000, 128, generator=generator)
    labels = torch.randint(5000, (64,), generator=generator)
    expected = run(x, w, labels, form="plain")
    found = run(x.cuda(), w.cuda(), labels.cuda(), screened=True)
    assert found[0].loss.item() == pytest.approx(expected[0].loss.item(), rel=1e-5)
    for gradient, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient.cpu(), other, rtol=1e-4, atol=2e-5 * other.abs().max().item())
