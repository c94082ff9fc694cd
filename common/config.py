"""The configuration of a run: frozen, typed, checked; the same for every backend.

A recipe (`common/recipes.py`) makes one, the command line overrides fields by their dotted names
(`--head.intra-center 0.9`), and the result is saved with the run.
"""

import dataclasses
import itertools
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

OnWrongSize = Literal["fail", "resize"]
HEADS = ("sface", "softmax", "normalised-softmax", "cosface", "arcface", "sphereface")


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are read."""

    root: Path
    """Folder of the training set and of the evaluation sets (NAME.bin)."""
    kind: Literal["auto", "record", "list", "folder"] = "auto"
    """Format of the training set: train.rec, imgs.txt, or one folder an identity; auto takes the one that is there."""
    evaluate_on: tuple[str, ...] = ()
    """Names of the evaluation sets, root/NAME.bin each. A missing one is reported and stops nothing."""
    raw_pixels: bool = False
    """Evaluate raw pixels beside the network, as a baseline."""
    image_size: int = 112
    """Width and height of the network's input, pixels; at least 16."""
    on_wrong_size: OnWrongSize = "fail"
    """What to do with an image of another size."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a training image that does not decode: stop, or take the next one of the epoch in its place."""
    flip: bool = True
    """Mirror half of the training images, chosen by seed, epoch and position."""
    workers: int = 2
    """Threads that decode images."""
    prefetch_mib: int = 256
    """Memory for batches decoded ahead, MiB."""


@dataclass(frozen=True)
class ModelConfig:
    """The network between image and embedding."""

    backbone: str = "iresnet50"
    """Name of the backbone; `info` lists them."""
    embedding_size: int = 512
    """Numbers in an embedding (D)."""
    dropout: float | None = None
    """Share of the features dropped before the last linear layer; none: the backbone's own (0.4 iresnet, 0.5 ir)."""


@dataclass(frozen=True)
class HeadConfig:
    """The loss head."""

    name: Literal["sface", "softmax", "normalised-softmax", "cosface", "arcface", "sphereface"] = "sface"
    """The loss."""
    scale: float = 64.0
    """s: largest gradient weight in sface, factor of the cosine in the margin heads."""
    intra_slope: float = 80.0
    """sface: k of the pull to the own prototype, per radian."""
    inter_slope: float = 80.0
    """sface: k of the push from the others, per radian."""
    intra_center: float = 0.87
    """sface: a, the angle at which the pull is half of s, radians."""
    inter_center: float = 1.2
    """sface: b, the angle at which the push is half of s, radians."""
    form: Literal["plain", "streamed"] = "streamed"
    """sface: the readable form with (N, C) matrices, or blocks of classes with gradients in closed form."""
    epsilon: float | None = None
    """sface, streamed, on the CPU: pushes below scale * epsilon are left out; 0: no push; none: the machine epsilon."""
    sample_rate: float = 1.0
    """PyTorch; normalised-softmax, cosface, arcface: share of the classes that a step sees (Partial FC)."""
    margin: float | None = None
    """cosface, arcface: m; none: 0.35 for cosface, 0.5 radians for arcface."""


@dataclass(frozen=True)
class OptimiserConfig:
    """SGD with momentum and a piecewise constant learning rate."""

    batch_size: int = 256
    """Images a step, over all devices."""
    epochs: int = 20
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after so many steps, whatever the epochs say; for trials."""
    learning_rate: float = 0.1
    """Rate after the warm-up, before the first milestone."""
    milestones: tuple[float, ...] = ()
    """When the rate drops tenfold, increasing."""
    milestone_unit: Literal["epochs", "steps"] = "epochs"
    """What the milestones count."""
    warmup_steps: int = 0
    """Steps of linear climb to the learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """On everything but BatchNorm parameters and biases."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other, to save memory; BatchNorm sees a part."""
    clip_norm: float | None = None
    """Largest L2 norm of the whole gradient; none: not clipped."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    name: str
    """Name of the recipe."""
    data: DataConfig
    """Training and evaluation data."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Backbone."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Loss."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser and schedule."""
    seed: int = 0
    """Seed of initial weights, sample order, flips and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a CUDA device where there is one."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the backbone; weights, loss and angles stay in fp32. fp64: all of it in double, for comparisons."""
    devices: int = 1
    """Processes that train together on this host, one a GPU, or each with a share of the cores; each decodes its own
    images. The framework's launcher starts them."""
    sync_batch_norm: bool = False
    """Of several devices: BatchNorm sees the whole batch, so that results do not depend on their number; else each
    device's share, which takes less time."""
    compile: bool = False
    """PyTorch: compile the backbone's training step, and on a GPU SFace's (torch.compile; on a CPU it needs g++)."""
    log_every: int = 10
    """Steps between lines of the log."""
    evaluate_every: int = 2000
    """Steps between evaluations; one always comes at the end."""
    save_every: int = 1000
    """Steps between checkpoints; one always comes at the end."""
    angle_images: int = 0
    """Training images whose angles to the prototypes are logged at each evaluation, as histograms; 0: none."""
    keep: int = 2
    """Latest checkpoints to keep; the best one stays besides."""
    out: Path | None = None
    """Run folder; none: runs/BACKEND/NAME-seedSEED. A run that stopped half-way goes on when started again."""


# A resumed run may change these: they do not touch the trajectory.
FREE_ON_RESUME = frozenset(
    {
        "data.root",
        "data.workers",
        "data.prefetch_mib",
        "data.evaluate_on",
        "data.raw_pixels",
        "devices",
        "log_every",
        "evaluate_every",
        "save_every",
        "angle_images",
        "keep",
        "out",
    }
)

# Saved runs may hold these: they changed how a result is computed, not the result. They are read and left out.
REMOVED_FIELDS = frozenset({"optimiser.row_sparse"})


def check(config: RunConfig) -> None:
    """Raise a ValueError that names the first field with a bad value, and says what was expected and what came."""
    data, model, head, optimiser = config.data, config.model, config.head, config.optimiser
    _expect(data.image_size >= 16, "data.image_size", "at least 16", data)
    _expect(data.workers >= 1, "data.workers", "at least 1", data)
    _expect(data.prefetch_mib >= 1, "data.prefetch_mib", "at least 1", data)
    for name in data.evaluate_on:
        _expect(name and Path(name).name == name, "data.evaluate_on", "names of sets, no paths", data)
    _expect(model.embedding_size >= 1, "model.embedding_size", "at least 1", model)
    _expect(model.dropout is None or 0 <= model.dropout < 1, "model.dropout", "none or at least 0 and below 1", model)
    _expect(head.name in HEADS, "head.name", "one of " + ", ".join(HEADS), head)
    for name in ("scale", "intra_slope", "inter_slope"):
        _expect(_positive(getattr(head, name)), f"head.{name}", "a positive number", head)
    for name in ("intra_center", "inter_center"):
        _expect(0 < getattr(head, name) < math.pi, f"head.{name}", "an angle in radians, above 0 and below pi", head)
    _expect(head.epsilon is None or 0 <= head.epsilon < 1, "head.epsilon", "none, or at least 0 and below 1", head)
    _expect(head.margin is None or 0 <= head.margin < math.pi, "head.margin", "none or 0 to below pi", head)
    _expect(
        0 < head.sample_rate <= 1
        and (head.sample_rate == 1 or head.name in ("normalised-softmax", "cosface", "arcface")),
        "head.sample_rate",
        "above 0 and up to 1, and 1 unless the head is normalised-softmax, cosface or arcface",
        head,
    )
    _expect(
        head.margin is None or head.name in ("cosface", "arcface"),
        "head.margin",
        f"none, as {head.name} has no margin to set",
        head,
    )
    _expect(optimiser.batch_size >= 1, "optimiser.batch_size", "at least 1", optimiser)
    _expect(optimiser.epochs >= 1, "optimiser.epochs", "at least 1", optimiser)
    _expect(optimiser.max_steps is None or optimiser.max_steps >= 1, "optimiser.max_steps", "at least 1", optimiser)
    _expect(_positive(optimiser.learning_rate), "optimiser.learning_rate", "a positive number", optimiser)
    _expect(
        all(_positive(m) for m in optimiser.milestones)
        and all(a < b for a, b in itertools.pairwise(optimiser.milestones)),
        "optimiser.milestones",
        "positive numbers that increase",
        optimiser,
    )
    _expect(optimiser.warmup_steps >= 0, "optimiser.warmup_steps", "at least 0", optimiser)
    _expect(0 <= optimiser.momentum < 1, "optimiser.momentum", "at least 0 and below 1", optimiser)
    _expect(
        math.isfinite(optimiser.weight_decay) and optimiser.weight_decay >= 0,
        "optimiser.weight_decay",
        "at least 0",
        optimiser,
    )
    _expect(
        optimiser.accumulate >= 1 and optimiser.batch_size % optimiser.accumulate == 0,
        "optimiser.accumulate",
        f"a divisor of optimiser.batch_size {optimiser.batch_size}",
        optimiser,
    )
    _expect(
        optimiser.clip_norm is None or _positive(optimiser.clip_norm),
        "optimiser.clip_norm",
        "none or positive",
        optimiser,
    )
    _expect(
        config.devices >= 1 and optimiser.batch_size % (config.devices * optimiser.accumulate) == 0,
        "devices",
        f"a divisor of a batch's part ({optimiser.batch_size} / {optimiser.accumulate} images)",
        config,
    )
    _expect(0 <= config.seed < 2**63, "seed", "0 to 2^63 - 1", config)
    _expect(config.angle_images >= 0, "angle_images", "at least 0", config)
    for name in ("log_every", "evaluate_every", "save_every", "keep"):
        _expect(getattr(config, name) >= 1, name, "at least 1", config)


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts of JSON values."""
    return _plain(dataclasses.asdict(config))


def from_json(value: Any) -> RunConfig:
    """The configuration of a `to_json` result that may have been edited or damaged; checked.

    Raises:
        ValueError: an unknown or missing field, or a value of the wrong type; named.
    """
    config = _build(RunConfig, value, "")
    check(config)
    return config


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a resumed run must not change but did: "field: old -> new" of each, from two `to_json` results."""
    old_fields, new_fields = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name}: {old_fields.get(name)!r} -> {new_fields.get(name)!r}"
        for name in sorted(old_fields.keys() | new_fields.keys())
        if name not in FREE_ON_RESUME | REMOVED_FIELDS and old_fields.get(name) != new_fields.get(name)
    ]


def _build(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `kind` of a field says, which is one of the few kinds used above."""
    options = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'configuration'}: expected an object, got {value!r}")
        value = {key: item for key, item in value.items() if name + key not in REMOVED_FIELDS}
        hints = typing.get_type_hints(kind)
        # a run of before a field was there goes on with its default
        needed = {entry.name for entry in dataclasses.fields(kind) if not _has_default(entry)}
        wrong = sorted((needed - value.keys()) | (value.keys() - hints.keys()))
        if wrong:
            raise ValueError(f"{name}{wrong[0]}: {'unknown field' if wrong[0] in value else 'missing'}")
        return kind(**{key: _build(hints[key], item, f"{name}{key}.") for key, item in value.items()})
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(options[0], value, name)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_build(options[0], item, name) for item in value)
    if typing.get_origin(kind) is Literal and value in options:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ValueError(f"{name.rstrip('.')}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def _has_default(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _expect(holds: object, name: str, expected: str, section: Any) -> None:
    if not holds:
        came = getattr(section, name.rpartition(".")[2])
        raise ValueError(f"{name}: expected {expected}, got {came!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, item in value.items():
        pairs += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else [(prefix + key, item)]
    return pairs
