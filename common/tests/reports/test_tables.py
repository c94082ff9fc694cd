"""Tables of made-up runs beside published figures, against numbers worked out by hand."""

import dataclasses
import json
from functools import partial

import pytest

from common.config import to_json
from common.evaluation.results import save_evaluation
from common.recipes import RECIPES
from common.reports.published import WITHOUT_ROW
from common.tests.reports.made_runs import Page, command, printed_by, refused, train_line, write_log
from common.tests.reports.test_comparison import evaluation

STEPS = 40
EVERY_SET = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "sllfw", "talfw")
HEAD = "| recipe | set | figure | pytorch | mxnet | jittor |"
PUBLISHED = " published | pytorch - published | mxnet - published | jittor - published |"


def make_run(folder, recipe="casia-r50", backend="pytorch", seed=0, wrong=None, optimiser=None, epochs=None):
    """A finished run; `wrong`: pairs in a hundred that each set gets wrong, from 0 to 5, by its name."""
    folder.mkdir(parents=True)
    config = dataclasses.replace(RECIPES[recipe](), seed=seed, device=f"cuda:{seed}")
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, **(optimiser or {})))
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    (folder / "environment.json").write_text(json.dumps({"backend": {"name": backend}}))
    whole = config.optimiser.epochs if epochs is None else epochs
    write_log(folder, [train_line(s, epoch=whole * s / STEPS, seconds=s, loss=1.0) for s in range(1, STEPS + 1)])
    for name, count in (wrong or {}).items():
        save_evaluation(folder / "evaluation", evaluation(count, name), STEPS)
    return folder


def tables(capsys, *arguments):
    """Status, lines of output, and errors of the command."""
    status, out, error = command("tables", capsys, *arguments)
    return status, out.splitlines(), error


rejected = partial(refused, "tables")


def test_one_row(tmp_path, capsys):
    """Three seeds in PyTorch, one of them not evaluated on CALFW, and one run in Jittor."""
    runs = [
        make_run(tmp_path / "p0", seed=0, wrong={**dict.fromkeys(EVERY_SET, 0), "lfw": 1}),
        make_run(tmp_path / "p1", seed=1, wrong={**dict.fromkeys(EVERY_SET, 2), "lfw": 2}),
        make_run(tmp_path / "p2", seed=2, wrong={n: 4 for n in EVERY_SET if n != "calfw"} | {"lfw": 3}),
        make_run(tmp_path / "j0", backend="jittor", wrong=dict.fromkeys(EVERY_SET, 5)),
    ]
    status, out, error = tables(capsys, *runs)
    assert (status, error) == (0, "")
    # 99, 98 and 97: mean 98, deviations 1, 0 and 1, so the root of 2/3
    # 100, 98 and 96: mean 98, the root of 8/3; 100 and 98: mean 99, both 1 away
    spread = "98.00 ± 1.63 (3) |  | 95.00 |"
    assert out == [
        HEAD,
        "| " + " | ".join(["---"] * 6) + " |",
        "| casia-r50 | LFW | accuracy | 98.00 ± 0.82 (3) |  | 95.00 |",
        f"| casia-r50 | CFP-FP | accuracy | {spread}",
        f"| casia-r50 | AgeDB-30 | accuracy | {spread}",
        "| casia-r50 | CALFW | accuracy | 99.00 ± 1.00 (2) |  | 95.00 |",
        f"| casia-r50 | CPLFW | accuracy | {spread}",
        f"| casia-r50 | SLLFW | accuracy | {spread}",
        f"| casia-r50 | TALFW | accuracy | {spread}",
        "",
        "- All in percent. Several seeds: mean ± population standard deviation (number of seeds). Differences in "
        "points, ours - published. An empty cell: not known. –: the pairs are too few to measure the rate. *: settings "
        "were changed, see below.",
        f"- {runs[2]}: not evaluated on CALFW.",
        "- No published figure here is taken from the paper itself, and the READMEs of the three published codes state "
        "no result. The following figures belong to no row, so no run is held against them:",
        *(f"- {note}" for note in WITHOUT_ROW),
    ]
    elsewhere = ("LFW 99.82", "YTF 96.08", "1e-6 98.61", "1e-4 87.27")
    for figure in elsewhere:
        assert figure in "\n".join(out[-1:])


def test_several_recipes_and_a_published_figure(tmp_path, capsys):
    """The published figure stands beside its row alone, with a difference; the figures of OpenCV's network do not."""
    mobile = make_run(tmp_path / "m", "casia-mobilefacenet", "mxnet", wrong={"lfw": 0, "calfw": 5})
    demo = make_run(tmp_path / "d", "orl-demo", "numpy", wrong={"orl": 1, "mlfw": 2})
    large = make_run(tmp_path / "r", "ms1mv2-r100", wrong={"lfw": 1, "mlfw": 5})
    other = make_run(tmp_path / "j", "ms1mv2-r100", "jittor", wrong={"lfw": 1})
    out = tables(capsys, large, other, mobile, demo)[1]
    assert out[0] == f"{HEAD[:-1]}| numpy |{PUBLISHED} numpy - published |"
    assert "| ms1mv2-r100 | MLFW | accuracy | 95.00 |  |  |  | 91.57 [1] | +3.43 |  |  |  |" in out
    assert "| ms1mv2-r100 | LFW | accuracy | 99.00 |  | 99.00 |  |  |  |  |  |  |" in out
    assert "| casia-mobilefacenet | LFW | accuracy |  | 100.00 |  |  |  |  |  |  |  |" in out
    assert [line for line in out if line.startswith("| orl-demo")] == [
        "| orl-demo | orl | accuracy |  |  |  | 99.00 |  |  |  |  |  |",
        "| orl-demo | MLFW | accuracy |  |  |  | 98.00 |  |  |  |  |  |",
    ]
    assert "- [1] hyper.ai's copy of Papers with Code, for MLFW (arXiv:2109.05804)." in out
    assert f"- {other}: not evaluated on CFP-FP, AgeDB-30, CALFW, CPLFW, SLLFW, TALFW, MLFW." in out
    assert f"- {demo}: " not in "\n".join(out)
    assert "wizwand" in "\n".join(out)
    assert "wizwand" not in "\n".join(tables(capsys, demo)[1]), "it reproduces no row"


def test_an_evaluation_before_the_end_does_not_count(tmp_path, capsys):
    run = make_run(tmp_path / "run", wrong=dict.fromkeys(EVERY_SET, 0))
    save_evaluation(run / "evaluation", evaluation(0, "lfw"), 30)
    save_evaluation(run / "evaluation", evaluation(0, "lfw"), STEPS, method="raw_pixels")
    out = tables(capsys, run)[1]
    assert "| casia-r50 | LFW | accuracy |  |  |  |" in out
    assert f"- {run}: LFW left out, evaluated at step 30 of 40." in out
    assert "not evaluated on" not in "\n".join(out)


def test_changed_settings_are_marked_and_named(tmp_path, capsys):
    run = make_run(tmp_path / "run", wrong={"lfw": 0}, optimiser={"learning_rate": 0.05, "max_steps": STEPS}, epochs=2)
    out = tables(capsys, run)[1]
    assert "| casia-r50* | LFW | accuracy | 100.00 |  |  |" in out
    changes = "optimiser.learning_rate: 0.1 -> 0.05; optimiser.max_steps: None -> 40"
    assert f"- {run}: not the recipe as it is: {changes}." in out


# ---- other protocols ----


def write_protocol(run, stem, rates, **record):
    tar = {far: {"rate": rate, "false_rate": 0.0, "threshold": 0.5} for far, rate in rates.items()}
    found = {"tar": tar} if stem.startswith("megaface") else {"one_to_one": {"tar": tar}}
    (run / "evaluation" / f"{stem}.json").write_text(json.dumps({"set": stem, **found, **record}))


def test_ijb_and_megaface(tmp_path, capsys):
    run = make_run(tmp_path / "run", wrong={"lfw": 0})
    write_protocol(run, "ijbc", {"0.0001": 0.8827, "1e-05": 0.5, "1e-06": None})
    write_protocol(run, "ijbb", {}, one_to_one=None)
    write_protocol(run, "megaface-1000000-1", {"1e-06": 0.95}, step=STEPS)
    write_protocol(run, "megaface-1000-2", {"1e-06": 0.99})
    out = tables(capsys, run)[1]
    assert "| casia-r50 | IJB-C | TAR@FAR=1e-4 | 88.27 |  |  |" in out
    assert "| casia-r50 | IJB-C | TAR@FAR=1e-5 | 50.00 |  |  |" in out
    assert "| casia-r50 | IJB-C | TAR@FAR=1e-6 | – |  |  |" in out  # the pairs are too few to measure it
    assert "| casia-r50 | MegaFace | TAR@FAR=1e-6 | 95.00 |  |  |" in out
    assert "| casia-r50 | megaface-1000-2 | TAR@FAR=1e-6 | 99.00 |  |  |" in out
    assert "IJB-B" not in "\n".join(out)
    assert "IJB-C" not in next(line for line in out if "not evaluated on" in line)

    write_protocol(run, "megaface-1000000-1", {"1e-06": 0.95}, step=STEPS - 1)
    assert "| MegaFace |" not in "\n".join(tables(capsys, run)[1])


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"one_to_one": {"tar": [1]}}', '{"one_to_one": {"tar": {"0.1": {"rate": "often"}}}}']
)
def test_damaged_protocols(tmp_path, capsys, content):
    run = make_run(tmp_path / "run", wrong={"lfw": 0})
    (run / "evaluation" / "ijbb.json").write_text(content)
    assert f"error: {run / 'evaluation' / 'ijbb.json'}: expected " in rejected(capsys, run)


@pytest.mark.parametrize("rates", [{"0.1": 1.5}, {"0.1": -0.5}, {"2": 0.5}, {"0.1": float("nan")}])
def test_rates_that_are_none(tmp_path, capsys, rates):
    run = make_run(tmp_path / "run", wrong={"lfw": 0})
    write_protocol(run, "ijbb", rates)
    assert "expected rates from 0 to 1" in rejected(capsys, run)


# ---- what cannot stand in one table ----


def test_runs_of_one_recipe_must_be_alike(tmp_path, capsys):
    one = make_run(tmp_path / "one", wrong={"lfw": 0})
    other = make_run(tmp_path / "other", backend="mxnet", optimiser={"learning_rate": 0.05})
    expected = f"error: {one} and {other} differ in optimiser.learning_rate: 0.1 -> 0.05\n"
    assert rejected(capsys, one, other) == expected
    shorter = make_run(tmp_path / "shorter", backend="mxnet")
    write_log(shorter, [train_line(20, epoch=100, seconds=1)])
    assert "differ in size of the training set, by the last step: 40 -> 20" in rejected(capsys, one, shorter)
    twin = make_run(tmp_path / "twin")
    assert f"{one} and {twin} are both pytorch with seed 0: give one" in rejected(capsys, one, twin)


def test_a_batch_in_parts_is_the_same_recipe_and_is_named(tmp_path, capsys):
    one = make_run(tmp_path / "one", wrong={"lfw": 0})
    other = make_run(tmp_path / "other", backend="mxnet", optimiser={"accumulate": 2}, wrong={"lfw": 1})
    out = tables(capsys, one, other)[1]
    assert "| casia-r50* | LFW | accuracy | 100.00 | 99.00 |  |" in out
    assert f"- {other}: not the recipe as it is: optimiser.accumulate: 1 -> 2." in out


def test_what_is_no_finished_run(tmp_path, capsys):
    assert "expected a run folder" in rejected(capsys, tmp_path)
    assert "expected run folders" in rejected(capsys)
    run = make_run(tmp_path / "run", epochs=50)
    assert "expected a finished run, its log ends at epoch 50.00 of 100" in rejected(capsys, run)


# ---- files ----


def test_html_has_the_cells_of_the_markdown(tmp_path, capsys):
    run = make_run(tmp_path / "run", "ms1mv2-r100", wrong={"lfw": 0, "<b>|x": 1})
    page = tmp_path / "tables.html"
    out = tables(capsys, run, "--out", page)[1]
    assert "91.57" in page.with_suffix(".md").read_text("utf-8")

    found = Page(page)
    assert not set(found.tags) & {"script", "link", "img", "a", "b"}
    cells = [line[2:].removesuffix(" |").split(" | ") for line in out if line.startswith("| ") and "---" not in line]
    shown = [[cell.replace("\\|", "|").replace("&lt;", "<").strip() for cell in line] for line in cells]
    assert [[cell.strip() for cell in row] for row in found.rows][: len(shown) - 1] == shown[:-1]
    assert "| ms1mv2-r100 | &lt;b>\\|x | accuracy | 99.00 |  |  |  |  |  |  |" in out
    assert "91.57 [1]" in page.read_text("utf-8")


def test_other_kinds_of_file(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert "with --out a file .html" in rejected(capsys, run, "--out", tmp_path / "tables.pdf")


def test_command_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", wrong={"lfw": 1})
    expected = tables(capsys, run)[1]
    assert printed_by("tables", run).splitlines() == expected
