"""python -m benchmarks noise: does SFace resist wrong labels? lfw-small with a share of its labels wrong, head by head.

Each case has a run folder, which is resumed as `train` resumes one, and a file in OUT/results once it is done. The
command may be stopped or killed: started again, it skips the finished cases and resumes the others.
"""

import dataclasses
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.noise import figures
from benchmarks.noise.figures import TEST, VALIDATION
from benchmarks.process import named_backends, worker_command
from common import config as configuration
from common.config import HeadConfig, RunConfig
from common.evaluation.results import evaluation_record, load_evaluation
from common.io.files import read_json, write_json
from common.io.progress import ProgressBar
from common.recipes import lfw_small
from common.training.run_log import LOG, read_log
from data.noise import make_noise

SHARES = (0, 20, 40)  # percent of wrong labels

# The scales, and SFace's a and b, are the best on the validation set with clean labels (the part "scan");
# "sface-casia" has the published a and b of CASIA-WebFace.
METHODS: dict[str, HeadConfig] = {
    "sface": lfw_small().head,
    "sface-casia": HeadConfig(intra_center=0.87, inter_center=1.20),
    "softmax": HeadConfig(name="softmax"),
    "normalised-softmax": HeadConfig(name="normalised-softmax", scale=8),
    "cosface": HeadConfig(name="cosface", scale=8),
    "arcface": HeadConfig(name="arcface", scale=16),
}
INTRA_CENTERS, INTER_CENTERS = (0.80, 0.95, 1.10), (1.10, 1.20, 1.25, 1.30)
SCALES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Options:
    """Train every case that has no result yet; then write tables and figures of all results in OUT."""

    part: Literal["heads", "scan", "all", "none"] = "heads"
    """heads: every head at 0, 20 and 40 % (PyTorch), SFace and ArcFace at 0 and 20 % (MXNet, Jittor); scan: a, b
    and scales at 0 and 40 %, on the validation set (PyTorch); all: both; none: train nothing."""
    backend: str = "pytorch"
    """Framework that trains: pytorch, mxnet or jittor."""
    data: Path = Path("datasets/lfw-small")
    """Folder that `python -m data lfw` wrote."""
    out: Path = Path("runs/noise-study")
    """Run folders, results and figures."""
    jobs: int = 1
    """Runs at the same time; they share the cores and the device."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of weights, order, flips and wrong labels; for the part "heads"."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_steps: int | None = None
    """Stop each run after this many steps; for trials."""


@dataclass(frozen=True)
class Case:
    """One training run.

    `method` names it in tables, `share` is the share of wrong labels in percent, `tested_on` is an evaluation set.
    """

    backend: str
    method: str
    head: HeadConfig
    share: int
    seed: int
    tested_on: str

    @property
    def key(self) -> str:
        return f"{self.backend}-{self.method}-{self.share}-{self.seed}-{self.tested_on}"


def cases(part: str, backend: str, seeds: Sequence[int]) -> list[Case]:
    """The runs of a part, in the order in which they are trained."""
    found: list[Case] = []
    if part in ("heads", "all"):
        methods = METHODS if backend == "pytorch" else {name: METHODS[name] for name in ("sface", "arcface")}
        shares = SHARES if backend == "pytorch" else SHARES[:2]
        found += [
            Case(backend, name, head, share, seed, TEST)
            for seed in seeds
            for share in shares
            for name, head in methods.items()
        ]
    if part in ("scan", "all") and backend == "pytorch":
        settings = {
            f"sface a {a:.2f} b {b:.2f}": HeadConfig(intra_center=a, inter_center=b)
            for a in INTRA_CENTERS
            for b in INTER_CENTERS
        }
        settings |= {
            f"{name} s {scale}": dataclasses.replace(METHODS[name], scale=float(scale))
            for name in ("normalised-softmax", "cosface", "arcface")
            for scale in SCALES
        }
        found += [
            Case(backend, name, head, share, 0, VALIDATION) for share in (0, 40) for name, head in settings.items()
        ]
    return found


def run_config(case: Case, options: Options) -> RunConfig:
    """lfw-small with the case's head, seed and data."""
    recipe = lfw_small()
    root = options.out / "data" / f"wrong-{case.share}-seed{case.seed}"
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, root=root, evaluate_on=(case.tested_on,), raw_pixels=False),
        head=case.head,
        optimiser=dataclasses.replace(recipe.optimiser, max_steps=options.max_steps),
        seed=case.seed,
        device=options.device,
        out=options.out / "runs" / case.key,
    )


def train(case: Case, options: Options, lock: IO[str]) -> None:
    """Run or resume a case in a process of its own, and write its result.

    Raises:
        ValueError: it failed; the message ends with the last line of its log.
    """
    config = run_config(case, options)
    assert config.out is not None
    log = options.out / "logs" / f"{case.key}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))} if options.jobs > 1 else {}
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            worker_command(case.backend, "run", {"config": configuration.to_json(config)}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**threads, **os.environ},
            pass_fds=[lock.fileno()],  # the study stays locked as long as one of its runs lives
            check=False,
        ).returncode
    if status:
        said = log.read_text("utf-8").strip().rpartition("\n")[2]
        raise ValueError(f"{case.key}: training ended with {status}; the last line of {log}: {said[-500:]}")
    write_json(options.out / "results" / f"{case.key}.json", result(case, config.out))


def result(case: Case, folder: Path) -> dict[str, Any]:
    """The result of a finished run: the case, its figures, its angles, the backend and the commit."""
    saved = load_evaluation(folder / "evaluation" / f"{case.tested_on}.json")
    records = read_log(folder / LOG)
    environment = read_json(folder / "environment.json", "the environment of a run")
    figures = evaluation_record(saved.evaluation, saved.step)
    return {
        **dataclasses.asdict(case),
        **{name: figures[name] for name in ("step", "accuracy", "std", "auc", "eer", "tar")},
        "train_accuracy": [r["accuracy"] for r in records if r["kind"] == "train"][-1],
        "seconds": [r["seconds"] for r in records if r["kind"] == "train"][-1],
        "angles": [r for r in records if r["kind"] == "angles"],
        "backend_description": environment["backend"],
        "git": environment["git"],
    }


def prepare(needed: list[Case], options: Options) -> None:
    """Make the training sets of the cases, each once."""
    for share, seed in sorted({(case.share, case.seed) for case in needed}):
        out = options.out / "data" / f"wrong-{share}-seed{seed}"
        if not out.exists():
            make_noise(options.data, out, share / 100, seed=seed)


def read_results(out: Path) -> list[dict[str, Any]]:
    """All results of a study folder, in the order of their keys.

    Raises:
        ValueError: a file is damaged.
    """
    found = []
    for path in sorted((out / "results").glob("*.json")):
        try:
            found.append(read_json(path, "the result of a case"))
        except ValueError as error:
            raise ValueError(f"{error}; delete it, and its case will run again") from None
    return found


@contextmanager
def locked(out: Path) -> Iterator[IO[str]]:
    """A lock that this process and its runs hold; released when the last of them has ended.

    Raises:
        ValueError: another study works in `out`, or a run of a study that was killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: a study or one of its runs is at work there; wait for it or stop it") from None
        yield file


def run_all(waiting: list[Case], options: Options) -> None:
    """Train cases, `options.jobs` at a time. After a failure no further case starts, and those at work end first."""
    stop = threading.Event()

    def one(case: Case) -> None:
        if not stop.is_set():
            train(case, options, lock)

    with locked(options.out) as lock:
        prepare(waiting, options)
        with ThreadPoolExecutor(options.jobs) as pool, ProgressBar("study", "runs", len(waiting)) as bar:
            futures = [pool.submit(one, case) for case in waiting]
            try:
                for future, case in zip(futures, waiting, strict=True):
                    future.result()
                    bar.note(case.key)
                    bar.update()
            finally:
                stop.set()


def run(options: Options) -> int:
    """Train what is left; the exit status."""
    if options.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
    named_backends(options.backend)
    wanted = cases(options.part, options.backend, options.seeds)
    waiting = [case for case in wanted if not (options.out / "results" / f"{case.key}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(waiting)} done")
    if waiting:
        try:
            run_all(waiting, options)
        except KeyboardInterrupt:
            print("stopped; start it again to go on", file=sys.stderr)
            return 130
    results = read_results(options.out)
    if not results:
        print(f"no results in {options.out} yet")
        return 0
    for path in figures.write_all(results, options.out):
        print(f"wrote {path}")
    print(figures.table(results))
    return 0
