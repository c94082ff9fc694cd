"""Opening runs, checkpoints, ONNX models and .npz files: right ones, wrong ones and hostile ones."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper

from common.config import to_json
from common.evaluation import onnx_model
from common.evaluation.onnx_model import OnnxInput
from common.evaluation.source import open_source
from common.tests.numpy_backend import (
    DIMENSIONS,
    SIZE,
    LinearBackend,
    LinearTrainer,
    linear_config,
    trained,
    write_checkpoint,
)
from common.tests.onnx_models import write_model
from common.weights.checkpoint import DamagedCheckpoint, save_checkpoint

BACKEND = LinearBackend()


def images(count: int = 5, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)


def weight(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3 * SIZE * SIZE, DIMENSIONS)).astype(np.float32)


# ---- runs and checkpoints ----


def test_a_run_is_its_latest_checkpoint(tmp_path):
    config = linear_config(tmp_path / "data")
    write_checkpoint(tmp_path, dataclasses.replace(config, seed=9), step=5)
    path = write_checkpoint(tmp_path, config, step=20)
    for given in (tmp_path, path):
        source = open_source(given, BACKEND, "cpu")
        assert np.array_equal(source.embed(images()), trained(config).embed(images()))
        assert (source.image_size, source.step, source.on_wrong_size) == (SIZE, 20, "fail")
        assert (source.root, source.sets, source.arrays) == (tmp_path / "data", ("lfw",), {})
        assert source.description == f"{path}, iresnet50, sface, linear"


def test_a_checkpoint_without_a_head(tmp_path):
    """As `import` writes it; the stand-in for the head must not touch the embedding."""
    config = linear_config(tmp_path)
    path = write_checkpoint(tmp_path, config, classes=None)
    source = open_source(path, BACKEND, "cpu")
    assert np.array_equal(source.embed(images()), trained(config).embed(images()))
    assert "without a head" in source.description


def test_the_run_decides_size_and_what_to_do_with_others(tmp_path):
    config = linear_config(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_wrong_size="resize"))
    assert open_source(write_checkpoint(tmp_path, config), BACKEND, "cpu").on_wrong_size == "resize"


def test_the_device_is_the_one_asked_for(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(LinearTrainer, "__init__", lambda self, config, classes: seen.append(config.device) or 1 / 0)
    path = save_checkpoint(tmp_path, 1, {}, {"config": to_json(linear_config(tmp_path))})
    with pytest.raises(ZeroDivisionError):
        open_source(path, BACKEND, "cuda:3")
    assert seen == ["cuda:3"]


def test_checkpoints_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint folder"):
        open_source(tmp_path / "absent", BACKEND)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json"):
        open_source(tmp_path, BACKEND)
    config = linear_config(tmp_path)
    path = write_checkpoint(tmp_path / "cut", config)
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match=r"weights\.safetensors: expected"):
        open_source(path, BACKEND)
    arrays = {"head.class_weight": np.zeros((3, DIMENSIONS), np.float32)}
    path = save_checkpoint(tmp_path / "headless", 1, arrays, {"config": to_json(config)})
    with pytest.raises(ValueError, match=r"backbone\.weight: missing"):
        open_source(path, BACKEND)
    path = save_checkpoint(tmp_path / "unsaid", 1, arrays, {})
    with pytest.raises(ValueError, match="configuration: expected an object, got None"):
        open_source(path, BACKEND)


def test_another_kind_of_file(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a run folder, a checkpoint folder, an .onnx file or an .npz file"):
        open_source(tmp_path / "model.pth", BACKEND)
    for name in ("model.onnx", "lfw.npz"):
        with pytest.raises(FileNotFoundError):
            open_source(tmp_path / name, BACKEND)


def test_onnxruntime_is_loaded_for_onnx_only():
    code = "import sys, common.evaluation.source, common.commands.evaluate; "
    code += "print([m for m in sys.modules if m.startswith('onnx')])"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"


# ---- ONNX ----


def expected(pixels: np.ndarray, order: slice = slice(None)) -> np.ndarray:
    return pixels[:, order].reshape(len(pixels), -1).astype(np.float64) @ weight()


@pytest.mark.parametrize("batch", ["N", None, 1, 2, 5, 8], ids=str)
@pytest.mark.parametrize("count", [1, 5])
def test_a_model_of_any_batch_size(tmp_path, batch, count):
    """A fixed batch is filled up, and cut off again."""
    path = write_model(tmp_path / "m.onnx", weight(), shape=(batch, 3, SIZE, SIZE))
    source = open_source(path, BACKEND, "cpu")
    embeddings = source.embed(images(count))
    assert (embeddings.shape, embeddings.dtype) == ((count, DIMENSIONS), np.float32)
    assert embeddings == pytest.approx(expected(images(count)), rel=1e-4, abs=0.02)  # float32 sums of 768 terms of 255
    assert (source.image_size, source.root, source.sets, source.step) == (SIZE, None, (), 0)


@pytest.mark.parametrize(
    ("metadata", "order", "says"),
    [
        ({"colours": "rgb"}, slice(None), "input rgb 0..255"),
        ({"colours": "bgr"}, slice(None, None, -1), "input bgr 0..255"),
        ({}, slice(None), "input rgb 0..255 (assumed: its metadata does not say)"),
    ],
)
def test_colours_are_those_that_the_model_says(tmp_path, metadata, order, says):
    source = open_source(write_model(tmp_path / "m.onnx", weight(), metadata=metadata), BACKEND, "cpu")
    assert source.embed(images()) == pytest.approx(expected(images(), order), rel=1e-4, abs=0.02)
    assert source.description.endswith(says)


def test_a_model_that_does_not_say_how_it_is_called(tmp_path):
    """Scale and colours are given, and its metadata overruled."""
    path = write_model(tmp_path / "m.onnx", weight(), metadata={"colours": "rgb"})
    source = open_source(path, BACKEND, "cpu", OnnxInput(pixel_scale="1/127.5", colours="bgr"))
    pixels = (images()[:, ::-1].reshape(5, -1).astype(np.float64) - 127.5) / 127.5
    assert source.embed(images()) == pytest.approx(pixels @ weight(), rel=1e-4, abs=1e-3)
    assert source.description.endswith("input bgr (0..255 - 127.5) * 1/127.5")
    assert source.warning == ""
    for scale in ("wide", "1/0"):
        with pytest.raises(ValueError, match=f"--pixel-scale: expected a number such as .*, got '{scale}'"):
            open_source(path, BACKEND, "cpu", OnnxInput(pixel_scale=scale))


def test_one_of_several_outputs(tmp_path):
    path = write_model(tmp_path / "m.onnx", weight(), outputs=2)
    source = open_source(path, BACKEND, "cpu", OnnxInput(output="out1"))
    assert source.embed(images()) == pytest.approx(-expected(images()), rel=1e-4, abs=0.02)
    with pytest.raises(ValueError, match=r"expected an output norm tensor\(float\) \[N, D\], the model has out0"):
        open_source(path, BACKEND, "cpu", OnnxInput(output="norm"))


@pytest.mark.parametrize(
    ("begins_with", "warned"),
    [((), True), (("Identity",), True), (("Sub",), False), (("Identity", "Mul"), False), (("Neg", "Sub"), True)],
)
def test_a_model_that_does_not_normalise_its_pixels(tmp_path, begins_with, warned):
    path = write_model(tmp_path / "m.onnx", weight(), begins_with=begins_with)
    source = open_source(path, BACKEND, "cpu")
    assert ("does not begin with a normalisation" in source.warning) == warned
    assert source.lines.startswith(source.description)
    assert ("\nwarning: " in source.lines) == warned


def test_the_shape_of_the_pixels_needs_no_normalisation(tmp_path):
    path = write_model(tmp_path / "m.onnx", weight(), begins_with=["Sub"])
    model = onnx.load(path)
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["data"], ["shape"]))
    onnx.save(model, path)
    assert open_source(path, BACKEND, "cpu").warning == ""


def test_how_a_model_is_called_is_for_models(tmp_path):
    with pytest.raises(ValueError, match="--pixel-scale, --colours and --output are for ONNX models"):
        open_source(write_checkpoint(tmp_path, linear_config(tmp_path)), BACKEND, "cpu", OnnxInput(colours="bgr"))


def test_inputs_that_nothing_reads_are_left_out(tmp_path):
    """OpenCV's quantised SFace lists the weights that were replaced among its inputs."""
    path = write_model(tmp_path / "m.onnx", weight(), extra_inputs=("conv_1", "conv_2"))
    source = open_source(path, BACKEND, "cpu")
    assert source.embed(images()) == pytest.approx(expected(images()), rel=1e-4, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": ("N", 1, 16, 16), "weight": weight()[:256]},
            r"expected one input tensor\(float\) \[N, 3, S, S\], .* data tensor\(float\)",
        ),
        ({"shape": ("N", 3, 32, 8)}, r"\['N', 3, 32, 8\]"),
        ({"shape": ("N", 3, "H", "W")}, r"\['N', 3, 'H', 'W'\]"),
        ({"shape": ("N", SIZE, SIZE, 3)}, r"\['N', 16, 16, 3\]"),
        ({"shape": ("N", 3 * SIZE * SIZE)}, r"\['N', 768\]"),
        ({"dtype": TensorProto.UINT8}, r"data tensor\(uint8\)"),
        ({"used_input": True}, r"offset tensor\(float\)"),
        (
            {"outputs": 2},
            r"expected one output tensor\(float\) \[N, D\], the model has out0 .*, out1.*; --output",
        ),
        ({"metadata": {"colours": "grey"}}, "expected colours rgb or bgr in its metadata, got 'grey'"),
    ],
)
def test_a_model_of_another_kind(tmp_path, options, message):
    path = write_model(tmp_path / "m.onnx", **{"weight": weight(), **options})
    with pytest.raises(ValueError, match=message):
        open_source(path, BACKEND, "cpu")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x09" * 50])
def test_what_is_no_model(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.onnx: cannot be opened as an ONNX model"):
        open_source(tmp_path / "m.onnx", BACKEND, "cpu")


def test_a_model_that_fails_when_it_runs(tmp_path):
    """Its input says 16 pixels, its weight is for fewer; onnxruntime notices at the first image only."""
    path = write_model(tmp_path / "m.onnx", weight()[:-3])
    with pytest.raises(ValueError, match=r"m\.onnx: (the model fails on images|cannot be opened)"):
        open_source(path, BACKEND, "cpu").embed(images())


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "built for the CPU only"), ("cuda:1", "built for the CPU only"), ("tpu", "expected auto, cpu, cuda")],
)
def test_devices_for_models(tmp_path, monkeypatch, device, message):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = write_model(tmp_path / "m.onnx", weight())
    with pytest.raises(ValueError, match=message):
        open_source(path, BACKEND, device)
    assert onnx_model._providers(onnxruntime, "auto") == ["CPUExecutionProvider"]


def test_a_cuda_device_by_its_number(monkeypatch):
    import onnxruntime

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    for device, number in (("auto", 0), ("cuda", 0), ("cuda:2", 2)):
        assert onnx_model._providers(onnxruntime, device)[0] == ("CUDAExecutionProvider", {"device_id": number})
    assert onnx_model._providers(onnxruntime, "cpu") == ["CPUExecutionProvider"]


# ---- .npz ----


def test_embeddings(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", embeddings=embeddings, names=np.array(["a.png", "b.png"]))
    source = open_source(tmp_path / "a.npz", BACKEND)
    assert (source.embed, source.image_size) == (None, 0)
    assert np.array_equal(source.rows("embeddings", 6), embeddings)
    assert "6 x 4 float32" in source.description
    for name, count in (("mirrored", 6), ("names", 2), ("embeddings", 5)):
        with pytest.raises(ValueError, match=rf"a\.npz.*6 x 4 float32.*: expected .*{name}"):
            source.rows(name, count)


@pytest.mark.parametrize("location", ["../weights", "/dev/zero", "pipe", "link", "."])
def test_an_onnx_model_with_weights_in_a_file_that_is_none_of_its_own(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "weights").write_bytes(weight().tobytes())
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    path = write_model(folder / "model.onnx", weight())
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    external_data_helper.set_external_data(tensor, location, length=weight().nbytes)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"model.onnx: cannot be opened as an ONNX model"):
        open_source(path, BACKEND, "cpu")


def test_an_onnx_model_with_its_weights_beside_it(tmp_path):
    path = write_model(tmp_path / "model.onnx", weight())
    expected = open_source(path, BACKEND, "cpu").embed(images())
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert np.array_equal(open_source(path, BACKEND, "cpu").embed(images()), expected)
