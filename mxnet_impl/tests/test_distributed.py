"""Two ranks against one that computes the same parts of a batch one after the other.

As a program this file is one rank of a job.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from mxnet import nd

from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig, to_json
from common.tests import rank_job
from common.tests.backend_checks.trainer import WITHOUT_DROPOUT
from common.tests.backend_checks.trainer import configured as small
from mxnet_impl import distributed, launcher
from mxnet_impl.trainer import Trainer, _dropout_seed

ROOT = Path(__file__).resolve().parents[2]
CLASSES, BATCH = 7, 12
RUNNING = ("running_mean", "running_var")
STEPS = {"fp64": (4, 6), "fp32": (1, 3)}  # where they are compared; the first is where they change states, too


MODELS = {"fp64": WITHOUT_DROPOUT, "fp32": ModelConfig("mobilefacenet", 16)}  # that one with depthwise convolutions


def configured(precision: str, accumulate: int = 1, **options: bool) -> RunConfig:
    clip_norm = 10.0 if precision == "fp32" else None  # the norms of its gradients are above 1,000
    return RunConfig(
        name="test",
        data=DataConfig(root=Path("unused"), image_size=32),
        model=MODELS[precision],
        optimiser=OptimiserConfig(batch_size=BATCH, accumulate=accumulate, clip_norm=clip_norm),
        device="cpu",
        precision=precision,
        **options,
    )


def train(trainer: Trainer, first: int, last: int) -> dict[str, np.ndarray]:
    """Steps first .. last - 1 on this rank's share of noise; the state then, and metrics of each step."""
    metrics = []
    for step in range(first, last):
        random = np.random.default_rng(step)
        images, labels = random.integers(0, 256, (BATCH, 3, 32, 32), np.uint8), random.integers(0, CLASSES - 1, BATCH)
        size = BATCH // trainer.ranks.count
        share = slice(size * trainer.ranks.rank, size * (trainer.ranks.rank + 1))
        trainer.train_step(images[share], labels[share], 0.002)
        metrics.append(trainer.metrics())
    return trainer.state() | {f"metrics.{name}": np.array([m[name] for m in metrics]) for name in metrics[0]}


def numbers(rank: int, dtype: str) -> np.ndarray:
    """Of a rank: of all magnitudes that float32 knows well, and of both signs."""
    random = np.random.default_rng(rank)
    return (random.standard_normal((50, 4)) * 10.0 ** random.integers(-20, 20, (50, 4))).astype(dtype)


def as_a_rank(folder: Path, precision: str) -> None:
    trainer = Trainer(configured(precision), CLASSES)
    group = trainer.ranks
    assert str(group.rank) == os.environ["DMLC_RANK"]
    middle, last = STEPS[precision]

    def save(name: str, **arrays: np.ndarray) -> None:
        np.savez(folder / f"{name}-{group.rank}.npz", **arrays)

    save("middle", **train(trainer, 0, middle))
    save("last", **train(trainer, middle, last))
    trainer.load_state(dict(np.load(folder / "middle-alone.npz")), middle)
    save("resumed", **train(trainer, middle, last))

    random = nd.random.uniform(shape=4).asnumpy()  # of the stream that dropout draws from
    sums = {name: nd.array(numbers(group.rank, name), dtype=name) for name in ("float64", "float32")}
    group.sum(sums)
    assert trainer.first_bad_step() is None
    trainer._first_bad_step[:] = 3 + group.rank if group.rank else -1
    save(
        "rest",
        random=random,
        **{name: array.asnumpy() for name, array in sums.items()},
        total=group.total(group.rank + 1),
        bad_step=trainer.first_bad_step(),
        described=trainer.describe()["ranks"],
    )


class Job:
    """Both ranks' arrays, and those of one rank, by the name that they were saved under."""

    def __init__(self, folder: Path, precision: str) -> None:
        middle, last = STEPS[precision]
        trainer = Trainer(configured(precision, accumulate=2), CLASSES)
        self.alone = {"middle": train(trainer, 0, middle)}
        weights = {name: a for name, a in self.alone["middle"].items() if not name.startswith("metrics.")}
        np.savez(folder / "middle-alone.npz", **weights)
        self.alone["last"] = train(trainer, middle, last)
        launcher._run(2, [sys.executable, "-m", "mxnet_impl.tests.test_distributed", str(folder), precision])
        self.ranks = [
            {name: dict(np.load(folder / f"{name}-{rank}.npz")) for name in ("middle", "last", "resumed", "rest")}
            for rank in range(2)
        ]
        state = {name: a for name, a in self.ranks[0]["middle"].items() if not name.startswith("metrics.")}
        trainer = Trainer(configured(precision, accumulate=2), CLASSES)
        trainer.load_state(state, middle)
        self.alone["resumed"] = train(trainer, middle, last)


@pytest.fixture(scope="module", params=STEPS)
def job(request, tmp_path_factory) -> Job:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MALLOC_PERTURB_", "85")  # glibc: memory starts as no zeros, and so does the server's flag
        return Job(tmp_path_factory.mktemp("job"), request.param)


def errors(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], leave_out: tuple[str, ...] = RUNNING
) -> dict[str, float]:
    """Largest difference of each array, as a share of its largest value, or of 1e-3 if that is smaller.

    Running statistics are left out by default: one rank has seen both parts. What is zero but for rounding is compared
    absolutely: all that comes before a BatchNorm has no effect of its scale, and so on.
    """
    assert found.keys() == expected.keys()
    return {
        name: float(np.abs(found[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-3))
        for name in expected
        if not name.endswith(leave_out)
    }


@pytest.mark.parametrize("part", ["middle", "last", "resumed"])
def test_two_ranks_are_one_that_accumulates(job, request, part):
    """When "resumed", each goes on from the other's state.

    float64: measured 7e-12: rounding, where an array is zero but for it.
    float32: halves are exact, so weights are the same to the bit; one rank rounds the means of metrics, measured 5e-8.
    """
    precision = request.node.callspec.params["job"]
    found = errors(job.ranks[0][part], job.alone[part])
    worst = max(found, key=found.get)
    assert found[worst] < {"fp64": 1e-10, "fp32": 1e-6}[precision], worst


def test_ranks_stay_the_same_to_the_bit(job):
    for part in ("middle", "last", "resumed"):
        one, other = (rank[part] for rank in job.ranks)
        for name in one:
            assert ".running_" in name or np.array_equal(one[name], other[name]), name


def test_sums_are_of_the_precision_of_what_is_summed(job):
    """Of float64: two numbers of 53 bits, added up from six parts; seen: at most 1.1e-16."""
    for rank in job.ranks:
        one, other = numbers(0, "float64"), numbers(1, "float64")
        assert rank["rest"]["float64"].dtype == np.float64
        assert (np.abs(rank["rest"]["float64"] - (one + other)) <= 4e-16 * (np.abs(one) + np.abs(other))).all()
        assert np.array_equal(rank["rest"]["float32"], numbers(0, "float32") + numbers(1, "float32"))


def test_what_ranks_agree_on_and_what_not(job):
    one, other = (rank["rest"] for rank in job.ranks)
    for name, expected in {"total": 3, "bad_step": 4, "described": 2}.items():
        assert one[name] == other[name] == expected, name
    assert not np.array_equal(one["random"], other["random"])


def test_two_processes_of_one_rank_are_refused(monkeypatch):
    group = distributed.Group.__new__(distributed.Group)
    group.rank, group.count = 1, 2
    monkeypatch.setattr(group, "sum", lambda tensors: tensors["ranks"].__imul__(2))
    with pytest.raises(ValueError, match="DMLC_RANK: expected each of 0 to 1 of one process, got 1 here, and 0, 1 of"):
        group._check_ranks()


def test_dropout_of_one_process_is_what_it_was():
    assert _dropout_seed(0, 7) == 1627159177


def test_six_steps_with_batch_norm_over_both_ranks_are_those_of_one(tmp_path):
    """In float64; weights, running statistics, momentum, metrics. Measured 8e-12."""
    found = {}
    for ranks in (1, 2):
        options = {"precision": "fp64", "batch_size": BATCH, "model": WITHOUT_DROPOUT, "sync_batch_norm": ranks > 1}
        out = tmp_path / f"{ranks}.npz"
        job = {"config": to_json(small(**options)), "classes": CLASSES, "steps": [0, 6], "out": str(out)}
        jobs = tmp_path / f"{ranks}.json"
        jobs.write_text(json.dumps([job]))
        if ranks > 1:
            launcher._run(ranks, [sys.executable, "-m", "common.tests.rank_job", "mxnet", str(jobs)])
        else:
            rank_job.main("mxnet", str(jobs))
        found[ranks] = dict(np.load(out))
    of_each = errors(found[2], found[1], leave_out=())
    worst = max(of_each, key=of_each.get)
    assert of_each[worst] < 1e-10, worst


def test_threads_are_shared_unless_the_user_gave_them(monkeypatch, tmp_path):
    print_threads = [sys.executable, "-c", f"import os; open(r'{tmp_path}/' + os.environ['DMLC_RANK'], 'w').write("
                     "os.environ['OMP_NUM_THREADS'])"]  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for given, expected in (("6", "2"), ("5", "5")):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        launcher._run(3, print_threads)
        assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [expected] * 3


if __name__ == "__main__":
    as_a_rank(Path(sys.argv[1]), sys.argv[2])
