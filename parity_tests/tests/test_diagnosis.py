"""Each mistake, planted in the NumPy example, is named by the rows that it breaks; another error is not."""

from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from parity_tests import suite, worker
from parity_tests.cases.heads import head_cases
from parity_tests.comparison import Row
from parity_tests.diagnosis import MISTAKES, mistaken_truth, usual_causes
from parity_tests.faults import FAULTS
from parity_tests.processes import ROOT

G = "    g = push\n    g[own] -= pull[own]\n"
# fmt: off
EDITS = {  # of examples/numpy_parity.py; by the name of the mistake
    "r not detached": [(G, """    slope = 1 / np.sqrt(1 - cosines**2)
    g = push + cosines * inter_slope * push * (scale - push) / scale * slope
    g[own] = (-pull + cosines * intra_slope * pull * (scale - pull) / scale * slope)[own]
""")],
    "a and b swapped": [("(theta - intra_center)", "(theta - inter_center_)"),
                        ("(theta - inter_center)", "(theta - intra_center)"), ("center_)", "center)")],
    "slope 64": [("sigmoid(intra_slope *", "sigmoid(64 *")],
    "no scale": [("pull = scale * sig", "pull = sig"), ("push = scale * sig", "push = sig")],
    "cosine for angle": [("np.arccos(cosines)", "cosines")],
    "degrees for radians": [("np.arccos(cosines)", "np.degrees(np.arccos(cosines))")],
    "scale inside arccos": [("np.arccos(cosines)", "np.arccos(np.clip(cosines * scale, -1, 1))")],
    "prototypes not normalised": [("unit_w, norm_w = normalise(class_weight)", "unit_w = class_weight"), (
        "through_norm(g.T @ unit_x, unit_w, norm_w)", "g.T @ unit_x"),
        ("    g /= ", "    g[np.abs(cosines) == 1] = 0\n    g /= ")],
    "no tangent projection": [("(gradient - radial * unit)", "gradient")],
    "target in the inter sum": [("    push[own] = 0\n", "")],
    "sign of the pull": [("pull = scale", "pull = -scale")],
    "sum for mean": [("np.mean(", "np.sum("), ("    g /= len(labels)\n", "")],
    "no sample weight": [],  # `weighted` has it
}
# fmt: on


def example(edits, *, name: str = "numpy_parity") -> ModuleType:
    source = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    for old, new in edits:
        assert old in source, old
        source = source.replace(old, new)
    module = ModuleType(name)
    exec(source, module.__dict__)
    return module


def weighted(module: ModuleType, *, ignores: bool) -> SimpleNamespace:
    """The NumPy example with `reduction` and `sample_weight`, a sample at a time."""

    def sface(embeddings, class_weight, labels, *, form, block_size, reduction="mean", sample_weight=None, **numbers):
        each = [module.sface(embeddings[[i]], class_weight, labels[[i]], **numbers) for i in range(len(labels))]
        factors = np.ones(len(labels)) if ignores or sample_weight is None else sample_weight
        factors = factors / len(labels) if reduction == "mean" else factors
        out = {name: factors * [one[name] for one in each] for name in ("loss", "intra_loss", "inter_loss")}
        if reduction != "none":
            out = {name: np.sum(values) for name, values in out.items()}
        out["grad_embeddings"] = factors[:, None] * np.concatenate([one["grad_embeddings"] for one in each])
        out["grad_class_weight"] = sum(f * one["grad_class_weight"] for f, one in zip(factors, each, strict=True))
        return out

    return SimpleNamespace(sface=sface)


@pytest.fixture
def failed(monkeypatch):
    """The failed rows of a module, which answers in this process."""

    def of(module) -> list[Row]:
        def ask(_backend, cases, _root):
            with np.errstate(all="ignore"):
                return {name: worker.answer_or_reason(module, case, may_lack=True) for name, case in cases.items()}

        monkeypatch.setattr(suite, "ask", ask)
        return [row for row in suite.run(["module"], (1, 2, 3), quick=True) if row.status == "failed"]

    return of


def test_the_mistakes_are_faults_that_the_suite_finds():
    planted = {fault.name.partition(",")[0] for fault in FAULTS["pytorch"]}
    assert set(EDITS) == set(MISTAKES)
    assert set(MISTAKES) <= planted


@pytest.mark.parametrize("name", EDITS)
def test_a_mistake_is_named(failed, name):
    module = example(EDITS[name])
    rows = failed(weighted(module, ignores=True) if name == "no sample weight" else module)
    notes = {row.note for row in rows if "edges" not in row.quantity}
    assert MISTAKES[name].sentence in notes
    assert notes <= {MISTAKES[name].sentence, ""}


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_mistake_in_autograd_is_named(failed):
    module = example([("with torch.no_grad():", "with torch.enable_grad():")], name="pytorch_parity")
    assert MISTAKES["r not detached"].sentence in {row.note for row in failed(module)}


def test_the_example_alone_does_not_fail(failed):
    assert failed(example([])) == []
    assert failed(weighted(example([]), ignores=False)) == []


@pytest.mark.parametrize(
    "edit", [("np.sum(push * cosines, axis=1)", "np.sum(push * cosines, axis=1) * 1.001"), ("scale * sig", "63 * sig")]
)
def test_another_error_has_no_sentence(failed, edit):
    rows = failed(example([edit]))
    assert rows
    assert {row.note for row in rows} == {""}


def test_zeros_have_no_sentence():
    """With a and b swapped, this loss is nearly 0."""
    (case,) = (case for case in head_cases(False) if case.name == "sface-casia-plain-float32")
    assert usual_causes(case, ["sface plain: loss"], {"loss": np.float32(0)}) == {"sface plain: loss": ""}


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (("np.mean(-pull[own] * cosines[own])", "-pull[own] * cosines[own]"), "intra_loss: expected the shape (), got"),
        (("scale * sig", "np.nan * sig"), "loss is not finite"),
        (('"inter_loss": inter_loss', '"inter": inter_loss'), "gave no inter_loss, only loss, intra_loss, inter, grad"),
        (('"loss": intra', '"loss": 1j * intra'), "TypeError: sface: expected a NumPy array of real numbers as loss"),
        ((G, "    return 1\n" + G), "TypeError: sface: expected a dict of NumPy arrays, got int"),
    ],
)
def test_what_is_wrong_with_an_output_is_said(failed, edit, note):
    assert any(row.note.startswith(note) for row in failed(example([edit])))


def test_an_edit_that_does_not_fit_the_truth_is_an_error(monkeypatch):
    for name in MISTAKES:
        mistaken_truth(name)
    monkeypatch.setitem(MISTAKES, "other", MISTAKES["sum for mean"]._replace(edits={"no such text": ""}))
    with pytest.raises(ValueError, match="other: expected 'no such text' once in truth/sface.py, got 0"):
        mistaken_truth("other")
