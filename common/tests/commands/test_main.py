"""The table of commands, and what `main` makes of the exceptions of a command."""

import importlib
from types import SimpleNamespace

import pytest

from common.backend import Backend
from common.commands import main as module
from common.commands.main import COMMANDS, main
from common.ranks import Stopped
from common.weights.checkpoint import DamagedCheckpoint

BACKEND = Backend("numpy")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_that_runs_it(name, capsys):
    assert callable(importlib.import_module(f"common.commands.{COMMANDS[name][0]}").run)
    assert main(BACKEND, ["--help"]) == 0
    assert f"  {name:<10}{COMMANDS[name][1]}\n" in capsys.readouterr().out


def test_a_package_may_have_commands_of_its_own(monkeypatch, capsys):
    own = {"fly": ("flying", "Fly: fly")}
    monkeypatch.setattr(Backend, "module", lambda self, name: SimpleNamespace(run=lambda *given: (name, *given)))
    assert main(BACKEND, ["fly", "high"], own) == ("flying", BACKEND, ["high"])
    assert main(BACKEND, ["--help"], own) == 0
    assert "  fly       Fly: fly\n" in capsys.readouterr().out
    assert main(BACKEND, ["fly"]) == 2
    assert main(BACKEND, ["flyy"], own) == 2
    assert "expected a command, got 'flyy'; did you mean fly?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (ValueError("7 is odd"), 2, "error: 7 is odd"),
        (DamagedCheckpoint("cut short"), 2, "error: cut short"),
        (OverflowError("too large"), 2, "error: too large"),
        (ValueError("a\x1b[2J\udce7.jpg"), 2, r"error: a\x1b[2J\udce7.jpg"),
        (FileNotFoundError("no such file"), 2, "error: no such file"),
        (ModuleNotFoundError("No module named 'x'"), 2, "; pip install -r requirements/numpy.txt"),
        (Stopped("stopped after step 3"), 130, "stopped after step 3"),
        (KeyboardInterrupt(), 130, "stopped at once"),
    ],
)
def test_an_exception_is_a_line_and_a_status(monkeypatch, capsys, raised, status, message):
    def run(backend, arguments):
        assert (backend, arguments) == (BACKEND, ["--fast"])
        raise raised

    monkeypatch.setattr(module.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert main(BACKEND, ["train", "--fast"]) == status
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
