"""Several ranks compute what one computes on the joined batch, over Gloo; and a job that loses one ends and goes on."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import config as configuration
from common.ranks import LostRank
from common.tests.backend_checks.trainer import WITHOUT_DROPOUT, configured
from common.tests.hosts import Host, two_hosts
from pytorch_impl import launcher
from pytorch_impl.losses.sface import sface_loss

CLASSES = 7  # of three ranks: two, two and three


def torchrun(ranks: int, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone", "-m"]
    done = subprocess.run([*command, module, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def launch(ranks: int, module: str, *arguments: str) -> None:
    launcher.launch(ranks, list(arguments), module=module)


def here(_: int, module: str, *arguments: str) -> None:
    importlib.import_module(module).main(*arguments)


def trained(folder: Path, ranks: int, jobs: dict[str, dict], start: Callable) -> dict[str, dict[str, np.ndarray]]:
    """What each job left."""
    start(ranks, *rank_job(folder, jobs))
    found = {name: dict(np.load(folder / f"{name}.npz")) for name in jobs}
    if (folder / "whole-middle.npz").exists():
        found["middle"] = dict(np.load(folder / "whole-middle.npz"))
    return found


def on_two_hosts(folder: Path, jobs: dict[str, dict], hosts: Sequence[Host]) -> dict[str, dict[str, np.ndarray]]:
    """What each job left, of a rank on each host: with torchrun's arguments for several."""
    job = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", hosts[0].address, "--master-port", "29400"]
    command = [sys.executable, "-m", "torch.distributed.run", *job, "-m", *rank_job(folder, jobs)]
    processes = []
    for number, host in enumerate(hosts):
        network = {"GLOO_SOCKET_IFNAME": host.device, "NCCL_SOCKET_IFNAME": host.device, "NCCL_HOSTID": str(number)}
        environment = {**os.environ, **network, "PET_NODE_RANK": str(number)}
        processes.append(subprocess.Popen([*host.prefix, *command], env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    return {name: dict(np.load(folder / f"{name}.npz")) for name in jobs}


def rank_job(folder: Path, jobs: dict[str, dict]) -> tuple[str, str, str]:
    """The module that does them, and its arguments."""
    written = [{"classes": CLASSES, "out": str(folder / f"{name}.npz"), **job} for name, job in jobs.items()]
    path = folder / "jobs.json"
    path.write_text(json.dumps(written))
    return "common.tests.rank_job", "pytorch", str(path)


def config(**options) -> dict:
    return configuration.to_json(configured(batch_size=12, model=WITHOUT_DROPOUT, **options))


def assert_close(found: dict, expected: dict, tolerance: float, leave_out: tuple[str, ...] = ()) -> None:
    """All floating-point arrays, relative to the largest value; below 1e-3, as where a bias has no effect, to that."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype.kind == "f" and not name.endswith(leave_out):
            error = np.abs(found[name] - array).max() / max(np.abs(array).max(), 1e-3)
            assert error <= tolerance, (name, error)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One rank: 6 steps in float64, whole and in parts, and 3 steps in float32."""
    jobs = {
        "whole": {"config": config(precision="fp64"), "steps": [0, 6], "middle": 3},
        "parts": {"config": config(precision="fp64", accumulate=3, clip_norm=0.5), "steps": [0, 5]},
        "float32": {"config": config(), "steps": [0, 3]},
        "bf16": {"config": config(precision="bf16"), "steps": [0, 2]},
        "fp16": {"config": config(precision="fp16"), "steps": [0, 2]},
        "arcface": {"config": config(precision="fp64", head=configuration.HeadConfig("arcface")), "steps": [0, 3]},
    }
    return trained(tmp_path_factory.mktemp("alone"), 1, jobs, here)


@pytest.fixture(scope="module")
def three(tmp_path_factory, alone):
    """The same on three ranks: with BatchNorm over all of them, or each its part."""
    folder = tmp_path_factory.mktemp("three")
    np.savez(folder / "start.npz", **alone["middle"])
    double = {"precision": "fp64", "sync_batch_norm": True}
    jobs = {
        "whole": {"config": config(**double), "steps": [0, 6], "middle": 3},
        "parts": {"config": config(precision="fp64", clip_norm=0.5), "steps": [0, 5]},
        "float32": {"config": config(sync_batch_norm=True), "steps": [0, 3]},
        "bf16": {"config": config(precision="bf16", sync_batch_norm=True), "steps": [0, 2]},
        "fp16": {"config": config(precision="fp16", sync_batch_norm=True), "steps": [0, 2]},
        "arcface": {"config": config(**double, head=configuration.HeadConfig("arcface")), "steps": [0, 3]},
        "resumed": {"config": config(**double), "steps": [3, 6], "load": str(folder / "start.npz")},
    }
    return trained(folder, 3, jobs, torchrun)


# Of the running statistics of parts, rank 0's are those of its own parts alone.
RUNNING = ("running_mean", "running_var")


def test_six_steps_of_three_ranks_are_those_of_one(alone, three):
    """Measured 5e-12, and at most 6e-12 in the tests below: rounding, where an array is zero but for it."""
    assert_close(three["whole"], alone["whole"], 1e-10)
    assert np.abs(alone["whole"]["metrics.loss"]).max() > 1


def test_three_ranks_are_one_that_accumulates_three_parts_gradients_clipped(alone, three):
    """Measured 2e-14: each rank's part is computed alike."""
    assert_close(three["parts"], alone["parts"], 1e-12, RUNNING)


def test_in_float32_a_few_steps_agree(alone, three):
    """2e-1 of the largest value, as the parity suite has it for a backbone's gradients; measured 4e-2."""
    assert_close(three["float32"], alone["float32"], 2e-1)
    assert three["float32"]["metrics.loss"] == pytest.approx(alone["float32"]["metrics.loss"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_near(alone, three, precision):
    """A twentieth: bfloat16 has 8 bits, networks amplify. All ranks leave out a step that overflows, as one does."""
    assert three[precision]["metrics.loss"] == pytest.approx(alone[precision]["metrics.loss"], rel=5e-2)
    if precision == "fp16":
        assert three[precision]["scaler.scale"] == alone[precision]["scaler.scale"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_twenty_steps_over_nccl_are_those_of_one_process(tmp_path):
    """With PyTorch's own SyncBatchNorm. Both ranks share a GPU, which NCCL refuses only within one host."""
    job = {"steps": [0, 20], "config": config(precision="fp64", sync_batch_norm=True, device="cuda")}
    found = on_two_hosts(tmp_path, {"whole": job}, [Host([], "127.0.0.1", "lo")] * 2)["whole"]
    alone = {"alone": {**job, "config": config(precision="fp64", device="cuda")}}
    expected = trained(tmp_path, 1, alone, here)["alone"]
    for arrays in (found, expected):
        del arrays["random.cuda"]
    assert_close(found, expected, 1e-9)


def test_another_head_is_data_parallel(alone, three):
    assert_close(three["arcface"], alone["arcface"], 1e-10)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, alone, three):
    """One to three above; three to two and to one here."""
    assert_close(three["resumed"], {**alone["whole"], **rows(alone["whole"], 3)}, 1e-10)
    np.savez(tmp_path / "start.npz", **three["middle"])
    job = {"steps": [3, 6], "load": str(tmp_path / "start.npz")}
    expected = {**alone["whole"], **rows(alone["whole"], 3)}
    two = {"two": {"config": config(precision="fp64", sync_batch_norm=True), **job}}
    assert_close(trained(tmp_path, 2, two, launch)["two"], expected, 1e-10)
    one = {"one": {"config": config(precision="fp64"), **job}}
    assert_close(trained(tmp_path, 1, one, here)["one"], expected, 1e-10)


def rows(arrays: dict[str, np.ndarray], first: int) -> dict[str, np.ndarray]:
    return {name: array[first:] for name, array in arrays.items() if name.startswith("metrics.")}


def test_the_sharded_head_is_the_whole_one(tmp_path):
    """Loss, metrics, both gradients; 7, 4 and 5000 classes over 4 ranks, the last class in no batch; all reductions.

    5000 also screened: of a rank's 10,000 entries those that count fit into the room of a block.
    """
    generator = torch.Generator().manual_seed(0)
    given, problems = {}, {}
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        for classes, reduction, way in ((7, "mean", ""), (4, "sum", ""), (5000, "none", ""), (5000, "sum", "screened")):
            key = f"{dtype}-{classes}-{way}"
            x = torch.randn(8, 16, generator=generator, dtype=dtype)
            w = torch.randn(classes, 16, generator=generator, dtype=dtype)
            labels = torch.randint(classes - 1, (8,), generator=generator)
            weights = torch.linspace(-1, 2, 8, dtype=dtype) if reduction != "mean" else None
            problems[key] = x.requires_grad_(), w.requires_grad_(), labels, reduction, weights, bound
            arrays = {"embeddings": x, "class_weight": w, "labels": labels}
            given |= {f"{name}.{key}": tensor.detach().numpy() for name, tensor in arrays.items()}
            given[f"reduction.{key}"] = np.array(reduction)
            if weights is not None:
                given[f"sample_weight.{key}"] = weights.numpy()
    np.savez(tmp_path / "in.npz", **given)
    launch(4, "pytorch_impl.tests.head_job", str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))
    found = np.load(tmp_path / "out.npz")
    for key, (x, w, labels, reduction, weights, bound) in problems.items():
        result = sface_loss(x, w, labels, reduction=reduction, sample_weight=weights)
        result.loss.sum().backward()
        metrics = {name: value for name, value in result._asdict().items() if name != "cosines"}
        expected = {**metrics, "grad_embeddings": x.grad, "grad_class_weight": w.grad}
        softmax = F.cross_entropy(64 * F.normalize(x) @ F.normalize(w).T, labels)
        of_x, of_w = torch.autograd.grad(softmax, (x, w))
        expected |= {"softmax_embeddings": of_x, "softmax_class_weight": of_w}
        for name, value in expected.items():
            value = value.detach().numpy()
            assert np.abs(found[f"{name}.{key}"] - value).max() <= bound * max(np.abs(value).max(), 1e-6), (name, key)


def test_fewer_classes_than_ranks_are_refused(tmp_path, capfd):
    given = {"embeddings.a": np.ones((4, 3)), "class_weight.a": np.ones((1, 3)), "labels.a": np.zeros(4, np.int64)}
    given["reduction.a"] = np.array("mean")
    np.savez(tmp_path / "in.npz", **given)
    with pytest.raises(LostRank):
        launch(2, "pytorch_impl.tests.head_job", str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))
    assert "at least as many identities as devices, got 1 and 2" in capfd.readouterr().err


def test_the_launcher_does_without_pytorch():
    code = """
import sys
from common.backend import Backend
from common.commands.main import main
from pytorch_impl import launcher
launcher.launch = lambda *_: sys.exit("it loads torch" if "torch" in sys.modules else 0)
sys.exit(main(Backend("pytorch"), ["train", "lfw-small", "--devices", "2", "--device", "cpu"]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ranks_on_two_hosts(tmp_path, alone):
    """One rank each in two network namespaces."""
    job = {"config": config(precision="fp64", sync_batch_norm=True), "steps": [0, 3]}
    with two_hosts() as hosts:
        found = on_two_hosts(tmp_path, {"whole": job}, hosts)["whole"]
    expected = alone["whole"]["metrics.loss"][:3]
    assert found["metrics.loss"] == pytest.approx(expected, rel=1e-9)
