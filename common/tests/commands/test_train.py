"""A training command that ends with status 0 leaves a log and a checkpoint, whatever its framework did."""

from types import SimpleNamespace

import pytest

from common.backend import Backend
from common.commands import train
from common.commands.main import main
from common.training.run_log import LOG


class Launching(Backend):
    """Starts ranks, which end with status 0 and leave the files that they are told to."""

    def __init__(self, folder, files):
        super().__init__("numpy")
        self.__dict__.update(folder=folder, files=files)

    def module(self, name):
        return SimpleNamespace(needs_launcher=lambda device: True, launch=self.launch)

    def launch(self, devices, command):
        for file in self.files:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).touch()


@pytest.mark.parametrize(("files", "missing"), [([], "log"), ([LOG], "checkpoint")])
def test_ranks_that_left_nothing(tmp_path, capsys, files, missing):
    command = ["train", "lfw-small", "--devices", "2", "--out", str(tmp_path)]
    assert main(Launching(tmp_path, files), command) == 2
    assert f"error: training ended without an error, but there is no {missing} in {tmp_path}" in capsys.readouterr().err


def test_a_loop_that_left_nothing(tmp_path, capsys, monkeypatch):
    trainer = SimpleNamespace(ranks=SimpleNamespace(rank=0))
    monkeypatch.setattr(train, "fit", lambda *_: None)
    monkeypatch.setattr(Backend, "create_trainer", lambda *_: trainer)
    two = {"num_classes": 2, "__len__": lambda _: 2, "notes": []}
    monkeypatch.setattr(train, "open_dataset", lambda *_: type("Set", (), two)())
    assert main(Backend("numpy"), ["train", "lfw-small", "--out", str(tmp_path)]) == 2
    assert "there is no log" in capsys.readouterr().err
