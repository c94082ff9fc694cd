"""`reproduce opencv-sface`: the released SFace beside its published figures. It is evaluated, nothing is trained."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.backend import BACKENDS, Backend
from common.commands import evaluate
from common.evaluation.results import load_evaluation
from common.reports.published import ACCURACY, RELEASED, RELEASED_NOTE, RESULTS, published_result, title
from common.reports.tables import Key, Row, Tables, markdown

SETS = tuple(result.set for result in RESULTS if result.row == RELEASED)


@dataclass(frozen=True)
class Options:
    """Evaluate the SFace that OpenCV released on the sets of its published figures; status 1 if one is missing."""

    root: Path
    """Folder of the sets (NAME.bin)."""
    source: Path = Path("runs/opencv-sface")
    """The checkpoint that `python -m data opencv-sface` makes, or an ONNX file."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for the figures, NAME.json and NAME.npz for each set; none: evaluation/BACKEND in the source's folder."""


def run(backend: Backend, arguments: list[str]) -> int:
    """Evaluate, and print the row of the tables; raises as `evaluate`."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} reproduce {RELEASED}", args=arguments)
    if not options.source.exists():
        raise FileNotFoundError(f"{options.source}: expected the released model; python -m data opencv-sface makes it")
    folder = options.source if options.source.is_dir() else options.source.parent
    out = options.out or folder / "evaluation" / backend.name
    complete = evaluate.evaluate_source(
        backend, evaluate.Options(options.source, sets=SETS, root=options.root, device=options.device, out=out)
    )
    rows, missing = [], []
    for name in SETS:
        path = out / f"{name}.json"
        ours = {}
        if (options.root / f"{name}.bin").exists():
            ours = {backend.name: [100 * load_evaluation(path).evaluation.result.accuracy]}
        else:
            missing.append(title(name))
        rows.append(Row(Key(RELEASED, name, ACCURACY), ours, published_result(RELEASED, name, ACCURACY), False))
    notes = [
        RELEASED_NOTE,
        *([f"Not evaluated, as they are not in {options.root}: {', '.join(missing)}."] if missing else []),
    ]
    print(f"\n{markdown(Tables(rows, [*BACKENDS], notes))}")
    return 0 if complete else 1
