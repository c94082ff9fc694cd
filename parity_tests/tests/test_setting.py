"""--device and --precision: what backends are told, what they decline, and that reduced precision is still checked."""

import json
import re
import shutil

import numpy as np
import pytest

from common.backend import CAPABILITIES, Backend
from common.config import RunConfig
from parity_tests import suite, worker
from parity_tests.__main__ import main
from parity_tests.cases.trajectories import NUM_CLASSES, train_config, train_inputs
from parity_tests.comparison import as_arrays
from parity_tests.conftest import COVERED
from parity_tests.faults import Fault, plant
from parity_tests.processes import ROOT
from parity_tests.setting import REDUCED, Setting
from parity_tests.tolerances import TOLERANCES

BF16 = Setting("cpu", "bf16")
USE = """
def use(device, precision, kind):
    global told
    told = f"{device} {precision}"
    return "no double products" if (precision, kind) == ("fp64", "sface") else None


def describe():
    return {"told": told}
"""


@pytest.mark.parametrize("options", [("--device", "gpu"), ("--device", "cuda:x"), ("--precision", "fp64")])
def test_wrong_options_are_named(options, capsys):
    assert main(list(options)) == 2
    assert capsys.readouterr().err.startswith(f"error: {options[0][2:]}: expected ")


@pytest.mark.usefixtures("answers_in_forks")
def test_a_device_that_is_not_there_is_one_row_and_no_success(backend, capsys):
    assert main(["--backends", backend, "--device", "cuda:99", "--levels", "1", "5"]) == 1
    page = capsys.readouterr().out
    assert page.startswith("Device cuda:99, precision fp32.\n")
    assert "| 0 | every row |  | not provided: device: cuda:99 asked for, but " in page
    assert "0 of 0 comparisons hold; 1 not provided" in page
    assert "error: expected a comparison, got none" in page


@pytest.mark.usefixtures("answers_in_forks")
@pytest.mark.parametrize("precision", REDUCED)
def test_a_precision_that_is_not_offered_is_a_row_with_the_reason(backend, precision):
    described, rows = suite.start([backend], setting=Setting("cpu", precision))
    offered = precision in CAPABILITIES[backend].precisions
    assert list(described) == [backend] * offered
    assert [row.status for row in rows] == ["not provided"] * (not offered)
    assert all(precision in row.note for row in rows)
    assert not any("got tf32;" in row.note for row in rows)  # no other backend that offers it


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of somebody else's that takes any device."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text((ROOT / "examples" / "numpy_parity.py").read_text("utf-8") + USE)
    return tmp_path


def test_a_backend_is_told_and_may_decline_kinds_of_cases(mine, capsys):
    assert main(["--backends", "mine", "--device", "cuda:3", "--levels", "2", "3", "--out", "out"]) == 0
    page = capsys.readouterr().out
    assert "- mine: told cuda:3 fp32" in page
    assert re.search(r"\| sface plain: grad_embeddings \| float32 \| \d", page)
    assert re.search(r"\| sface: intra_weight \| float64 \| \d", page)
    assert re.search(r"\| 3 \|.* sface plain.* \| float64 \| not provided: no double products \|", page)
    environment = json.loads((mine / "out" / "parity.json").read_text())["environment"]
    assert (environment["device"], environment["precision"]) == ("cuda:3", "fp32")


def test_reduced_precision_has_float32_rows_and_names_what_it_leaves_out(mine):
    rows = suite.run(["mine"], setting=BF16, backbones=["iresnet_small"])
    assert {row.dtype for row in rows} == {"float32"}
    assert {row.level for row in rows if row.status == "passed"} == {1, 2, 3}
    left_out = [row for row in rows if row.level > 5]
    assert [(row.level, row.status) for row in left_out] == [(level, "not provided") for level in (6, 7, 8)]
    assert all(row.note.startswith("in bf16: ") for row in left_out)


def test_a_backend_without_the_function_is_told_nothing(mine):
    (mine / "mine.py").write_text((ROOT / "examples" / "numpy_parity.py").read_text("utf-8"))
    assert "device and precision" in suite.start(["mine"], setting=BF16)[0]["mine"]["use"]


def test_a_trainer_has_them_in_its_configuration():
    class Adapter:
        @staticmethod
        def create_trainer(config: RunConfig, num_classes: int):
            raise ZeroDivisionError(f"{config.device} {config.precision} {num_classes}")

    case = as_arrays(train_inputs(train_config("float64"), 0, 0, 0.1))
    for setting, told in ((Setting(), "cpu fp64"), (Setting("cuda:1"), "cuda:1 fp64")):
        with pytest.raises(ZeroDivisionError, match=f"{told} {NUM_CLASSES}"):
            worker.answer(Adapter, case | setting.given("float64"))


FAULTS = (
    Fault(
        "the head under autocast",
        3,
        "losses/sface.py",
        "autocast(embeddings.device.type, enabled=False)",
        "enable_grad()",
    ),
    Fault("the head in bfloat16", 1, "losses/sface.py", "promote_types(class_weight.dtype, torch.float32)", "bfloat16"),
    Fault("no shortcut", 4, "backbones/iresnet.py", "conv2(x)) + shortcut", "conv2(x)) + 0 * shortcut"),
    Fault("pixel scale ten times off", 5, "trainer.py", "- 127.5) / 128", "- 127.5) / 12.8"),
)


@pytest.mark.usefixtures("answers_in_forks")
@pytest.mark.skipif("pytorch" not in COVERED, reason="pytorch is left out")
@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda fault: fault.name if fault else "none")
def test_bfloat16_holds_and_faults_are_found(fault, tmp_path):
    package = Backend("pytorch").package
    shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("tests"))
    if fault:
        plant(tmp_path / package, fault)
    levels = (fault.level,) if fault else (1, 2, 3, 4, 5)
    rows = suite.run(["pytorch"], levels, ["iresnet_small"], quick=True, root=tmp_path, setting=BF16)
    assert {row.level for row in rows} == set(levels)
    assert any(row.status == "failed" and np.isfinite(row.error) for row in rows) == bool(fault)
    assert fault or {row.status for row in rows} == {"passed"}


def test_values_that_float16_cannot_hold_are_not_compared(monkeypatch):
    monkeypatch.setitem(REDUCED, "fp16", REDUCED["fp16"]._replace(largest=1.0))
    checks = suite.backbone_cases.__wrapped__("iresnet_small", precision="fp16")[0].checks
    assert {check.impossible for check in checks} == {"fp16 has no numbers this large"}


def test_a_measured_error_stands_in_the_table_of_a_run():
    """Below float32 and on CUDA, where nobody else's run shows it."""
    pages = (ROOT / "docs" / "measurements").glob("parity*.md")
    sections = [
        part for page in pages for part in re.split(r"^(?=Device )", page.read_text("utf-8"), flags=re.MULTILINE)
    ]
    for name, tolerance in TOLERANCES.items():
        for key, error in tolerance.measured.items():
            device, precision = key.split()
            if key not in ("cpu fp64", "cpu fp32"):
                title = f"Device {device}, precision {precision}."
                assert any(s.startswith(title) and f"{error:.1e} / " in s for s in sections), (name, key)
