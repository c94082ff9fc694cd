"""Cosines by products of 8-bit integers: their error, and its bound."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_impl.losses.screening import Screen, can_screen, dots_at, in_chunks, not_below


def screened(screen, w):
    """Cosines as screened, (N, B), and the bound of their error, (N,)."""
    products, steps, errors, _ = screen.cosines(w, 1 / w.norm(dim=1))
    return products.T.double() * steps.double()[:, None], errors.double()


def between_steps(dimensions, step):
    """A unit vector whose entries, all but the last, lie nearly in the middle between two multiples of the step."""
    entry = (math.floor(0.9 / step / math.sqrt(dimensions)) + 0.499) * step
    vector = torch.full((dimensions,), entry, dtype=torch.float64)
    vector[-1] = math.sqrt(1 - (dimensions - 1) * entry**2)
    return vector.float()[None]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 600), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_error_is_within_its_bound(seed, dimensions, tails):
    """Blocks whose entries grow, so that the step has to; and rows of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(5, dimensions, generator=generator))
    screen = Screen(x)
    for block in range(3):
        w = torch.randn(40, dimensions, generator=generator).pow(3 if block else 1) * tails ** torch.arange(40)[:, None]
        w = w[w.norm(dim=1) > 1e-9]
        found, bound = screened(screen, w)
        truth = x.double() @ F.normalize(w.double()).T
        assert ((found - truth).abs() <= bound[:, None]).all()


def test_the_bound_has_all_its_parts():
    """Both roundings, their product, and float32's own rounding in the cosines that decide."""
    for dimensions in (2, 64, 4096):
        x = F.normalize(torch.randn(9, dimensions, generator=torch.Generator().manual_seed(0)))
        screen = Screen(x)
        _, bound = screened(screen, torch.full((1, dimensions), 1.0))
        of_x = (x.double() - screen._integers.double() * screen._steps.double()).norm(dim=1)
        of_w = screen._step * math.sqrt(dimensions) / 2
        assert (bound >= of_x + of_w + of_x * of_w + dimensions * 2**-24).all()


@pytest.mark.parametrize("rounded", ["prototype", "embedding"])
def test_the_bound_is_nearly_reached(rounded):
    """So that leaving out a part of it would be seen. Vectors of equal entries are not rounded."""
    dimensions = 256
    equal = torch.full((1, dimensions), dimensions**-0.5)
    if rounded == "prototype":
        screen = Screen(equal)
        # the last entry of such a vector is its largest and says what the step is
        step = screen._step
        for _ in range(20):
            w = between_steps(dimensions, step)
            screen.cosines(w, torch.ones(1))
            step = screen._step
    else:
        x = between_steps(dimensions, 0.01)
        for _ in range(50):
            x = between_steps(dimensions, x.max().item() / 127)
        screen, w = Screen(x), equal
    found, bound = screened(screen, w)
    truth = (equal.double() * (w if rounded == "prototype" else x).double()).sum()
    error = (found - truth).abs().item()
    assert 0.7 * bound.item() < error <= bound.item()


def test_a_zero_embedding_has_zero_products():
    x = torch.zeros(2, 16)
    x[1, 3] = 1
    products, steps, errors, _ = Screen(x).cosines(torch.ones(4, 16), torch.full((4,), 0.25))
    assert (products[:, 0] == 0).all()
    assert torch.isfinite(steps).all()
    assert torch.isfinite(errors).all()


def test_a_prototype_that_is_not_finite_is_not_screened():
    for bad in (math.nan, math.inf):
        w = torch.ones(3, 8)
        w[1, 1] = bad
        assert Screen(F.normalize(torch.ones(2, 8))).cosines(w, 1 / w.norm(dim=1)) is None


@pytest.mark.parametrize("rows", [1, 7, 16, 128, 200])
def test_not_below_finds_all(rows):
    products = torch.randint(-9, 10, (rows, 13), dtype=torch.int32, generator=torch.Generator().manual_seed(rows))
    least = torch.arange(-3, 10, dtype=torch.int32)
    found = not_below(*in_chunks(products), least)
    assert torch.equal(torch.stack(found, 1), (least[:, None] <= products.T).nonzero())


@pytest.mark.parametrize("share", [0, 0.1, 1])
def test_dots_at_is_the_product_at_some_entries(share):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(9, 33, generator=generator), torch.randn(20, 33, generator=generator)
    chosen = torch.rand(9, 20, generator=generator) < share
    chosen[4] = False
    rows, columns = chosen.nonzero().unbind(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dots_at(rows, columns, left, right)
    torch.testing.assert_close(found, (left @ right.T)[rows, columns])


def test_only_float32_of_fitting_lengths_is_screened():
    assert not can_screen(torch.ones(2, 8, dtype=torch.float64))
    assert not can_screen(torch.ones(1, 2**18))
    assert not can_screen(torch.ones(2, 1))
