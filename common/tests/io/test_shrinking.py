"""A file that shrinks while it is read is an error that names it. Under a memory map the process would be killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.datasets.training_sets import open_dataset, samples, write_records
from common.io import npz
from common.io.files import FileBytes
from common.tests import foreign_files
from common.weights import checkpoint
from common.weights.checkpoint import load_checkpoint, save_checkpoint
from common.weights.foreign.convert import open_file

ARRAYS = {f"layer{i}.weight": np.ones((300, 100), np.float32) for i in range(4)}


def pair_set(folder: Path) -> None:
    write_pair_set(folder / "a.bin", [bytes(50_000)] * 40, [True] * 20)
    pairs = open_pair_set(folder / "a.bin")
    os.truncate(folder / "a.bin", 50_000)
    [pairs.encoded(index) for index in range(40)]


def records(folder: Path) -> None:
    write_records(folder, ((bytes(50_000), i) for i in range(40)), 40, 112)
    dataset = open_dataset(folder)
    os.truncate(folder / "train.rec", 70_000)
    list(samples(dataset))


def saved_checkpoint(folder: Path) -> None:
    path = save_checkpoint(folder, 1, {f"head.{name}": array for name, array in ARRAYS.items()}, {})

    class Shrinking(FileBytes):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.truncate(path, 200_000) if path.name == "weights.safetensors" else None

    checkpoint.FileBytes = Shrinking
    load_checkpoint(path)


def arrays(folder: Path) -> None:
    np.savez(folder / "a.npz", **ARRAYS)
    read = npz._read_member
    npz._read_member = lambda *arguments: os.truncate(folder / "a.npz", 200_000) or read(*arguments)
    npz.read_arrays(folder / "a.npz")


def foreign(write: Callable) -> Callable[[Path], None]:
    def shrink(folder: Path) -> None:
        write(folder / "a.pth", ARRAYS)
        (group,) = open_file(folder / "a.pth").groups
        os.truncate(folder / "a.pth", 200_000)
        [array.read() for array in group.values()]

    return shrink


CASES: dict[str, Callable[[Path], None]] = {
    "pair set": pair_set,
    "records": records,
    "checkpoint": saved_checkpoint,
    "npz": arrays,
    "torch": foreign(foreign_files.write_torch),
    "torch legacy": foreign(foreign_files.write_torch_legacy),
    "jittor": foreign(foreign_files.write_jittor),
    "mxnet": foreign(foreign_files.write_mxnet),
    "safetensors": foreign(foreign_files.write_safetensors),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_names_the_file(tmp_path, name):
    command = [sys.executable, "-m", "common.tests.io.test_shrinking", name, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path) in done.stdout


if __name__ == "__main__":
    try:
        CASES[sys.argv[1]](Path(sys.argv[2]))
    except ValueError as error:
        print(error)
    else:
        sys.exit("read")
