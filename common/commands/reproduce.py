"""`reproduce`: train and evaluate a published row, or say beforehand what is missing and what it would cost.

python -m BACKEND reproduce casia-r50 --check    # prints that and exits: status 0 if all data are there, else 1
python -m BACKEND reproduce casia-r50            # trains, or continues, and evaluates on the row's sets
python -m BACKEND reproduce opencv-sface         # evaluates the released model (reproduce_released)
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from common import config as configuration
from common.backend import Backend
from common.commands import evaluate, reproduce_released, train
from common.config import RunConfig
from common.datasets.pair_sets import find_pair_sets
from common.datasets.training_sets import open_dataset
from common.io.files import write_json
from common.reports.published import EVALUATION_SETS, RELEASED, ROWS, Row
from common.reports.runs import read_finished
from common.reports.tables import collect, markdown
from common.training.cost import cost_lines
from common.training.probe import measure
from common.training.run_folder import refuse_another_run
from common.training.schedule import total_steps

CHECK = "--check"
RECORD = "reproduction.json"
PROBE_SECONDS = 60.0


class Statement(NamedTuple):
    """How a run relates to the published one, in sentences."""

    same: list[str]
    differs: list[str]


class Data(NamedTuple):
    """Which data of a row are there, in lines for the user. Counts of a missing set are those of the public one."""

    lines: list[str]
    complete: bool
    images: int
    classes: int
    pairs: int  # in all evaluation sets whose size is known
    error: Exception | None  # why the training set cannot be opened


def run(backend: Backend, arguments: list[str]) -> int:
    """Reproduce a row, or with --check say whether it can be; status 1 if some of its data are missing.

    Raises:
        ValueError, OSError, Stopped: as `common.training.loop.fit`.
    """
    if arguments[:1] == [RELEASED]:
        return reproduce_released.run(backend, arguments[1:])
    check = CHECK in arguments
    recipes = {name: row.recipe for name, row in ROWS.items()}
    rest = [argument for argument in arguments if argument != CHECK]
    config = train.parse_recipe(backend, f"reproduce [{CHECK}]", recipes, rest)
    name = rest[0].replace("_", "-")  # parse_recipe takes nothing but a row there
    row = ROWS[name]
    data = look_at_data(config, row)
    statement = compare_with_published(config, row, backend.name, data.images)
    folder = train.run_folder(backend, config)
    lines = [*data.lines, "", f"Against the published run in {row.implementation}"]
    lines += [f"  same     {line}" for line in statement.same]
    lines += [f"  differs  {line}" for line in statement.differs]
    print("\n".join(lines), end="\n\n", flush=True)
    if check:
        probe = measure(backend.create_trainer, config, data.classes, PROBE_SECONDS, _say)
        free = shutil.disk_usage(_existing(folder)).free
        print("\n".join(cost_lines(config, probe, data.images, data.classes, data.pairs, free)))
        return 0 if data.complete else 1

    if data.error:
        raise data.error
    refuse_another_run(folder, config)
    write_json(folder / RECORD, {"row": name, "published_in": row.implementation, **statement._asdict()})
    train.train_config(backend, config, ["reproduce", *arguments])
    return 0 if _evaluate_the_rest(backend, config, folder) and data.complete else 1


def compare_with_published(config: RunConfig, row: Row, backend: str, images: int) -> Statement:
    """What a run on one device shares with the published run of its row, and what it does not.

    Args:
        config: the run.
        row: the published one.
        backend: name of the framework that runs it.
        images: of the training set.

    With `accumulate` K the trainers split a step's batch in K parts, average the K gradients of the parts' mean losses,
    and take one optimiser step. SFace's weights depend on a sample's own angles only, so this is the gradient of the
    whole batch, except for BatchNorm, which mixes samples, and for the draws of dropout.
    """
    published, ours, parts = row.recipe(), config.optimiser, config.optimiser.accumulate
    same, differs = [], []

    batch = row.devices * row.images_a_device
    devices = f"{row.devices} device{'s' if row.devices > 1 else ''} of {row.images_a_device}"
    whole = ours.batch_size == batch
    if whole:
        same.append(f"global batch: {batch} images a step (published: {devices})")
    else:
        differs.append(
            f"global batch: {ours.batch_size} images a step, published {batch} ({devices}); steps are others"
        )
    steps, expected = (total_steps(o, images // o.batch_size) for o in (ours, published.optimiser))
    if steps == expected:
        same.append(f"steps: {steps:,}, of {images:,} images and {ours.epochs} epochs")
    else:
        differs.append(f"steps: {steps:,}, by the recipe {expected:,}")
    unit = ours.milestone_unit
    schedule = f"{ours.learning_rate:g}, divided by 10 at {unit} {', '.join(f'{m:,g}' for m in ours.milestones)}"
    fields = ("learning_rate", "milestones", "milestone_unit", "warmup_steps")
    if all(getattr(ours, name) == getattr(published.optimiser, name) for name in fields):
        same.append(f"learning rate: {schedule}")

    group = ours.batch_size // parts
    if parts > 1:
        same.append(f"gradient: the mean over the {ours.batch_size} images, added up in {parts} parts")
        differs.append(
            f"BatchNorm's running statistics: moved {parts} times a step, part after part; published once a step"
            + (", on each device for itself" if row.devices > 1 else "")
        )
    if group == row.images_a_device:
        same.append(f"BatchNorm: the statistics of {group} images")
    else:
        advice = f"; --optimiser.accumulate {row.devices} takes {row.images_a_device}" if whole and parts == 1 else ""
        differs.append(
            f"BatchNorm: the statistics of {group} images, published of the {row.images_a_device} of a device{advice}"
        )

    alike = dataclasses.replace(config, seed=published.seed, device=published.device)
    changes = configuration.differences(configuration.to_json(published), configuration.to_json(alike))
    said = ("optimiser.accumulate:", "optimiser.batch_size:", "optimiser.epochs:", "optimiser.max_steps:")
    differs += [f"setting {change}" for change in changes if not change.startswith(said)]
    differs.append(
        f"code: docs/specification.md in {backend}, published in {row.implementation}; that page says where the "
        "published codes part from it"
    )
    return Statement(same, differs)


def look_at_data(config: RunConfig, row: Row) -> Data:
    """Which data of a row are there; where each missing one is expected, and who distributes it."""
    root, public = config.data.root, row.training_set
    lines, missing = [f"Data in {root}"], False
    get: dict[str, list[str]] = {}  # titles by who distributes them
    problem: Exception | None = None
    images, classes = public.images, public.classes
    try:
        dataset = open_dataset(root, config.data.kind)
        images, classes = len(dataset), dataset.num_classes
        lines.append(f"  training set  {images:,} images of {classes:,} identities")
    except (OSError, ValueError) as error:
        problem, missing = error, True
        lines.append(f"  training set  missing: {public.title} as train.rec, train.idx and property; {error}")
        lines.append(f"                taken to hold {images:,} images of {classes:,} identities: {public.counted}")
        get[public.where] = [public.title]

    pairs = 0
    for name in dict.fromkeys(config.data.evaluate_on):
        known = EVALUATION_SETS.get(name)
        try:
            found = find_pair_sets(root, [name])[0].get(name)
            state = f"{len(found):,} pairs" if found else f"missing: expected {root / (name + '.bin')}"
        except (OSError, ValueError) as error:
            found, state = None, f"cannot be read: {error}"
        lines.append(f"  {name:<12}  {state}")
        if found:
            pairs += len(found)
            continue
        missing = True
        if known:
            pairs += known.pairs
            get.setdefault(known.where, []).append(known.title)
    lines += [f"  get           {', '.join(titles)}: {where}" for where, titles in get.items()]
    if missing:
        lines.append("  or make       them from aligned images: python -m data convert | pairs (--help)")
    return Data(lines, not missing, images, classes, pairs, problem)


def _evaluate_the_rest(backend: Backend, config: RunConfig, folder: Path) -> bool:
    """Evaluate on sets that were missing after the last step, and print the row; whether every set is evaluated."""
    run = read_finished(folder)
    done = {s.evaluation.name for s in run.saved if s.method is None and s.step == run.last_step}
    wanted = [name for name in config.data.evaluate_on if name not in done]
    found = list(find_pair_sets(config.data.root, wanted)[0])
    if found:
        evaluate.evaluate_source(
            backend,
            evaluate.Options(
                folder, sets=tuple(found), root=config.data.root, device=config.device, out=folder / "evaluation"
            ),
        )
        run = read_finished(folder)
    print(f"\n{markdown(collect([run]))}")
    return len(found) == len(wanted)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _say(text: str) -> None:
    print(f"probe: {text}", file=sys.stderr, flush=True)
