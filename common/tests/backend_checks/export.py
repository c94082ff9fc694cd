"""`export`: the ONNX model computes what the trainer does, in onnxruntime and as OpenCV's FaceRecognizerSF."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from common import config as configuration
from common.backend import Backend, Trainer
from common.commands.main import main
from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig
from common.weights.checkpoint import save_checkpoint

FAMILIES = ("iresnet_small", "ir_se50", "mobilefacenet", "mobilenet_v1")
STEP = 7
BATCH = 16  # with fewer, BatchNorm divides by poor estimates, and rounding grows


def configured(backbone: str, embedding_size: int = 16, image_size: int = 32) -> RunConfig:
    return RunConfig(
        name="test",
        data=DataConfig(Path("unused"), image_size=image_size),
        model=ModelConfig(backbone, embedding_size),
        optimiser=OptimiserConfig(batch_size=BATCH),
        device="cpu",
    )


def pictures(size: int, count: int = BATCH) -> np.ndarray:
    """Smooth, each of colours of its own: where two channels are swapped, it shows."""
    random = np.random.default_rng(size)
    small = random.integers(0, 256, (count, 5, 5, 3), np.uint8)
    large = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in small]
    return np.ascontiguousarray(np.stack(large).transpose(0, 3, 1, 2))


@cache
def calibrated(backend: Backend, config: RunConfig) -> tuple[Trainer, dict[str, np.ndarray]]:
    """A trainer and its state; running statistics are those of a batch, and no parameter is neutral.

    One step at rate 0 moves the statistics a tenth of the way from 0 and 1 to those of the batch.
    """
    trainer = backend.create_trainer(config, 4)
    random = np.random.default_rng(0)
    state = trainer.state()
    for name, array in state.items():
        if name.startswith("backbone.") and array.ndim == 1 and ".running_" not in name:
            array += random.uniform(-0.1, 0.1, array.shape).astype(array.dtype)
    trainer.load_weights(state)
    images = pictures(config.data.image_size)
    trainer.train_step(images, np.arange(len(images)) % 4, 0.0)
    state = trainer.state()
    for name, array in state.items():
        if name.endswith("running_mean"):
            array *= 10
        if name.endswith("running_var"):
            array -= np.float32(0.9)
            np.maximum(10 * array, 1e-3, out=array)
    trainer.load_weights(state)
    return trainer, state


def exported(backend: Backend, config: RunConfig, folder: Path) -> Path:
    """The ONNX model that the command makes of a checkpoint of `calibrated`."""
    arrays = {name: a for name, a in calibrated(backend, config)[1].items() if name.startswith("backbone.")}
    save_checkpoint(folder / "checkpoints", STEP, arrays, {"config": configuration.to_json(config)})
    assert main(backend, ["export", str(folder), "--out", str(folder / "model.onnx")]) == 0
    return folder / "model.onnx"


def embed(backend: Backend, config: RunConfig, images: np.ndarray) -> np.ndarray:
    return calibrated(backend, config)[0].embed(images)


def run_onnx(path: Path, *batches: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": images.astype(np.float32)})[0] for images in batches]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("backbone", FAMILIES)
def test_onnx_equals_the_network(backend, tmp_path, backbone, capsys):
    """Measured 2e-6 to 5e-6 in the three frameworks, and 1.2e-5 for mobilenet_v1, whose values vary most in size."""
    bound = 3e-5 if backbone == "mobilenet_v1" else 1e-5
    config = configured(backbone)
    images = pictures(32)
    expected = embed(backend, config, images)
    all_at_once, one = run_onnx(exported(backend, config, tmp_path), images, images[:1])
    assert error(all_at_once, expected) < bound
    assert error(one, expected[:1]) < 2 * bound  # of its own largest value
    assert np.corrcoef(expected)[0, 1] < 0.9, "the network must tell the pictures apart"
    assert f"step {STEP}" in capsys.readouterr().out


def test_opencv_takes_it_in_place_of_its_own_model(backend, tmp_path):
    """FaceRecognizerSF swaps its BGR image to RGB, 0..255; `match` compares normalised features.

    Measured 1.2e-5, and 2e-6 of the cosine and the distance.
    """
    config = configured("mobilefacenet", 128, 112)
    images = pictures(112)[:2]
    expected = embed(backend, config, images)
    recogniser = cv2.FaceRecognizerSF.create(str(exported(backend, config, tmp_path)), "")
    bgr = [np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1]) for image in images]
    features = [recogniser.feature(image).copy() for image in bgr]
    assert error(np.concatenate(features), expected) < 3e-5
    assert error(recogniser.feature(np.ascontiguousarray(bgr[0][:, :, ::-1])), expected[:1]) > 0.01, "colours matter"

    one, two = (row / np.linalg.norm(row) for row in expected.astype(np.float64))
    cosine = recogniser.match(*features, cv2.FaceRecognizerSF_FR_COSINE)
    distance = recogniser.match(*features, cv2.FaceRecognizerSF_FR_NORM_L2)
    assert cosine == pytest.approx(one @ two, abs=1e-5)
    assert distance == pytest.approx(np.linalg.norm(one - two), abs=1e-5)
