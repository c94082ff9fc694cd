"""What `train` says before the first step, and that one that ends with status 0 leaves a log and a checkpoint."""

import sys
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


def test_a_missing_framework_is_named_before_missing_data(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(Backend("pytorch"), ["train", "orl-demo", "--data.root", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: PyTorch is not installed; pip install -r requirements/pytorch.txt\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lfw-smal",), "got 'lfw-smal'; did you mean lfw-small?"),
        (("LFW_Small2",), "got 'LFW_Small2'; did you mean lfw-small?"),
        (("mnist",), "got 'mnist'\n"),
        (("orl-demo",), "found none; python -m data orl --out datasets/orl makes it\n"),
        (("lfw_finetune", "--data.root", "here"), "found none; python -m data lfw --out here makes it\n"),
        (("casia-r50",), "found none; `reproduce casia-r50 --check` says who distributes it"),
        (("orl-demo", "--name", "own"), "found none\n"),
        (("orl-demo", "--data.root", "."), "found none of them\n"),
        (("orl-demo", "--optimizer.batch-size", "0"), "optimiser.batch_size: expected at least 1, got 0"),
        (("orl-demo", "--optimizer.learning-rate=-1"), "optimiser.learning_rate: expected a positive number"),
        (("orl-demo", "--head.name", "normalized-softmax"), "expected a folder at datasets/orl"),
    ],
)
def test_what_was_meant_and_what_is_missing(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(Backend("numpy"), ["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_field_that_was_meant(capsys):
    with pytest.raises(SystemExit):
        main(Backend("numpy"), ["train", "orl-demo", "--optimizer.batchsize", "3"])
    assert "--optimiser.batch-size" in capsys.readouterr().err


def test_a_row_with_an_underscore(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(Backend("numpy"), ["reproduce", "casia_r50"]) == 2
    assert "expected a folder at datasets/casia" in capsys.readouterr().err
