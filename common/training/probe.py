"""Time, memory and checkpoint size of a training run on this device, measured in a few steps on generated images.

Batches of growing size are tried. The last one is as large as a step of the run (with `accumulate`, as one part of it),
unless the time is up or the next one would not fit. The cost of a larger step is extrapolated from the last two sizes.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.backend import Trainer
from common.config import RunConfig
from common.io import memory

TIMED_STEPS = 2  # of each batch size, after one step that warms up
RESERVE = 0.9  # share of the memory that a run may use


class Measurement(NamedTuple):
    """Steps of one batch size."""

    images: int
    seconds: float  # of one step, the mean of up to TIMED_STEPS
    peak: int | None  # bytes on the device that trains; None: unknown


class Probe(NamedTuple):
    """Measurements. `refused` says why no larger batch was measured; None: there is no larger one."""

    device: str
    measurements: list[Measurement]
    available: int | None  # bytes on the device before the network was made; None: unknown
    embed_seconds: float  # of one image
    state_bytes: int  # of a checkpoint
    refused: str | None


def measure(
    create: Callable[[RunConfig, int], Trainer],
    config: RunConfig,
    num_classes: int,
    budget: float,
    say: Callable[[str], None],
) -> Probe:
    """Train a few steps of the run's network and loss on generated images.

    Args:
        create: makes the trainer.
        config: the run; nothing is written.
        num_classes: identities.
        budget: approximate seconds for the steps after the first. Two sizes are always measured, in fewer steps if the
            time is up. A further size is tried only if it is expected to end in time.
        say: called with a line of text about each stage.

    Raises:
        ValueError: not even two images fit.
    """
    part = config.optimiser.batch_size // config.optimiser.accumulate
    gpus, available = memory.gpu_memory(), memory.host_available()
    say(f"making {config.model.backbone} with {num_classes:,} classes")
    # one part is a whole step here: the trainer must not split it again
    undivided = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=1))
    trainer = create(undivided, num_classes)
    facts = trainer.describe()
    device = _device(facts)
    on_gpu = not str(facts.get("device", "cpu")).startswith("cpu")
    if on_gpu:
        available = None

    random = np.random.default_rng(0)
    size = config.data.image_size
    images = random.integers(0, 256, (part, 3, size, size), np.uint8)
    labels = random.integers(0, num_classes, part)
    measurements: list[Measurement] = []
    refused = None
    deadline = None
    for count in batch_sizes(part):
        refused = _reason_to_stop(measurements, count, deadline, available)
        if refused:
            break
        say(f"training on {count} generated images a step, {1 + TIMED_STEPS} steps")
        memory.reset_host_peak()
        try:
            _step(trainer, images[:count], labels[:count])
            deadline = deadline or time.monotonic() + budget
            seconds = _mean_step(trainer, images[:count], labels[:count], deadline)
        except (MemoryError, RuntimeError) as error:  # the frameworks raise these when memory runs out
            refused = f"a step of {count} images failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
            break
        peak: int | None = memory.host_peak()
        if on_gpu:
            peak, available = _held(gpus)
        measurements.append(Measurement(count, seconds, peak))
    if not measurements:
        raise ValueError(f"the run does not fit this device: {refused}")

    last = measurements[-1].images
    say("embedding them, and looking at the size of a checkpoint")
    trainer.embed(images[:last])
    start = time.perf_counter()
    trainer.embed(images[:last])
    embed_seconds = (time.perf_counter() - start) / last
    state_bytes = sum(np.asarray(array).nbytes for array in trainer.state().values())
    return Probe(device, measurements, available, embed_seconds, state_bytes, refused)


def batch_sizes(largest: int) -> list[int]:
    """2, 4, 8 and so on; the last one is `largest`."""
    sizes = [2**power for power in range(1, largest.bit_length()) if 2**power < largest]
    return [*sizes, largest]


def extrapolate(points: Sequence[tuple[int, float]], at: int) -> float:
    """The value at `at` images on the straight line through the last two points.

    Noise cannot make the line fall, or negative at 0 images. A single point gives a line through the origin, which is
    an upper bound, since a part of both time and memory is fixed.
    """
    (images, value) = points[-1]
    steepest = value / images
    slope = steepest
    if len(points) > 1:
        slope = min(max((value - points[-2][1]) / (images - points[-2][0]), 0.0), steepest)
    return value + slope * (at - images)


def fitting_accumulate(config: RunConfig, probe: Probe) -> int | None:
    """The smallest `accumulate` with which a part of a batch fits the memory; None: there is none, or it is unknown."""
    peaks = [(m.images, float(m.peak)) for m in probe.measurements if m.peak is not None]
    if not peaks or probe.available is None:
        return None
    batch = config.optimiser.batch_size
    for parts in range(config.optimiser.accumulate, batch // 2 + 1):
        if batch % parts == 0 and extrapolate(peaks, batch // parts) <= RESERVE * probe.available:
            return parts
    return None


def _reason_to_stop(
    measurements: Sequence[Measurement], count: int, deadline: float | None, available: int | None
) -> str | None:
    if len(measurements) < 2:
        return None
    expected = extrapolate([(m.images, m.seconds) for m in measurements], count)
    if deadline is not None and time.monotonic() + (1 + TIMED_STEPS) * expected > deadline:
        return f"no time was left for steps of {count} images"
    peaks = [(m.images, float(m.peak)) for m in measurements if m.peak is not None]
    if available is not None and len(peaks) > 1 and extrapolate(peaks, count) > RESERVE * available:
        return f"a step of {count} images would not fit the memory"
    return None


def _device(facts: dict[str, Any]) -> str:
    """The device as text; a CPU with its load, on which times depend."""
    name = str(facts.get("device_name") or facts.get("device", "an unnamed device"))
    if not name.startswith("cpu"):
        return name
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs before"
    threads = facts.get("threads", "unknown")
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}, {load}"


def _mean_step(trainer: Trainer, images: np.ndarray, labels: np.ndarray, deadline: float) -> float:
    """Mean seconds of at most TIMED_STEPS steps: the first one, and others that begin before the deadline."""
    seconds = [_step(trainer, images, labels)]
    while len(seconds) < TIMED_STEPS and time.monotonic() < deadline:
        seconds.append(_step(trainer, images, labels))
    return sum(seconds) / len(seconds)


def _step(trainer: Trainer, images: np.ndarray, labels: np.ndarray) -> float:
    start = time.perf_counter()
    trainer.train_step(images, labels, 1e-3)
    trainer.metrics()  # waits for the device
    return time.perf_counter() - start


def _held(before: Sequence[memory.GpuMemory]) -> tuple[int | None, int | None]:
    """Bytes that this process holds on its GPU, and bytes that were free there before; both None if unknown.

    Frameworks and nvidia-smi number GPUs differently, so the GPU whose memory grew most counts as its own. Frameworks
    keep memory that they once took, so the memory that is held is the peak.
    """
    rises = [(new.used - old.used, old.total - old.used) for old, new in zip(before, memory.gpu_memory(), strict=False)]
    return max(rises, default=(None, None))
