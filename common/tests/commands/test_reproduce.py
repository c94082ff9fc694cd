"""`reproduce` with the trainer that needs no framework: what it says beforehand, what it does, what it leaves."""

import dataclasses
import json
import shutil

import pytest

from common.backend import Backend
from common.commands import reproduce
from common.commands.main import main
from common.commands.reproduce import compare_with_published, look_at_data
from common.evaluation.results import load_evaluation, save_evaluation
from common.recipes import PUBLISHED_SETS, RECIPES
from common.reports import published
from common.reports.published import (
    ACCURACY,
    EVALUATION_SETS,
    RELEASED_NOTE,
    RESULTS,
    ROWS,
    WITHOUT_ROW,
    published_result,
)
from common.tests.numpy_trainer import NumpyTrainer
from data.synthetic import make_synthetic

CODE = (
    "code: docs/specification.md in pytorch, published in MXNet; that page says where the published codes part from it"
)


def configured(name, **optimiser):
    config = ROWS[name].recipe()
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, **optimiser))


def statement(name, images=490_623, **optimiser):
    return compare_with_published(configured(name, **optimiser), ROWS[name], "pytorch", images)


# ---- against the published run ----


def test_two_devices_on_one():
    assert statement("casia-r50") == (
        [
            "global batch: 256 images a step (published: 2 devices of 128)",
            "steps: 191,600, of 490,623 images and 100 epochs",
            "learning rate: 0.1, divided by 10 at steps 100,000, 140,000, 160,000",
        ],
        [
            "BatchNorm: the statistics of 256 images, published of the 128 of a device; "
            "--optimiser.accumulate 2 takes 128",
            CODE,
        ],
    )


def test_four_devices_in_four_parts():
    assert statement("ms1mv2-r100", 5_822_653, accumulate=4) == (
        [
            "global batch: 512 images a step (published: 4 devices of 128)",
            "steps: 341,160, of 5,822,653 images and 30 epochs",
            "learning rate: 0.1, divided by 10 at steps 100,000, 160,000, 220,000",
            "gradient: the mean over the 512 images, added up in 4 parts",
            "BatchNorm: the statistics of 128 images",
        ],
        [
            "BatchNorm's running statistics: moved 4 times a step, part after part; published once a step, "
            "on each device for itself",
            CODE,
        ],
    )


def test_one_device():
    same, differs = statement("casia-mobilefacenet")
    assert "BatchNorm: the statistics of 256 images" in same
    assert differs == [CODE.replace("MXNet", "Jittor")]
    same, differs = statement("casia-mobilefacenet", accumulate=8)
    assert differs[:2] == [
        "BatchNorm's running statistics: moved 8 times a step, part after part; published once a step",
        "BatchNorm: the statistics of 32 images, published of the 256 of a device",
    ]


def test_another_batch_and_other_settings():
    same, differs = statement("casia-r50", batch_size=64, learning_rate=0.025, epochs=10)
    assert same == []
    assert differs == [
        "global batch: 64 images a step, published 256 (2 devices of 128); steps are others",
        "steps: 76,650, by the recipe 191,600",
        "BatchNorm: the statistics of 64 images, published of the 128 of a device",
        "setting optimiser.learning_rate: 0.1 -> 0.025",
        CODE,
    ]


def test_seed_and_device_are_no_difference():
    config = dataclasses.replace(configured("casia-r50"), seed=3, device="cuda:1")
    assert compare_with_published(config, ROWS["casia-r50"], "pytorch", 490_623) == statement("casia-r50")


# ---- what is published ----


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_recipes(name):
    row = ROWS[name]
    assert row.recipe is RECIPES[name]
    assert row.devices * row.images_a_device == row.recipe().optimiser.batch_size
    assert set(row.recipe().data.evaluate_on) == set(PUBLISHED_SETS) == set(EVALUATION_SETS) - {"mlfw"}
    for text in (row.training_set.where, row.training_set.counted):
        assert "github.com/" in text


def test_published_results_are_those_with_a_source_and_a_row():
    *released, last = RESULTS
    assert last[:4] == ("ms1mv2-r100", "mlfw", ACCURACY, 91.57)
    assert "arXiv:2109.05804" in last.source
    assert {(r.row, r.figure) for r in released} == {("opencv-sface", ACCURACY)}
    assert [(r.set, r.percent) for r in released] == [
        *(("lfw", 99.60), ("calfw", 93.95), ("cplfw", 91.05), ("agedb_30", 94.90), ("cfp_fp", 94.80))
    ]
    assert all("OpenCV" in r.source for r in released)
    assert all(figure in RELEASED_NOTE for figure in ("99.40", "99.32", "99.42"))
    (listing,) = WITHOUT_ROW
    assert "wizwand.com listing of arXiv:2205.12010" in listing


def test_which_published_result_a_row_is_held_against():
    assert published_result("ms1mv2-r100", "mlfw", ACCURACY).percent == 91.57
    assert published_result("casia-mobilefacenet", "lfw", ACCURACY) is None
    assert published_result("casia-r50", "mlfw", ACCURACY) is None
    assert published_result("ms1mv2-r100", "lfw", ACCURACY) is None
    assert published_result("ms1mv2-r100", "mlfw", "TAR@FAR=1e-4") is None
    assert published_result("orl-demo", "mlfw", ACCURACY) is None


@pytest.mark.parametrize(
    ("far", "name"), [(1e-6, "TAR@FAR=1e-6"), (0.0001, "TAR@FAR=1e-4"), (0.1, "TAR@FAR=1e-1"), (2e-5, "TAR@FAR=2e-5")]
)
def test_names_of_rates(far, name):
    assert published.tar_at(far) == name


# ---- data ----


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """InsightFace's layout with two of the seven sets; not to be changed."""
    root = make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=5, images=3, size=16, pairs=20)
    for name in ("lfw", "cfp_fp"):
        shutil.copy(root / "synthetic.bin", root / f"{name}.bin")
    return root


def looked_at(root, *sets):
    config = ROWS["casia-r50"].recipe()
    data = dataclasses.replace(config.data, root=root, evaluate_on=sets or config.data.evaluate_on)
    return look_at_data(dataclasses.replace(config, data=data), ROWS["casia-r50"])


def test_nothing_is_there(tmp_path):
    root = tmp_path / "casia"
    found = looked_at(root)
    assert (found.complete, found.images, found.classes, found.pairs) == (False, 490_623, 10_572, 43_000)
    zoo = "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
    assert found.lines == [
        f"Data in {root}",
        "  training set  missing: CASIA-WebFace as train.rec, train.idx and property; "
        f"data.root: expected a folder at {root}, found none",
        "                taken to hold 490,623 images of 10,572 identities: " + ROWS["casia-r50"].training_set.counted,
        *(
            f"  {name:<12}  missing: expected {root / name}.bin"
            for name in ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "sllfw", "talfw")
        ),
        f"  get           CASIA-WebFace: faces_webface_112x112, under CASIA-Webface in {zoo}",
        "  get           LFW, CFP-FP, AgeDB-30, CALFW, CPLFW: inside faces_emore, under MS1M-ArcFace in " + zoo,
        "  get           SLLFW, TALFW: SFace's first author links it in https://github.com/zhongyy/Face-Transformer",
        "  or make       them from aligned images: python -m data convert | pairs (--help)",
    ]


def test_all_is_there(faces):
    found = looked_at(faces, "lfw", "cfp_fp")
    sets = ["  lfw           20 pairs", "  cfp_fp        20 pairs"]
    assert found == ([f"Data in {faces}", "  training set  15 images of 5 identities", *sets], True, 15, 5, 40, None)


def test_damaged_files_are_missing_too(faces, tmp_path):
    root = shutil.copytree(faces, tmp_path / "copy")
    (root / "property").write_text("many\n")
    (root / "lfw.bin").write_bytes(b"no pickle")
    found = looked_at(root, "lfw", "cfp_fp")
    assert not found.complete
    assert f'{root / "property"}: expected one line "classes,height,width", for example' in found.lines[1]
    assert "got 'many'" in found.lines[1]
    assert found.lines[3].startswith(f"  lfw           cannot be read: {root / 'lfw.bin'}")
    assert found.pairs == 6_020
    assert not looked_at(root, "cfp_fp").complete  # for want of the training set alone


def test_an_unknown_set(faces):
    found = looked_at(faces, "synthetic", "cfp_ff")
    assert (found.complete, found.pairs) == (False, 20)
    assert found.lines[3] == f"  cfp_ff        missing: expected {faces / 'cfp_ff.bin'}"


# ---- the command ----


class NumpyBackend(Backend):
    def create_trainer(self, config, num_classes):
        return NumpyTrainer(config, num_classes)


BACKEND = NumpyBackend("numpy")


def command(faces, out, *options, sets=("lfw", "cfp_fp")):
    arguments = (
        "reproduce", "casia-r50", "--data.root", faces, "--data.evaluate-on", *sets, "--data.image-size", 16,
        "--optimiser.batch-size", 6, "--optimiser.max-steps", 2, "--data.workers", 1, "--out", out, *options,
    )  # fmt: skip
    return main(BACKEND, [str(argument) for argument in arguments])


def test_check_says_what_there_is_and_writes_nothing(faces, tmp_path, capsys):
    assert command(faces, tmp_path / "run", "--check") == 0
    captured = capsys.readouterr()
    for text in (
        "training set  15 images of 5 identities",
        "Against the published run in MXNet\n  same     learning rate: 0.1",
        "  differs  global batch: 6 images a step, published 256",
        "Cost on an unnamed device: 15 images of 5 identities",
        "a step of 2:",
        "2 steps, without reading images",
        "1 times 40 pairs",
    ):
        assert text in captured.out
    assert "probe: training on 4 generated images a step, 3 steps" in captured.err
    assert not (tmp_path / "run").exists()


def test_check_fails_where_a_set_is_missing(faces, tmp_path, capsys):
    assert command(faces, tmp_path / "run", "--check", sets=("lfw", "talfw")) == 1
    assert f"talfw         missing: expected {faces / 'talfw.bin'}" in capsys.readouterr().out


def test_check_without_a_training_set_takes_the_public_counts(tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(NumpyBackend, "create_trainer", lambda self, *a: made.append(a[1]) or NumpyTrainer(*a))
    assert command(tmp_path / "nowhere", tmp_path / "run", "--check") == 1
    assert made == [10_572]
    assert "Cost on an unnamed device: 490,623 images of 10,572 identities\n" in capsys.readouterr().out


def test_a_row_is_trained_evaluated_and_recorded(faces, tmp_path, capsys):
    folder = tmp_path / "run"
    assert command(faces, folder) == 0
    output = capsys.readouterr().out
    record = json.loads((folder / "reproduction.json").read_text())
    assert (record["row"], record["published_in"]) == ("casia-r50", "MXNet")
    assert "setting data.image_size: 112 -> 16" in record["differs"]
    for line in [*record["same"], *record["differs"], "| casia-r50* | LFW | accuracy |"]:
        assert line in output
    assert {path.name for path in (folder / "evaluation").glob("*.json")} == {"lfw.json", "cfp_fp.json"}


def test_sets_that_come_later_are_evaluated_when_it_is_started_again(faces, tmp_path, capsys):
    root, folder = shutil.copytree(faces, tmp_path / "copy"), tmp_path / "run"
    assert command(root, folder, sets=("lfw", "cplfw")) == 1
    assert f"cplfw         missing: expected {root / 'cplfw.bin'}" in capsys.readouterr().out
    assert not (folder / "evaluation" / "cplfw.json").exists()
    shutil.copy(root / "lfw.bin", root / "cplfw.bin")
    lfw, cplfw = (folder / "evaluation" / f"{name}.json" for name in ("lfw", "cplfw"))
    before = lfw.stat().st_mtime_ns
    assert command(root, folder, sets=("lfw", "cplfw")) == 0
    assert json.loads(cplfw.read_text())["step"] == 2
    assert lfw.stat().st_mtime_ns == before

    save_evaluation(folder / "evaluation", load_evaluation(lfw).evaluation, 1)  # as if lfw.bin had been away at the end
    assert command(root, folder, sets=("lfw", "cplfw")) == 0
    assert json.loads(lfw.read_text())["step"] == 2


def test_a_folder_with_another_run_is_left_as_it_is(faces, tmp_path, capsys):
    assert command(faces, tmp_path / "run") == 0
    before = (tmp_path / "run" / "reproduction.json").read_bytes()
    assert command(faces, tmp_path / "run", "--head.scale", 32) == 2
    assert "holds a run of another configuration (head.scale: 64.0 -> 32.0)" in capsys.readouterr().err
    assert (tmp_path / "run" / "reproduction.json").read_bytes() == before


def test_a_row_under_another_name(faces, tmp_path):
    assert command(faces, tmp_path / "run", "--name", "mine") == 0
    record = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    assert record["row"] == "casia-r50"
    assert "setting name: 'casia-r50' -> 'mine'" in record["differs"]


def test_only_published_rows(faces, tmp_path, capsys):
    assert main(BACKEND, ["reproduce", "orl-demo"]) == 2
    assert "expected one of casia-r50, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(BACKEND, ["reproduce", "--help"])
    assert reproduce.CHECK in capsys.readouterr().out


def test_without_training_data(tmp_path, capsys):
    assert command(tmp_path / "nowhere", tmp_path / "run") == 2
    assert "error: data.root: expected a folder at" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
