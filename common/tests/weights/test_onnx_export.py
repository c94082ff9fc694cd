"""Metadata, options and refusals of the ONNX export; the backends' tests compare the embeddings."""

import numpy as np
import onnx
import onnxruntime
import pytest

from common.tests.foreign_files import weights
from common.weights.onnx_export import DEFAULT_OPSET, FIRST_OPSET, export_onnx

NETWORK = {"backbone": "iresnet_small", "embedding_size": 4, "image_size": 16}


def arrays():
    """Weights of both signs, so that the order of colours changes the embeddings."""
    found = weights()
    return {name: a - np.float32(0.6) if a.ndim > 1 else a for name, a in found.items()}


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"images": images})[0]


def pixels(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16)).astype(np.float32)


def test_the_file_says_what_it_is(tmp_path):
    path = tmp_path / "folder" / "a.onnx"
    export_onnx(path, arrays(), **NETWORK, colours="bgr", metadata={"step": "7"})
    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts == {
        "backbone": "iresnet_small",
        "embedding_size": "4",
        "image_size": "16",
        "colours": "bgr",
        "step": "7",
    }
    assert model.producer_name == "sface"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", DEFAULT_OPSET)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("images", ["N", 3, 16, 16], "tensor(float)")
    assert (returned.name, returned.shape, returned.type) == ("embeddings", ["N", 4], "tensor(float)")
    assert [file.name for file in path.parent.iterdir()] == ["a.onnx"]


def test_bgr_takes_the_channels_in_reverse(tmp_path):
    for colours in ("rgb", "bgr"):
        export_onnx(tmp_path / colours, arrays(), **NETWORK, colours=colours)
    expected = run(tmp_path / "rgb", pixels())
    np.testing.assert_allclose(run(tmp_path / "bgr", pixels()[:, ::-1].copy()), expected, rtol=1e-5)
    assert np.abs(run(tmp_path / "bgr", pixels()) / expected - 1).max() > 1e-3


@pytest.mark.parametrize("opset", [FIRST_OPSET, 21, onnx.defs.onnx_opset_version() - 2])
def test_opsets_compute_the_same(tmp_path, opset):
    """onnxruntime does not run the newest opsets yet."""
    for number in (DEFAULT_OPSET, opset):
        export_onnx(tmp_path / str(number), arrays(), **NETWORK, opset=number)
    assert onnx.load(tmp_path / str(opset)).opset_import[0].version == opset
    found, expected = (run(tmp_path / str(number), pixels()) for number in (opset, DEFAULT_OPSET))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_double_precision_is_rounded(tmp_path):
    export_onnx(tmp_path / "single", arrays(), **NETWORK)
    export_onnx(tmp_path / "double", {name: a.astype(np.float64) for name, a in arrays().items()}, **NETWORK)
    assert (tmp_path / "single").read_bytes() == (tmp_path / "double").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": FIRST_OPSET - 1}, f"opset: expected {FIRST_OPSET} to .*, got {FIRST_OPSET - 1}"),
        ({"opset": 1000}, "opset: expected .*, got 1000"),
        ({"colours": "grey"}, "colours: expected rgb or bgr, got 'grey'"),
        ({"backbone": "vgg"}, "backbone: expected one of"),
        ({"backbone": "iresnet18"}, "layer1.1.bn1.weight: missing"),
        ({"embedding_size": 5}, r"fc.weight: expected float32 \(5, 256\), got float32 \(4, 256\)"),
        ({"image_size": 15}, "at least 16 pixels"),
    ],
)
def test_options_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(tmp_path / "a.onnx", arrays(), **{**NETWORK, **change})
    assert not list(tmp_path.iterdir())


def test_what_was_there_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="holds NaN"):
        export_onnx(path, arrays() | {"fc.bias": np.full(4, np.nan, np.float32)}, **NETWORK)

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("common.io.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(path, arrays(), **NETWORK)
    assert path.read_bytes() == b"old"
