"""`import`: published weights become a checkpoint that `evaluate` and `export` take."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.backend import Backend
from common.commands.main import main
from common.evaluation.source import open_source
from common.tests.foreign_files import weights, write_torch
from data.synthetic import make_synthetic


def imported(backend: Backend, file: Path, out: Path, *options: str) -> Path:
    """Run the command; returns the checkpoint."""
    assert main(backend, ["import", str(file), "--out", str(out), *options]) == 0
    return out / "checkpoints" / "step-00000000"


def embed(backend: Backend, source: Path, images: np.ndarray) -> np.ndarray:
    """What the backend's network of an imported checkpoint, or an ONNX model, computes."""
    run = open_source(source, backend, "cpu").embed
    assert run is not None
    return run(images)


def pixels(size: int = 16, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)


WEIGHTS = weights("iresnet_small", 16, 32)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_torch(tmp_path_factory.mktemp("published") / "a.pth", WEIGHTS)


SMALL = ("--backbone", "iresnet_small", "--pixel-scale", "1/127.5", "--image-size", "32")


def test_imported_weights_evaluate_and_export(backend, published, tmp_path, capsys):
    """Without a head, from the folder and from the checkpoint in it; as ONNX, the same again."""
    checkpoint = imported(backend, published, tmp_path / "it is", *SMALL)
    printed = capsys.readouterr().out
    assert f"PyTorch: {len(WEIGHTS)} arrays of iresnet_small, 16-d" in printed
    assert "pixel scale 0.00784313725, ours is 1/128: conv1.weight is multiplied by 1.00392157" in printed
    assert f"evaluate '{tmp_path / 'it is'}'" in printed

    sets = make_synthetic(tmp_path / "faces", classes=2, images=2, size=32, pairs=10)
    for source in (tmp_path / "it is", checkpoint):
        arguments = ["evaluate", str(source), "--root", str(sets), "--sets", "synthetic", "--device", "cpu"]
        assert main(backend, arguments) == 0
        assert "synthetic" in capsys.readouterr().out
    assert main(backend, ["export", str(tmp_path / "it is"), "--out", str(tmp_path / "a.onnx")]) == 0
    found, expected = (embed(backend, source, pixels(32)) for source in (tmp_path / "a.onnx", checkpoint))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_imported_weights_are_trained_on_and_stand_beside_a_run(backend, published, tmp_path, capsys):
    """The head is new, and frozen weights embed as before. Another network is refused before the first step."""
    checkpoint = imported(backend, published, tmp_path / "weights", *SMALL)
    faces = make_synthetic(tmp_path / "faces", classes=3, images=4, size=32, pairs=10)
    arguments = (
        "train", "orl-demo", "--data.root", faces, "--data.evaluate-on", "synthetic", "--data.image-size", 32,
        "--out", tmp_path / "run", "--model.backbone", "iresnet_small", "--model.embedding-size", 16,
        "--model.weights", tmp_path / "weights", "--model.freeze-backbone-steps", 2, "--data.baseline", checkpoint,
        "--optimiser.batch-size", 6, "--optimiser.max-steps", 2, "--device", "cpu",
    )  # fmt: skip
    arguments = [str(argument) for argument in arguments]
    assert main(backend, arguments) == 0
    output = capsys.readouterr().out
    assert f"starts from {tmp_path / 'weights'}, step 0: its backbone" in output
    accuracies = re.findall(r"(sface \(\w+\)|step-00000000|raw pixels) on synthetic +([\d.]+ ±)", output)
    assert [method for method, _ in accuracies] == [f"sface ({backend.name})", "raw pixels", "step-00000000"]
    assert accuracies[0][1] == accuracies[2][1]
    record = json.loads((tmp_path / "run" / "environment.json").read_text())["weights"]
    assert (record["taken"], len(record["sha256"])) == ("backbone", 64)
    np.testing.assert_array_equal(
        embed(backend, tmp_path / "run", pixels(32)), embed(backend, tmp_path / "weights", pixels(32))
    )

    arguments[arguments.index(str(checkpoint))] = str(tmp_path / "nothing")
    assert main(backend, arguments) == 0, "there is nothing left to train"
    assert f"baseline {tmp_path / 'nothing'}: not found, so it is left out" in capsys.readouterr().out

    arguments[arguments.index("iresnet_small")] = "mobilefacenet"
    arguments[arguments.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    assert main(backend, arguments) == 2
    assert "has model.backbone iresnet_small, this run mobilefacenet" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_released_model_is_reproduced_by_evaluation(backend, published, tmp_path, capsys):
    """Here with another network in its place, on the sets that are there."""
    imported(backend, published, tmp_path / "weights", *SMALL)
    faces = make_synthetic(tmp_path / "faces", classes=2, images=2, size=32, pairs=10)
    (faces / "synthetic.bin").rename(faces / "lfw.bin")
    command = ["reproduce", "opencv-sface", "--root", str(faces), "--device", "cpu", "--source"]
    assert main(backend, [*command, str(tmp_path / "weights")]) == 1
    output = capsys.readouterr().out
    assert re.search(
        r"\| opencv-sface \| LFW \| accuracy \|.* \d+\.\d\d .*\| 99\.60 \[1\] \|.*[-+]\d+\.\d\d \|", output
    )
    assert re.search(r"\| opencv-sface \| CPLFW \| accuracy \|  \|  \|  \| 91\.05 \[1\] \|", output)
    assert f"as they are not in {faces}: CALFW, CPLFW, AgeDB-30, CFP-FP" in output
    assert (tmp_path / "weights" / "evaluation" / backend.name / "lfw.json").exists()
    assert main(backend, [*command, str(tmp_path / "nothing")]) == 2
    assert "python -m data opencv-sface makes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--pixel-scale": "1/0"}, "pixel-scale: expected a number such as 0.078125 or 1/127.5, got '1/0'"),
        ({"--pixel-scale": "large"}, "pixel-scale: expected a number such as"),
        ({"--backbone": "iresnet50"}, "does not fit iresnet50"),
        ({"--backbone": "vgg"}, "backbone: expected one of"),
        ({"--image-size": "112"}, "fc.weight: expected (16, 12544) of floating point, got float32 (16, 1024)"),
        ({"--image-size": "8"}, "images of at least 16 pixels"),
    ],
)
def test_options_that_do_not_fit(backend, published, tmp_path, capsys, change, message):
    options = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | change
    flat = [part for pair in options.items() for part in pair]
    assert main(backend, ["import", str(published), "--out", str(tmp_path / "out"), *flat]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(backend, published, tmp_path, capsys):
    imported(backend, published, tmp_path, *SMALL)
    assert main(backend, ["import", str(published), "--out", str(tmp_path), *SMALL]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
