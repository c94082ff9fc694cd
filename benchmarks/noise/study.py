"""python -m benchmarks noise: does SFace resist wrong labels? lfw-small with a share of its labels wrong, head by head.

A case is a run folder that is resumed as `train` resumes one, and a file in OUT/results when it is done. Stop the
command, or kill it, and start it again: finished cases are not run again, the others go on where they were.
"""

import dataclasses
import fcntl
import json
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

import tyro
from tqdm import tqdm

from benchmarks.noise import figures
from benchmarks.noise.figures import TEST, VALIDATION
from common import config as configuration
from common.config import HeadConfig, RunConfig
from common.evaluation.results import evaluation_record, load_evaluation
from common.io.files import read_json, write_json
from common.recipes import lfw_small
from common.training.run_log import LOG, read_log
from data.noise import make_noise

SHARES = (0, 20, 40)  # percent of wrong labels

# The scales of the other heads, and a and b of SFace, are those that the validation set prefers on clean labels (the
# part "scan"); "sface-casia" has the published a and b of CASIA-WebFace.
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
    """Train every case that has no result yet, then draw the figures and the table of all results in OUT."""

    part: Literal["heads", "scan", "all", "none"] = "heads"
    """heads: every head at 0, 20 and 40 % (PyTorch), SFace and ArcFace at 0 and 20 % (MXNet, Jittor); scan: a, b
    and scales at 0 and 40 % on the validation set (PyTorch); none: draw only."""
    backend: Literal["pytorch", "mxnet", "jittor"] = "pytorch"
    """Train in this one."""
    data: Path = Path("datasets/lfw-small")
    """What `python -m data lfw` wrote."""
    out: Path = Path("runs/noise-study")
    """Run folders, results and figures."""
    jobs: int = 1
    """Runs at a time, in processes that share the cores and the device."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the part "heads": of weights, order, flips and wrong labels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_steps: int | None = None
    """Stop each run after so many steps; for trials."""


@dataclass(frozen=True)
class Case:
    """One training run. `method` names it in tables; `share` is in percent; `tested_on` is an evaluation set."""

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
    """The runs of a part, those that are needed first at the front."""
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
        ValueError: it failed; the message ends with what it said last.
    """
    config = run_config(case, options)
    assert config.out is not None
    text = json.dumps(configuration.to_json(config))
    log = options.out / "logs" / f"{case.key}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    python = os.environ.get(f"SFACE_PYTHON_{case.backend.upper()}", sys.executable)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))} if options.jobs > 1 else {}
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            [python, "-m", "benchmarks.noise.worker", case.backend, text],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**threads, **os.environ},
            pass_fds=[lock.fileno()],  # while a run lives, the study is locked
            check=False,
        ).returncode
    if status:
        said = log.read_text("utf-8").strip().rpartition("\n")[2]
        raise ValueError(f"{case.key}: training ended with {status}; {log} says: {said[-500:]}")
    write_json(options.out / "results" / f"{case.key}.json", result(case, config.out))


def result(case: Case, folder: Path) -> dict[str, Any]:
    """What is kept of a finished run: the case, the figures of its set, its angles, and on what it ran."""
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
    """The training sets of the cases, each made once."""
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
            raise ValueError(f"{error}; delete it, and its case is run again") from None
    return found


@contextmanager
def locked(out: Path) -> Iterator[IO[str]]:
    """A lock that this process and its runs hold; released when the last of them has ended.

    Raises:
        ValueError: another study, or a run of one that was killed, is at work in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: a study or one of its runs is at work there; wait for it or stop it") from None
        yield file


def run_all(waiting: list[Case], options: Options) -> None:
    """Train cases, `options.jobs` at a time; the first failure ends the study when the runs at work have ended."""
    stop = threading.Event()

    def one(case: Case) -> None:
        if not stop.is_set():
            train(case, options, lock)

    with locked(options.out) as lock:
        prepare(waiting, options)
        with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(waiting), unit="run", desc="study") as bar:
            futures = [pool.submit(one, case) for case in waiting]
            try:
                for future, case in zip(futures, waiting, strict=True):
                    future.result()
                    bar.set_postfix_str(case.key)
                    bar.update()
            finally:
                stop.set()


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks noise", args=arguments)
    if options.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
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
