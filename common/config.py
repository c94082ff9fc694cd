"""The configuration of a run: frozen, typed, checked; the same for every backend.

A recipe (`common/recipes.py`) makes one. The command line overrides fields by their dotted names
(`--head.intra-center 0.9`). The result is saved with the run.
"""

import dataclasses
import itertools
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.io.text import did_you_mean

OnWrongSize = Literal["fail", "resize"]
HeadName = Literal["sface", "softmax", "normalised-softmax", "cosface", "arcface", "sphereface"]
HEADS: tuple[str, ...] = typing.get_args(HeadName)


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are read."""

    root: Path
    """Folder that holds the training set and the evaluation sets (NAME.bin)."""
    kind: Literal["auto", "record", "list", "folder"] = "auto"
    """Format of the training set: train.rec, imgs.txt, or a folder for each identity; auto: the one that is there."""
    evaluate_on: tuple[str, ...] = ()
    """Names of the evaluation sets; each is root/NAME.bin. A missing one is reported, and training goes on."""
    raw_pixels: bool = False
    """Also evaluate raw pixels, as a baseline."""
    baseline: Path | None = None
    """Also evaluate this network, as a baseline: a run, a checkpoint or an ONNX model. A missing one is reported."""
    image_size: int = 112
    """Width and height of the network's input in pixels, at least 16."""
    on_wrong_size: OnWrongSize = "fail"
    """What to do with an image of another size."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a training image that does not decode: stop, or take the next image of the epoch instead."""
    flip: bool = True
    """Mirror half of the training images; seed, epoch and position choose which."""
    workers: int = 2
    """Threads that decode images."""
    prefetch_mib: int = 256
    """Memory for batches that are decoded ahead, in MiB."""


@dataclass(frozen=True)
class ModelConfig:
    """The network between image and embedding."""

    backbone: str = "iresnet50"
    """Name of the backbone; `info` lists all."""
    embedding_size: int = 512
    """Length D of an embedding."""
    dropout: float | None = None
    """Dropout rate before the last linear layer; none: the backbone's own (0.4 iresnet and mobilenet_v1,
    0.5 ir)."""
    weights: Path | None = None
    """Start from the weights of this run or checkpoint, also an imported one: its backbone, and its head where loss and
    number of classes are the same; none: draw them."""
    freeze_backbone_steps: int = 0
    """Steps at the start in which the head is trained alone; the backbone embeds as in evaluation."""


@dataclass(frozen=True)
class HeadConfig:
    """The loss head."""

    name: HeadName = "sface"
    """The loss."""
    scale: float = 64.0
    """s. sface: the largest weight of a gradient; other heads: the factor of the cosine."""
    intra_slope: float = 80.0
    """sface: k of the pull towards the own prototype, per radian."""
    inter_slope: float = 80.0
    """sface: k of the push away from the other prototypes, per radian."""
    intra_center: float = 0.87
    """sface: a, the angle in radians at which the pull is half of s."""
    inter_center: float = 1.2
    """sface: b, the angle in radians at which the push is half of s."""
    form: Literal["plain", "streamed"] = "streamed"
    """sface. plain: the equations on (N, C) matrices; streamed: the same loss in blocks of classes, in less memory."""
    epsilon: float | None = None
    """sface, streamed, CPU: leave out pushes below scale * epsilon; 0: leave out none; none: the machine epsilon."""
    sample_rate: float = 1.0
    """normalised-softmax, cosface, arcface, in PyTorch: share of the classes that a step uses (Partial FC)."""
    margin: float | None = None
    """cosface, arcface: m; none: 0.35 for cosface, 0.5 radians for arcface."""


@dataclass(frozen=True)
class OptimiserConfig:
    """SGD with momentum and a piecewise constant learning rate."""

    batch_size: int = 256
    """Images in a step, over all devices."""
    epochs: int = 20
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this number of steps, even if epochs remain; none: train all epochs."""
    learning_rate: float = 0.1
    """Learning rate between the warm-up and the first milestone."""
    milestones: tuple[float, ...] = ()
    """When the learning rate drops to a tenth; increasing numbers."""
    milestone_unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the milestones."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its full value."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay; BatchNorm parameters and biases have none."""
    accumulate: int = 1
    """Number of parts of a batch that are computed one after another, to save memory. BatchNorm sees one part."""
    clip_norm: float | None = None
    """Clip the L2 norm of the whole gradient to this; none: do not clip."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

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
    """Seed of the initial weights, the sample order, flips and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto: a CUDA device if there is one, else the CPU."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Precision of the backbone; weights and loss stay in fp32. bf16, fp16: PyTorch. fp64: everything in double."""
    devices: int = 1
    """Number of devices of this host that train together: GPUs, or processes that share the CPU's cores."""
    sync_batch_norm: bool = False
    """With several devices, BatchNorm sees the whole batch. Then results do not depend on the number of devices.
    Otherwise it sees the share of one device, which is faster."""
    compile: bool = False
    """PyTorch: compile the backbone with torch.compile, on a GPU SFace too. On a CPU this needs g++."""
    log_every: int = 10
    """Steps between two lines of the log."""
    evaluate_every: int = 2000
    """Steps between two evaluations; the last step is always evaluated."""
    save_every: int = 1000
    """Steps between two checkpoints; the last step is always saved."""
    angle_images: int = 0
    """Number of training images whose angles to the prototypes are logged at each evaluation; 0: log none."""
    keep: int = 2
    """Number of latest checkpoints to keep. The best one is kept as well."""
    out: Path | None = None
    """Run folder; none: runs/BACKEND/NAME-seedSEED. A run that was stopped goes on when it is started again."""
    resume_from: str | None = None
    """If the last checkpoint is damaged: step, or path, of that to go on from. Later ones are kept, as NAME.aside."""


# A resumed run may change these fields: they do not change what is trained.
FREE_ON_RESUME = {
    *("data.root", "data.workers", "data.prefetch_mib", "data.evaluate_on", "data.raw_pixels", "data.baseline"),
    *("devices", "log_every", "evaluate_every", "save_every", "angle_images", "keep", "out"),
    "resume_from",
}

# These too, as long as no step that was taken would have been another; the loop checks that.
LENGTH = {"optimiser.epochs", "optimiser.max_steps"}

# Old runs may hold these fields. They did not change the result, so they are ignored.
REMOVED_FIELDS = {"optimiser.row_sparse"}

CONVERTED = ((Path, str), (float, int))  # kind of a field, and the kind of its value in JSON


class Rule(NamedTuple):
    """What a field's value must be."""

    fields: str  # dotted names, separated by spaces
    expected: str  # for the error message; {0} is the configuration
    holds: Callable[[Any, RunConfig], bool]  # of the value and the configuration


def _at_least(smallest: int) -> Callable[[Any, RunConfig], bool]:
    return lambda value, config: value >= smallest


def _is_positive(value: float, config: RunConfig) -> bool:
    return math.isfinite(value) and value > 0


# The first one that is broken is reported. Rules of one field come before those that compare fields.
RULES = (
    Rule("data.image_size", "at least 16", _at_least(16)),
    Rule("data.workers data.prefetch_mib model.embedding_size", "at least 1", _at_least(1)),
    Rule("data.evaluate_on", "names of sets, no paths", lambda v, c: all(n and Path(n).name == n for n in v)),
    Rule("model.dropout", "none or at least 0 and below 1", lambda v, c: v is None or 0 <= v < 1),
    Rule("head.name", "one of " + ", ".join(HEADS), lambda v, c: v in HEADS),
    Rule("head.scale head.intra_slope head.inter_slope", "a positive number", _is_positive),
    Rule(
        "head.intra_center head.inter_center", "an angle in radians, above 0 and below pi", lambda v, c: 0 < v < math.pi
    ),
    Rule("head.epsilon", "none, or at least 0 and below 1", lambda v, c: v is None or 0 <= v < 1),
    Rule("head.sample_rate", "above 0 and at most 1", lambda v, c: 0 < v <= 1),
    Rule("head.margin", "none, or at least 0 and below pi", lambda v, c: v is None or 0 <= v < math.pi),
    Rule("optimiser.batch_size optimiser.epochs optimiser.accumulate", "at least 1", _at_least(1)),
    Rule("optimiser.max_steps", "none or at least 1", lambda v, c: v is None or v >= 1),
    Rule("optimiser.learning_rate", "a positive number", _is_positive),
    Rule(
        "optimiser.milestones",
        "positive numbers that increase",
        lambda v, c: all(_is_positive(m, c) for m in v) and all(a < b for a, b in itertools.pairwise(v)),
    ),
    Rule("optimiser.warmup_steps model.freeze_backbone_steps angle_images", "at least 0", _at_least(0)),
    Rule("optimiser.momentum", "at least 0 and below 1", lambda v, c: 0 <= v < 1),
    Rule("optimiser.weight_decay", "a number of at least 0", lambda v, c: math.isfinite(v) and v >= 0),
    Rule("optimiser.clip_norm", "none or a positive number", lambda v, c: v is None or _is_positive(v, c)),
    Rule("seed", "0 to 2^63 - 1", lambda v, c: 0 <= v < 2**63),
    Rule("devices log_every evaluate_every save_every keep", "at least 1", _at_least(1)),
    Rule(
        "head.sample_rate",
        "1 for head {0.head.name}; normalised-softmax, cosface and arcface can sample",
        lambda v, c: v == 1 or c.head.name in ("normalised-softmax", "cosface", "arcface"),
    ),
    Rule(
        "head.margin",
        "none for head {0.head.name}; cosface and arcface have a margin",
        lambda v, c: v is None or c.head.name in ("cosface", "arcface"),
    ),
    Rule(
        "optimiser.accumulate",
        "a divisor of optimiser.batch_size {0.optimiser.batch_size}",
        lambda v, c: c.optimiser.batch_size % v == 0,
    ),
    Rule(
        "devices",
        "a divisor of a batch's part ({0.optimiser.batch_size} / {0.optimiser.accumulate} images)",
        lambda v, c: c.optimiser.batch_size % (v * c.optimiser.accumulate) == 0,
    ),
)


def check(config: RunConfig) -> None:
    """Raise a ValueError for the first of `RULES` that is broken: the field, what was expected and what came."""
    for rule in RULES:
        for name in rule.fields.split():
            value = operator.attrgetter(name)(config)
            if not rule.holds(value, config):
                raise ValueError(f"{name}: expected {rule.expected.format(config)}, got {value!r}")


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts of JSON values."""
    return _plain(dataclasses.asdict(config))


def from_json(value: Any) -> RunConfig:
    """The checked configuration from a `to_json` result, which may have been edited or damaged.

    Raises:
        ValueError: an unknown or missing field, a value of the wrong type, or a broken rule; names the field.
    """
    config = _build(RunConfig, value, "")
    check(config)
    return config


def differences(
    old: dict[str, Any], new: dict[str, Any], free: Collection[str] = frozenset(FREE_ON_RESUME)
) -> list[str]:
    """Fields that differ between two `to_json` results, but for those that may: "field: old -> new"."""
    old_fields, new_fields = dict(flat(old)), dict(flat(new))
    return [
        f"{name}: {old_fields.get(name)!r} -> {new_fields.get(name)!r}"
        for name in sorted(old_fields.keys() | new_fields.keys())
        if name not in {*free, *REMOVED_FIELDS} and old_fields.get(name) != new_fields.get(name)
    ]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names, as on the command line, and values of a `to_json` result; an empty object is a value."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def _build(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `kind` of the field `name` says: one of the few kinds that are used above."""
    options = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_section(kind, value, f"{name}." if name else "")
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(options[0], value, name)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_build(options[0], item, name) for item in value)
    if typing.get_origin(kind) is Literal and value in options:
        return value
    if (kind, type(value)) in CONVERTED:
        return kind(value)
    if type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def _build_section(kind: Any, value: Any, prefix: str) -> Any:
    """The dataclass `kind` from the object `value`. A field that the object lacks has its default."""
    if not isinstance(value, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'configuration'}: expected an object, got {value!r}")
    value = {key: item for key, item in value.items() if prefix + key not in REMOVED_FIELDS}
    hints = typing.get_type_hints(kind)
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    for name in sorted(needed - value.keys()):
        raise ValueError(f"{prefix}{name}: missing")
    for name in sorted(value.keys() - hints.keys()):
        raise ValueError(f"{prefix}{name}: unknown field{did_you_mean(name, hints)}")
    return kind(**{key: _build(hints[key], item, prefix + key) for key, item in value.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
