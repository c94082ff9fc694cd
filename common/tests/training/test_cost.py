"""The cost of a run in words, worked out by hand from made-up measurements."""

import dataclasses

import pytest

from common.recipes import casia_r50
from common.training.cost import cost_lines, duration, size
from common.training.probe import Measurement, Probe

MIB, GIB = 2**20, 2**30
# 1 s and 0.5 s an image; 100 MiB and 10 MiB an image
MEASURED = [Measurement(n, 1 + 0.5 * n, (100 + 10 * n) * MIB) for n in (2, 4, 8)]


def lines(parts=1, images=25_700, measured=MEASURED, available=8 * GIB, refused="no time was left"):
    config = casia_r50()
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=parts))
    found = Probe("cpu, 2 threads", measured, available, 0.1, 200 * MIB, refused)
    return cost_lines(config, found, images, 7, 43_000, 10 * GIB)


def test_cost_of_a_run():
    # 100 steps an epoch of 256 images each, 100 epochs: 10,000 steps of 129 s, that is 1,290,000 s; or of 32 times the
    # 5 s of 8 images. Evaluated every 2,000 steps, 5 times, on 43,000 pairs of 4 images of 0.1 s: 86,000 s.
    assert lines() == [
        "Cost on cpu, 2 threads: 25,700 images of 7 identities",
        "  measured    a step of 2: 2 s, 4: 3 s, 8: 5 s",
        "              (up to 3 steps each, on generated images: time without the first)",
        "              then stopped: no time was left",
        "  step        129 to 160 s for 256 images, on a straight line from 4 and 8 images, at most in proportion "
        "to 8: 1.6 to 1.98 images/s",
        "  training    14.9 days to 18.5 days: 10,000 steps, without reading images",
        "  evaluation  23.9 hours: 5 times 43,000 pairs, one every 2,000 steps",
        "  memory      2.6 GiB in a step, on a straight line from 4 and 8 images; 8.0 GiB were free",
        "  disk        800 MiB: 4 checkpoints of 200 MiB at most at a time; 10.0 GiB are free",
    ]


def test_in_parts():
    found = lines(parts=2)
    # twice 1 + 0.5 * 128 s: the fixed second is counted twice
    assert found[4].startswith("  step        130 to 160 s for 256 images, on a straight line from 4 and 8 images, ")
    assert "in proportion to 8, 2 times 128 images: 1.6 to 1.97 images/s" in found[4]
    assert ": 10,000 steps, " in found[5]
    assert found[7] == "  memory      1.3 GiB in a step, on a straight line from 4 and 8 images; 8.0 GiB were free"


def test_a_batch_that_was_measured():
    found = lines(parts=32, refused=None)
    assert found[3] == "  step        160 s for 256 images, measured, 32 times 8 images: 1.6 images/s"
    assert found[6].startswith("  memory      180 MiB in a step, measured; ")


@pytest.mark.parametrize(
    ("available", "ending"),
    [
        (2 * GIB, "2.0 GiB were free: it does not fit; --optimiser.accumulate 2 is expected to"),
        (100 * MIB, "100 MiB were free: it does not fit, in whatever number of parts"),
        (None, "on a straight line from 4 and 8 images"),
    ],
)
def test_memory_that_does_not_do(available, ending):
    assert lines(available=available)[7].endswith(ending)


def test_unknown_memory():
    found = lines(measured=[m._replace(peak=None) for m in MEASURED])
    assert found[7] == "  memory      unknown: nvidia-smi does not say what is used on this device"


def test_too_few_images():
    assert lines(images=255) == ["Cost: unknown, 255 images are fewer than the 256 of a step"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.25, "0.25 s"),
        (59, "59 s"),
        (90, "1.5 minutes"),
        (5400, "1.5 hours"),
        (2e5, "2.31 days"),
        (1e9, "11,574 days"),
    ],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize(("count", "expected"), [(MIB, "1 MiB"), (1023 * MIB, "1,023 MiB"), (1536 * MIB, "1.5 GiB")])
def test_size(count, expected):
    assert size(count) == expected
