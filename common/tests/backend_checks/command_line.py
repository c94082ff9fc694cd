"""python -m BACKEND as a user types it: every recipe for two steps on generated data, evaluation, errors."""

import importlib
import io
import json
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.backend import Backend
from common.commands.main import main
from common.datasets.images import encode_image
from common.io.npz import read_arrays
from common.recipes import RECIPES
from common.training.run_log import read_log
from common.weights.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from data.synthetic import make_synthetic


@pytest.fixture(scope="module")
def run(backend):
    """The command; returns its exit status."""
    return partial(_run, backend)


def _run(backend: Backend, *arguments: object) -> int:
    return main(backend, [str(argument) for argument in arguments])


def exit_status(run, *arguments: object) -> int:
    try:
        return run(*arguments)
    except SystemExit as stop:  # how tyro ends after --help and after an error
        return stop.code


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """InsightFace's layout: train.rec, train.idx, property and two of the seven evaluation sets."""
    root = make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=5, images=3, size=112, pairs=10)
    for name in ("lfw", "cfp_fp"):
        shutil.copy(root / "synthetic.bin", root / f"{name}.bin")
    return root


def small_run(run, faces: Path, out: Path, *options: object, recipe: str = "lfw-small") -> int:
    return run(
        "train", recipe, "--data.root", faces, "--out", out, "--data.evaluate-on", "lfw", "--data.workers", 1,
        "--data.image-size", 32, "--data.on-wrong-size", "resize", "--model.embedding-size", 8,
        "--optimiser.batch-size", 6, "--optimiser.max-steps", 2, "--device", "cpu", *options,
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_two_steps(run, faces, tmp_path, capsys, monkeypatch, name):
    """The recipe's own loss, schedule, and network, unless an earlier recipe has that one; all else is small.

    The report has tests of its own.
    """
    backbone = RECIPES[name]().model.backbone
    deep = backbone in ("iresnet50", "iresnet100", "ir50")
    small = ("--data.image-size", 32, "--data.on-wrong-size", "resize") if deep else ()
    if name != next(first for first, recipe in RECIPES.items() if recipe().model.backbone == backbone):
        backbone = "iresnet_small"
    monkeypatch.setattr("common.reports.run_report.write_report", lambda folder: folder / "report.html")
    arguments = (
        "train", name, "--data.root", faces, "--out", tmp_path / "run", "--data.evaluate-on", "lfw", "agedb_30",
        "--optimiser.batch-size", 4, "--optimiser.max-steps", 2, "--log-every", 1, "--device", "cpu",
        "--optimiser.learning-rate", 0.001, "--model.weights", "None", "--data.baseline", "None",
        "--model.backbone", backbone, *small,
    )  # fmt: skip
    assert run(*arguments) == 0
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2]
    assert [r["set"] for r in records if r["kind"] == "evaluation"] == ["lfw"]
    output = capsys.readouterr().out
    assert f"evaluation set agedb_30: not found at {faces / 'agedb_30.bin'}" in output
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    recipe = RECIPES[name]()
    assert saved.arrays["head.class_weight"].shape == (5, recipe.model.embedding_size)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["head"]["intra_center"] == recipe.head.intra_center
    for line in ("checkpoint", "log.jsonl", "report.html"):
        assert line in output


@pytest.fixture(scope="module")
def small(run, faces, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "run"
    assert small_run(run, faces, folder) == 0
    return folder


def test_training_ends_with_what_there_is_to_look_at(backend, run, faces, tmp_path, capsys):
    assert small_run(run, faces, tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert f"sface ({backend.name})" in output
    assert "raw pixels" in output
    assert str(tmp_path / "run" / "report.html") in output
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_evaluate_a_run_and_a_checkpoint(run, faces, small, tmp_path, capsys):
    """Also a checkpoint of the backbone alone, as `import` writes it."""
    expected = json.loads((small / "evaluation" / "lfw.json").read_text())
    saved = load_checkpoint(latest_checkpoint(small))
    backbone = {name: array for name, array in saved.arrays.items() if name.startswith("backbone.")}
    headless = save_checkpoint(tmp_path, saved.step, backbone, {"config": saved.state["config"]})
    for source in (small, latest_checkpoint(small), headless):
        assert run("evaluate", source, "--device", "cpu", "--out", tmp_path / "figures") == 0
        found = json.loads((tmp_path / "figures" / "lfw.json").read_text())
        assert found == expected
        assert "lfw" in capsys.readouterr().out


def test_evaluate_reports_a_missing_set(run, faces, small, capsys):
    assert run("evaluate", small, "--sets", "cfp_fp", "calfw", "--device", "cpu") == 1
    output = capsys.readouterr().out
    assert "cfp_fp" in output
    assert f"calfw: missing, expected {faces / 'calfw.bin'}" in output


def test_reproduce(backend, run, faces, tmp_path, capsys):
    """A row made small: --check says what it costs and which sets are missing, and the same command then trains it."""
    small = (
        "reproduce", "casia-mobilefacenet", "--data.root", faces, "--data.evaluate-on", "lfw", "sllfw",
        "--data.workers", 1, "--data.image-size", 32, "--data.on-wrong-size", "resize", "--model.embedding-size", 8,
        "--optimiser.batch-size", 4, "--optimiser.accumulate", 2, "--optimiser.max-steps", 2, "--device", "cpu",
        "--optimiser.learning-rate", 0.001, "--out", tmp_path / "run",
    )  # fmt: skip
    assert run(*small, "--check") == 1
    output = capsys.readouterr().out
    for text in (
        "training set  15 images of 5 identities",
        f"sllfw         missing: expected {faces / 'sllfw.bin'}",
        "Against the published run in Jittor",
        "gradient: the mean over the 4 images, added up in 2 parts",
        "Cost on cpu",
        "for 4 images, measured, 2 times 2 images",
        "training    ",
    ):
        assert text in output
    assert re.search(r"memory +[\d.,]+ [MG]iB in a step, measured; [\d.,]+ [MG]iB were free\n", output)
    assert not (tmp_path / "run").exists()

    assert run(*small) == 1
    record = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    assert record["row"] == "casia-mobilefacenet"
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2  # the last step, and the evaluation
    cells = r"\| casia-mobilefacenet\* \| LFW \| accuracy \|.*\d\d?\.\d\d"
    assert re.search(cells, capsys.readouterr().out)


def test_evaluate_what_is_no_run(run, tmp_path, capsys):
    assert run("evaluate", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_embed(run, small, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encode_image(image))
    for name, options in {"three": ("--mirror",), "one": ("--batch-size", 1)}.items():
        assert run("embed", small, tmp_path, "--out", tmp_path / f"{name}.npz", "--device", "cpu", *options) == 0
    three, one = (read_arrays(tmp_path / f"{name}.npz") for name in ("three", "one"))
    assert three["embeddings"].shape == three["mirrored"].shape == (3, 8)
    assert three["embeddings"].dtype == np.float32
    largest = np.abs(three["embeddings"]).max()
    assert np.abs(three["embeddings"] - one["embeddings"]).max() < 1e-4 * largest
    assert np.abs(three["embeddings"] - three["mirrored"]).max() > 1e-3 * largest


def test_load(backend, run, small, tmp_path, capsys):
    """A run and its ONNX model, called from Python; `compare` says the same."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encode_image(image.transpose(2, 0, 1)))
    assert run("export", small, "--out", tmp_path / "m.onnx") == 0
    assert run("embed", small, tmp_path, "--out", tmp_path / "e.npz", "--device", "cpu", "--mirror") == 0
    expected = sum(read_arrays(tmp_path / "e.npz")[name] for name in ("embeddings", "mirrored"))
    load = importlib.import_module(backend.package).load
    model = load(small, device="cpu")
    for found in (model.embed(images), model.embed(paths), load(tmp_path / "m.onnx", device="cpu").embed(images)):
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())
    evaluated = json.loads((small / "evaluation" / "lfw.json").read_text())
    assert model.threshold("lfw").distance == evaluated["threshold"]
    assert model.threshold("lfw", mirror=False).distance == evaluated["plain_threshold"]

    capsys.readouterr()
    assert run("compare", small, *paths, "--aligned", "--device", "cpu") == 0
    output = capsys.readouterr().out
    cosine = float(model.similarity(*expected))
    assert float(re.search(r"^cosine +(\S+)$", output, re.MULTILINE)[1]) == pytest.approx(cosine, abs=2e-4)
    assert ("same person" in output) == (cosine > model.threshold("lfw").cosine)


def test_info(run, capsys):
    assert run("info") == 0
    output = capsys.readouterr().out
    assert re.search(r"version +\d", output)
    assert "mobilefacenet" in output
    assert "ms1mv2-r100" in output


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "casia-r50", "--help"]])
def test_help(run, arguments, capsys):
    assert exit_status(run, *arguments) == 0
    output = capsys.readouterr().out
    assert "train" in output or "casia" in output
    if "casia-r50" in arguments:
        for text in ("--head.intra-center", "radians", "--data.on-bad-image", "Steps between two checkpoints"):
            assert text in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: python -m {package} COMMAND"),
        (["fly"], "expected a command, got 'fly'"),
        (["train", "casia-r51"], "casia-r51"),
        (["train", "casia-r50", "--head.temperature", 1], "--head.temperature"),
        (["train", "casia-r50", "--head.scale", "wide"], "scale"),
        (["train", "casia-r50", "--head.intra-center", 50], "head.intra_center: expected an angle in radians"),
        (["train", "casia-r50", "--data.root", "/no/such/folder"], "data.root: expected a folder at /no/such/folder"),
        (["train", "casia-r50", "--data.root", "."], "expected train.rec, or imgs.txt"),
        (["evaluate", "/no/such/run"], "expected a checkpoint folder"),
    ],
)
def test_bad_input_is_one_clear_message(backend, run, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_status(run, *arguments) == 2
    errors = capsys.readouterr().err
    assert message.format(package=backend.package) in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "cuda:77", "error: device: cuda:77 asked for, but"),
        ("--model.backbone", "vgg", "backbone: expected one of"),
        ("--data.on-wrong-size", "fail", "expected 32x32 pixels, got 112x112"),
    ],
)
def test_a_run_that_cannot_start_says_why(run, faces, tmp_path, capsys, option, value, message):
    assert small_run(run, faces, tmp_path / "run", option, value) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["train.rec", "property"])
def test_a_data_folder_with_a_file_missing(run, faces, tmp_path, capsys, missing):
    root = shutil.copytree(faces, tmp_path / "copy")
    (root / missing).unlink()
    assert small_run(run, root, tmp_path / "run") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_without_the_index_all_is_the_same(run, faces, small, tmp_path):
    root = shutil.copytree(faces, tmp_path / "copy")
    (root / "train.idx").unlink()
    assert small_run(run, root, tmp_path / "run") == 0
    losses = [[r["loss"] for r in read_log(f / "log.jsonl") if "loss" in r] for f in (small, tmp_path / "run")]
    assert losses[0] == losses[1]


def test_bad_images_are_skipped_when_asked(run, faces, tmp_path, capsys):
    from common.datasets.records import HEADER, RecordReader

    root = shutil.copytree(faces, tmp_path / "copy")
    content = bytearray((root / "train.rec").read_bytes())
    reader = RecordReader(root / "train.rec")
    for key in (4, 5):
        start = content.index(reader.read(key).image, HEADER.size)
        content[start : start + 20] = bytes(20)
    (root / "train.rec").write_bytes(content)
    assert small_run(run, root, tmp_path / "fails") == 2
    assert "train.rec key " in capsys.readouterr().err
    assert small_run(run, root, tmp_path / "run", "--data.on-bad-image", "skip") == 0
    assert "images skipped" in capsys.readouterr().out


def test_a_loss_that_is_not_finite(run, faces, tmp_path, capsys):
    assert small_run(run, faces, tmp_path / "run", "--optimiser.learning-rate", 1e38, "--optimiser.max-steps", 4) == 2
    errors = capsys.readouterr().err
    assert "is not finite" in errors
    assert "--optimiser.warmup-steps" in errors


def test_a_full_disk(run, faces, capsys):
    """A real one, where it can be made: a file system of 2 MiB in memory."""
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True).returncode:
            pytest.skip("a file system cannot be mounted here (needs root)")
        try:
            assert small_run(run, faces, Path(folder) / "run") == 1
            assert re.search("No space left.*; no checkpoint had been saved; make room there", capsys.readouterr().err)
            assert not list((Path(folder) / "run" / "checkpoints").iterdir())
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_run_started_on_another_network_is_refused(run, faces, small, capsys):
    assert small_run(run, faces, small, "--model.backbone", "mobilefacenet") == 2
    assert "model.backbone: 'iresnet_small' -> 'mobilefacenet'" in capsys.readouterr().err


def test_what_is_printed_survives_a_pipe(run, monkeypatch, faces, small):
    """A log file in ASCII must not stop a run at the ± sign."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("evaluate", small, "--device", "cpu") == 0
