"""The expected cost of a whole run as text, from the few steps that `common.training.probe` measured."""

import math

from common.config import RunConfig
from common.training.probe import TIMED_STEPS, Probe, extrapolate, fitting_accumulate
from common.training.schedule import total_steps

EVALUATED_IMAGES = 4  # a pair: two images and their mirror images


def cost_lines(config: RunConfig, probe: Probe, images: int, classes: int, pairs: int, free_disk: int) -> list[str]:
    """Time, memory and disk of the run.

    Args:
        config: the run.
        probe: measurements of its network and loss with `classes` identities.
        images: number of training images.
        classes: number of identities.
        pairs: number of pairs in all evaluation sets together.
        free_disk: free bytes on the disk of the run folder.
    """
    optimiser = config.optimiser
    batch, parts = optimiser.batch_size, optimiser.accumulate
    part = batch // parts
    if images < batch:
        return [f"Cost: unknown, {images:,} images are fewer than the {batch} of a step"]
    low, high = (parts * seconds for seconds in step_seconds(probe, part))
    steps = total_steps(optimiser, images // batch)
    evaluations = math.ceil(steps / config.evaluate_every)
    evaluating = evaluations * pairs * EVALUATED_IMAGES * probe.embed_seconds
    measured = ", ".join(f"{m.images}: {m.seconds:.3g} s" for m in probe.measurements)
    largest = probe.measurements[-1].images
    how = "measured"
    if largest != part:
        how = f"on a straight line from {_last_two(probe)} images, at most in proportion to {largest}"
    how += f", {parts} times {part} images" if parts > 1 else ""
    training = _range(duration(steps * low), duration(steps * high))
    speed = _range(f"{batch / high:,.3g}", f"{batch / low:,.3g}")
    return [
        f"Cost on {probe.device}: {images:,} images of {classes:,} identities",
        f"  measured    a step of {measured}",
        f"              (up to {1 + TIMED_STEPS} steps each, on generated images: time without the first)",
        *([f"              then stopped: {probe.refused}"] if probe.refused else []),
        f"  step        {_range(f'{low:.3g}', f'{high:.3g}')} s for {batch} images, {how}: {speed} images/s",
        f"  training    {training}: {steps:,} steps, without reading images",
        f"  evaluation  {duration(evaluating)}: {evaluations:,} times {pairs:,} pairs, one every "
        f"{config.evaluate_every:,} steps",
        _memory_line(config, probe),
        f"  disk        {size((config.keep + 2) * probe.state_bytes)}: {config.keep + 2} checkpoints of "
        f"{size(probe.state_bytes)} at most at a time; {size(free_disk)} are free",
    ]


def step_seconds(probe: Probe, images: int) -> tuple[float, float]:
    """Lowest expected seconds of a step, on the line through the last two sizes; highest, in proportion to the last."""
    points = [(m.images, m.seconds) for m in probe.measurements]
    return extrapolate(points, images), extrapolate(points[-1:], images)


def duration(seconds: float) -> str:
    """Seconds as text: three digits, in seconds, minutes, hours or days."""
    for name, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.3g} {name}" if seconds < 1000 * length else f"{seconds / length:,.0f} {name}"
    return f"{seconds:.3g} s"


def size(count: float) -> str:
    """Bytes as text, in GiB or MiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _memory_line(config: RunConfig, probe: Probe) -> str:
    peaks = [(m.images, float(m.peak)) for m in probe.measurements if m.peak is not None]
    if not peaks:
        return "  memory      unknown: nvidia-smi does not say what is used on this device"
    optimiser = config.optimiser
    part = optimiser.batch_size // optimiser.accumulate
    how = "measured" if probe.measurements[-1].images == part else f"on a straight line from {_last_two(probe)} images"
    line = f"  memory      {size(extrapolate(peaks, part))} in a step, {how}"
    if probe.available is None:
        return line
    line += f"; {size(probe.available)} were free"
    parts = fitting_accumulate(config, probe)
    if parts is None:
        return f"{line}: it does not fit, in whatever number of parts"
    if parts > optimiser.accumulate:
        return f"{line}: it does not fit; --optimiser.accumulate {parts} is expected to"
    return line


def _last_two(probe: Probe) -> str:
    return " and ".join(str(m.images) for m in probe.measurements[-2:])


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
