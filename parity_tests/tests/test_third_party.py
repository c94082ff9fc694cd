"""A module of somebody else's, as docs/parity.md says: where it may lie, what it may lack, how it may end."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from parity_tests import processes, suite, worker
from parity_tests.__main__ import main
from parity_tests.cases.inputs import planted
from parity_tests.comparison import ERROR, NOT_PROVIDED, as_arrays
from parity_tests.known import read_known
from parity_tests.processes import ROOT

LOSS = (ROOT / "examples" / "numpy_parity.py").read_text("utf-8")
GIVEN = {"scale": 64, "intra_slope": 80, "inter_slope": 80, "intra_center": 0.87, "inter_center": 1.2, "form": "plain"}
CASE = as_arrays({"kind": "sface", **planted(4, 5, 6)._asdict(), "dtype": "float64", **GIVEN})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's folder, which is the current one; `my_loss.py` in it is the NumPy example."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loss.py").write_text(LOSS)
    return tmp_path


@pytest.fixture
def command(folder, capsys):
    """The suite's command in the user's folder: its status, and what it prints."""

    def run(*arguments: str) -> tuple[int, str]:
        return main(list(arguments)), capsys.readouterr().out

    return run


def asked(backend: str, *names: str) -> dict:
    return processes.ask(backend, dict.fromkeys(names or ("case",), CASE))


def changed(folder, old: str, new: str) -> None:
    assert old in LOSS
    (folder / "my_loss.py").write_text(LOSS.replace(old, new))


@pytest.mark.parametrize("place", ["", "my_project", "elsewhere/my_project"])
def test_a_module_is_found_in_the_current_folder_and_on_the_users_path(folder, monkeypatch, place):
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / "parity.py").write_text(LOSS.replace('"device": "cpu"', '"device": "mine"'))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    name = "my_project.parity" if place else "parity"
    assert suite.start([name])[0][name]["device"] == "mine"


def test_the_command_runs_in_a_users_folder(folder):
    arguments = ["-m", "parity_tests", "--backends", "my_loss", "--levels", "2"]
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "- my_loss: version" in done.stdout
    assert done.stdout.endswith("\n4 of 4 comparisons hold; covered: my_loss\n")


def test_the_package_under_test_is_not_the_users(folder):
    (folder / "common").mkdir()
    (folder / "common" / "__init__.py").write_text("raise SystemExit('a wrong package')")
    assert "loss" in asked("my_loss")["case"]


def test_a_loss_needs_numpy_only(folder, monkeypatch):
    """The interpreter of a user has what the user's framework needs, and no more."""
    code = """import sys
sys.modules |= dict.fromkeys(("cv2", "sklearn", "safetensors", "tyro", "tqdm", "onnx", "tensorboard"))
from parity_tests import worker
sys.exit(worker.main(sys.argv[1:]))"""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\nshift 3\nexec {sys.executable} -P -c '{code}' \"$@\"\n")
    python.chmod(0o755)
    monkeypatch.setenv("SFACE_PYTHON_MY_LOSS", str(python))
    assert "loss" in asked("my_loss")["case"]


def test_an_interpreter_that_is_not_there_is_a_failed_row(folder, monkeypatch):
    monkeypatch.setenv("SFACE_PYTHON_MY_LOSS", "/no/such/python")
    described, (row,) = suite.start(["my_loss"])
    assert described == {}
    assert row.status == "failed"
    assert row.note.startswith("its process ended with 127 as it started: [Errno 2]")


def test_a_function_that_is_not_there_or_gives_none_is_not_provided(folder):
    margin = CASE | as_arrays({"kind": "margin", "head": "arcface", "step": 0})
    assert processes.ask("my_loss", {"case": margin})["case"][NOT_PROVIDED] == "margin_head"
    changed(folder, "def sface(", "def margin_head(*_, step):\n    return None\n\n\ndef sface(")
    assert processes.ask("my_loss", {"case": margin})["case"][NOT_PROVIDED] == "margin_head of this"


def test_a_module_that_provides_nothing_fails(folder, command):
    (folder / "my_loss.py").write_text("")
    status, page = command("--backends", "my_loss", "--levels", "2")
    assert status == 1
    assert "error: my_loss: expected a function of docs/parity.md that these levels ask for, found none" in page


def test_a_backend_of_the_project_must_provide_all():
    found = worker.answer_or_reason(SimpleNamespace(), CASE, may_lack=False)
    assert str(found[ERROR]).startswith("NotProvided: sface")


def test_a_case_that_raises_has_an_error_and_the_others_answers(folder):
    changed(folder, "    unit_x, ", "    if len(labels) == 3:\n        raise ValueError('three')\n    unit_x, ")
    three = as_arrays({**CASE, **planted(3, 5, 6)._asdict()})
    found = processes.ask("my_loss", {"a": CASE, "b": three, "c": CASE})
    assert str(found["b"][ERROR]).startswith("ValueError: three\nTraceback")
    assert "loss" in found["a"]
    assert "loss" in found["c"]


CRASH = "    if len(labels) == 3:\n        print('last words', flush=True)\n        os.abort()\n    unit_x, "


def test_a_case_that_ends_the_process_has_its_last_words_and_the_others_answers(folder):
    (folder / "my_loss.py").write_text("import os\n" + LOSS.replace("    unit_x, ", CRASH))
    three = as_arrays({**CASE, **planted(3, 5, 6)._asdict()})
    found = processes.ask("my_loss", {"a": CASE, "b": three, "c": CASE})
    assert str(found["b"][ERROR]).splitlines()[0] == "its process ended with SIGABRT at b: last words"
    assert "loss" in found["a"]
    assert "loss" in found["c"]


def test_a_process_that_ends_again_and_again_is_given_up(folder):
    (folder / "my_loss.py").write_text("import os\n" + LOSS.replace("    unit_x, ", "    os._exit(0)\n    unit_x, "))
    found = asked("my_loss", *"abcdefg")
    ends = {name: str(answer[ERROR]) for name, answer in found.items()}
    assert ends["a"] == "its process ended with 0 at a"  # a status of 0 without an answer is an error as well
    assert ends["d"] == ends["g"] == "its process ended with 0 at d"


def test_a_backend_that_cannot_start_is_a_row_and_the_others_rows_are_there(folder, command):
    status, page = command("--backends", "nosuch,my_loss", "--levels", "2")
    assert status == 1
    assert "**FAILED** (describe), its process ended with 1 as it started: ModuleNotFoundError" in page
    assert "4 of 5 comparisons hold; 1 failed; covered: nosuch, my_loss" in page
    assert "    ModuleNotFoundError: No module named 'nosuch'" in page
    assert "error: a backend cannot start; to leave it out, name the others with --backends" in page


@pytest.mark.parametrize("facts", ["[1, 2]", '{"speed": float("nan")}', '{"it": object()}'])
def test_a_description_that_is_no_json_is_a_failed_row(folder, facts):
    changed(folder, '{"version": np.__version__, "device": "cpu"}', facts)
    described, (row,) = suite.start(["my_loss"])
    assert described == {}
    assert row.note.startswith(("TypeError: ", "ValueError: "))


def test_the_files(folder, command):
    status, page = command("--backends", "my_loss", "--levels", "1", "2", "--out", "out", "--junit", "out/junit.xml")
    assert status == 0
    assert (folder / "out" / "parity.md").read_text() == page
    environment = json.loads((folder / "out" / "parity.json").read_text())["environment"]
    assert environment["backends"]["my_loss"]["version"]
    assert environment["processor"]
    assert {"commit", "commit of this folder", "numpy", "python", "platform", "time"} <= set(environment)
    (suite_,) = ElementTree.parse(folder / "out" / "junit.xml").getroot()
    cases = suite_.findall("testcase")
    assert suite_.get("name") == "my_loss"
    assert (suite_.get("failures"), suite_.get("tests")) == ("0", str(len(cases)))
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert suite_.get("skipped") == str(len(skipped))
    assert {case.find("skipped").get("message") for case in skipped} >= {"not provided: margin_head"}


def test_the_page_says_what_works(folder, command):
    """The workflow for a user's repository, and the file of known failures."""
    text = (ROOT / "docs" / "parity.md").read_text("utf-8")
    (folder / "my_project").mkdir()
    (folder / "my_project" / "parity.py").write_text(LOSS)
    (arguments,) = re.findall(r"- run: python -m parity_tests (.*)", text)
    assert command(*arguments.split())[0] == 0
    (lines,) = re.findall(r"^    # TF32 .*\n    my_project.*\n", text, re.MULTILINE)
    (folder / "known.txt").write_text(lines)
    (line,) = read_known(folder / "known.txt")
    assert line.reason == "products are rounded to TF32"
    assert fnmatchcase("my_project.parity sface streamed: loss float32", line.pattern)


def test_the_list_starts_nothing(folder, command):
    status, page = command("--list", "--backends", "nosuch", "--levels", "1", "6")
    assert status == 0
    assert "| 1 | loss | 1e-11 | 1.9e-14 | 1e-05 | 2.7e-06 | float32: one ulp" in page
    assert "| 6 | initial state | same bits |  | same bits |  | drawn by NumPy" in page
    assert "head gradients" not in page
    _, page = command("--list", "--levels", "1", "4", "5", "--device", "cuda:1")
    assert "| 1 | loss | 1e-11 | not measured | 1e-05 | not measured | float32: one ulp" in page
    assert "| 5 | one step | 1e-09 | not measured | 1e-04 | not measured | relative to the step" in page
    _, page = command("--list", "--levels", "1", "4", "--precision", "bf16")
    assert "| 1 | loss | 1e-05 | " in page
    assert "| 4 | backbone gradients | 1e+00 | " in page
    assert "float64 |" not in page
