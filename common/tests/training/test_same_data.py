"""A run has one folder to itself, and keeps its training set over stops and over ranks."""

import dataclasses
import os

import pytest

from common.datasets.training_sets import open_dataset
from common.tests.numpy_trainer import NumpyTrainer
from common.tests.training.test_loop import configured, faces, run
from common.training.loop import fit
from common.training.run_folder import only_writer

__all__ = ["faces"]


def test_a_run_does_not_go_on_with_another_set(faces, tmp_path):
    """As many images of as many people, but in other classes."""
    root = tmp_path / "set"
    for label in range(6):
        (root / str(label)).mkdir(parents=True)
    for index in range(48):
        (root / str(index % 6) / f"{index}.png").write_bytes(open_dataset(faces).sample(index).encoded)
    config = configured(root)
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, max_steps=10))
    run(config, tmp_path / "run")
    (root / "0" / "0.png").rename(root / "1" / "0.png")
    longer = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, max_steps=12))
    with pytest.raises(ValueError, match=r"began with 48 images \(labels \w+\), but .* holds 48 \(labels \w+\)"):
        run(longer, tmp_path / "run")
    (root / "1" / "0.png").rename(root / "0" / "0.png")
    run(longer, tmp_path / "run")
    (root / "0" / "1000.png").write_bytes(open_dataset(faces).sample(0).encoded)
    with pytest.raises(ValueError, match="began with 48 images .* holds 49"):
        run(longer, tmp_path / "run")


def test_two_runs_do_not_write_to_one_folder(faces, tmp_path):
    with only_writer(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} on .* trains in it"):
        run(configured(faces), tmp_path)
    run(configured(faces), tmp_path)


def test_ranks_with_other_data_do_not_start(faces, tmp_path):
    class Two:
        rank, count = 0, 2

        def total(self, number: int) -> int:
            return 2 * number + 1

    trainer = NumpyTrainer(configured(faces), 6)
    trainer.ranks = Two()
    with pytest.raises(ValueError, match=r"rank 0 found 48 images \(keys \w+\), which others did not"):
        fit(trainer, open_dataset(faces), configured(faces), tmp_path)
