"""A network called from Python: the same embeddings as the trainer's, the threshold as evaluated, and clear errors."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from common.datasets.detection import Detector
from common.datasets.images import BadImage, decode_image, encode_image
from common.evaluation.evaluate import Evaluation
from common.evaluation.model import Model, cosines, load_model
from common.evaluation.onnx_model import OnnxInput
from common.evaluation.results import save_evaluation
from common.evaluation.source import open_source
from common.evaluation.verification import verify_distances
from common.tests.numpy_backend import DIMENSIONS, SIZE, LinearBackend, linear_config, trained, write_checkpoint
from common.tests.onnx_models import write_model
from common.tests.yellow_faces import squares, stand_in

BACKEND = LinearBackend()
STEP = 20


def pictures(count: int = 5, seed: int = 0) -> np.ndarray:
    """As a user has them: (N, S, S, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def evaluated(folder: Path, name: str = "lfw", step: int = STEP, plain: float | None = 1.5) -> float:
    """Write figures; the threshold."""
    random = np.random.default_rng(len(name))
    issame = random.random(60) < 0.5
    result = verify_distances(np.clip(random.normal(1.4 - 0.5 * issame, 0.3), 0, 4), issame)
    save_evaluation(folder, Evaluation(name, result, 20.0, plain), step)
    return result.threshold


@pytest.fixture
def run(tmp_path) -> Path:
    write_checkpoint(tmp_path / "run", linear_config(tmp_path), step=STEP)
    return tmp_path / "run"


@pytest.fixture
def model(run) -> Model:
    return load_model(run, BACKEND, device="cpu")


def expected(tmp_path, images: np.ndarray, mirror: bool = True) -> np.ndarray:
    embed = trained(linear_config(tmp_path)).embed
    views = (images, images[:, :, ::-1]) if mirror else (images,)
    return sum(embed(channels_first(view)) for view in views)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_arrays_paths_and_folders_give_the_same(model, tmp_path, mirror, batch_size):
    images = pictures()
    paths = [tmp_path / "faces" / ("b" if place < 3 else "a") / f"{place}.png" for place in range(5)]
    for path, image in zip(paths, channels_first(images), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image))
    truth = expected(tmp_path, images, mirror)
    options = {"mirror": mirror, "batch_size": batch_size}
    for given, order in (
        (images, slice(None)),
        (paths, slice(None)),
        ([str(path) for path in paths[::-1]], slice(None, None, -1)),
        (tmp_path / "faces", [3, 4, 0, 1, 2]),
        (str(paths[2]), [2]),
    ):
        found = model.embed(given, **options)
        assert found.dtype == np.float32
        assert found == pytest.approx(truth[order], rel=1e-4, abs=1e-3)
    assert (model.image_size, model.description) == (SIZE, open_source(tmp_path / "run", BACKEND).description)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pictures()[0], r"expected images \(N, 16, 16, 3\) uint8, RGB, got \(16, 16, 3\) uint8"),
        (channels_first(pictures()), r"got \(5, 3, 16, 16\) uint8"),
        (pictures() / 255, r"got \(5, 16, 16, 3\) float64"),
        (pictures(0), "at least one image, got none"),
        ([], "at least one image, got none"),
    ],
)
def test_what_cannot_be_embedded(model, given, message):
    with pytest.raises(ValueError, match=message):
        model.embed(given)


def test_files_that_cannot_be_embedded(model, tmp_path):
    for given in ("absent.png", [tmp_path / "absent.png"]):
        with pytest.raises(FileNotFoundError, match=r"absent\.png: expected an image, found none"):
            model.embed(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: expected images"):
        model.embed(tmp_path / "empty")
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(BadImage, match=r"broken\.png: 6 bytes do not decode"):
        model.embed(tmp_path / "broken.png")
    (tmp_path / "large.png").write_bytes(encode_image(np.zeros((3, 20, 20), np.uint8)))
    with pytest.raises(BadImage, match=r"large\.png: expected 16x16 pixels, got 20x20.*--on-wrong-size resize"):
        model.embed(tmp_path / "large.png")
    assert model.embed(tmp_path / "large.png", on_wrong_size="resize").shape == (1, DIMENSIONS)


def test_align(model, tmp_path, monkeypatch):
    detector = stand_in(monkeypatch, tmp_path)
    photo = tmp_path / "photo.png"
    photo.write_bytes(squares((40, 60, 80)))
    face = model.align(photo, detector=detector)
    assert (face.shape, face.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert (face[2:-2, 2:-2] == (255, 255, 0)).all()
    pixels = decode_image(photo.read_bytes(), "photo", 300, "resize")  # any photo
    again = model.align(np.ascontiguousarray(pixels.transpose(1, 2, 0)), detector=Detector(detector))
    assert again.shape == (SIZE, SIZE, 3)
    assert model.embed(face[None]).shape == (1, DIMENSIONS)
    photo.write_bytes(squares())
    with pytest.raises(BadImage, match=r"photo\.png: no face found"):
        model.align(photo, detector=detector)
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg: expected a photo, found none"):
        model.align("absent.jpg", detector=detector)
    with pytest.raises(ValueError, match=r"expected a photo \(H, W, 3\) uint8, RGB, got \(200, 300\)"):
        model.align(np.zeros((200, 300), np.uint8), detector=detector)


@pytest.mark.parametrize(("a", "b"), [((4, 8), (3, 8)), ((8,), (3, 8)), ((4, 8), (8,)), ((8,), (8,))])
def test_cosines(model, a, b):
    random = np.random.default_rng(0)
    a, b = random.normal(size=a).astype(np.float32), 5 * random.normal(size=b)
    found = model.similarity(a, b)
    assert found.shape == a.shape[:-1] + b.shape[:-1]
    truth = [
        [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in np.atleast_2d(b)]
        for x in np.atleast_2d(a).astype(np.float64)
    ]
    assert np.ravel(found) == pytest.approx(np.ravel(truth))


def test_cosines_at_the_edges():
    vector = np.array([0.1, 0.7, -0.3])
    assert cosines(vector, vector) <= 1
    assert cosines(vector, 0 * vector) == 0
    for a, b, message in (
        (vector, vector[:2], r"got \(3,\) and \(2,\)"),
        (vector[None, None], vector, r"got \(1, 1, 3\) and \(3,\)"),
        (vector * np.nan, vector, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            cosines(a, b)


def test_the_threshold_is_that_of_the_evaluation(model, run):
    assert model.evaluated == ()
    distance = evaluated(run / "evaluation")
    evaluated(run / "evaluation", "agedb_30")
    (run / "evaluation" / "ijbc.json").write_text("{}")
    assert model.evaluated == ("lfw", "agedb_30"), "those of the configuration first"
    found = model.threshold("lfw")
    assert (found.cosine, found.distance, found.mirror) == (1 - distance / 2, distance, True)
    assert found.source == f"lfw, {run / 'evaluation' / 'lfw.json'}"
    assert model.threshold("lfw", mirror=False)[:3] == (0.25, 1.5, False)


def test_without_a_threshold(model, run, tmp_path):
    with pytest.raises(ValueError, match=r"calfw\.json: expected the figures of calfw, found those of: none; "):
        model.threshold("calfw")
    evaluated(run / "evaluation", step=STEP - 1)
    with pytest.raises(ValueError, match=r"lfw\.json: is of step 19, the network of step 20; evaluate it"):
        model.threshold("lfw")
    evaluated(run / "evaluation", plain=None)
    with pytest.raises(ValueError, match=r"lfw\.json: holds no threshold without mirror images"):
        model.threshold("lfw", mirror=False)
    onnx = load_model(write_model(tmp_path / "m.onnx", np.ones((768, 4)), begins_with=["Sub"]))
    with pytest.raises(ValueError, match=r"m\.onnx.*: expected figures with the threshold of lfw; `evaluate"):
        onnx.threshold("lfw")


def test_figures_from_elsewhere(run, tmp_path):
    """As `evaluate --out` writes them; the step is not that of a run."""
    distance = evaluated(tmp_path / "figures", step=0)
    assert load_model(run, BACKEND, device="cpu", figures=tmp_path / "figures").threshold("lfw").distance == distance


def test_a_model_without_a_framework(tmp_path):
    weight = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, DIMENSIONS))
    path = write_model(tmp_path / "m.onnx", weight)
    with pytest.warns(UserWarning, match="does not begin with a normalisation"):
        load_model(path, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(str(path), device="cpu", onnx=OnnxInput(pixel_scale="1/128", colours="rgb"))
    pixels = channels_first(pictures()).reshape(5, -1) / 128 - 127.5 / 128
    assert model.embed(pictures(), mirror=False) == pytest.approx(pixels @ weight, rel=1e-4, abs=1e-3)


def test_what_is_no_network(run, tmp_path):
    with pytest.raises(ValueError, match=r"expected an ONNX model; `load` of pytorch_impl, mxnet_impl, "):
        load_model(run)
    np.savez(tmp_path / "lfw.npz", embeddings=np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"lfw\.npz.*: expected a network, got embeddings"):
        load_model(tmp_path / "lfw.npz", BACKEND)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_model(tmp_path / "absent", BACKEND)
