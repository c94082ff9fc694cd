"""`import`: published weights become a checkpoint that `evaluate` and `export` take."""

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
