"""python -m data align on drawn faces, with landmarks from files and from a stand-in for the detector."""

import json
import os

import cv2
import numpy as np
import pytest

from common.datasets.alignment import TEMPLATE, align
from common.datasets.images import BadImage, decode_image, decode_photo, encode_image
from common.tests.yellow_faces import SquareDetector, squares, stand_in
from data import align as module
from data.__main__ import main
from data.align import read_landmarks


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def photo(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth noise, (3, H, W)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)


def landmarks(seed: int) -> np.ndarray:
    """Landmarks at a random place and size, (5, 2) float32."""
    random = np.random.default_rng(seed)
    return (TEMPLATE * random.uniform(0.5, 1) + random.uniform(0, 30, 2)).astype(np.float32)


NAMES = ["Ann/1.png", "Ann/2.png", "Bob/deep er/3.png", "top.png"]


@pytest.fixture
def source(tmp_path):
    for seed, name in enumerate(NAMES):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(photo(seed)))
    (tmp_path / "source" / "notes.txt").write_text("no image")
    return tmp_path / "source"


@pytest.fixture
def points(tmp_path):
    return write_points(tmp_path / "points.txt", NAMES)


def write_points(path, names, separator=" "):
    lines = [separator.join([name, *map(repr, landmarks(NAMES.index(name)).ravel().tolist())]) for name in names]
    path.write_text("\n".join(lines) + "\n")
    return path


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_image_is_aligned_by_its_own_landmarks(source, points, tmp_path, capsys):
    assert run("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points) == 0
    assert files(tmp_path / "out") == sorted([*NAMES, "align.json", "left_out.txt"])
    for seed, name in enumerate(NAMES):
        expected = align(np.ascontiguousarray(photo(seed).transpose(1, 2, 0)), landmarks(seed))
        assert np.array_equal(decode_image((tmp_path / "out" / name).read_bytes(), name, 112), expected)
    assert "4 images aligned, 0 were there already, 0 left out" in capsys.readouterr().out
    assert (tmp_path / "out" / "left_out.txt").read_text() == ""


def test_size_and_suffix(source, points, tmp_path):
    options = ("--landmarks", points, "--size", 56, "--suffix", ".jpg")
    assert run("align", "--source", source, "--out", tmp_path / "out", *options) == 0
    content = (tmp_path / "out" / "Bob" / "deep er" / "3.jpg").read_bytes()
    assert content.startswith(b"\xff\xd8")
    assert decode_image(content, "image", 56).shape == (3, 56, 56)


def test_what_cannot_be_aligned_is_listed_and_tried_again(source, tmp_path, capsys):
    points = write_points(tmp_path / "points.txt", NAMES[:3])
    swapped = "83.5 51.5 38.3 51.7 56 71.7 70.7 92.2 41.5 92.4"
    points.write_text(points.read_text() + "top.png" + " 7.5" * 10 + f"\nswapped.png {swapped}\n")
    gone = [f"{name}.gif {swapped}\n" for name in "ab"]
    points.write_text(points.read_text() + "".join(gone))
    (source / "swapped.png").write_bytes(encode_image(photo(8)))
    (source / "Ann" / "2.png").write_bytes(b"not an image")
    (source / "new.jpg").write_bytes(encode_image(photo(9)))
    os.mkfifo(source / "pipe.png")
    command = ("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points)
    assert run(*command) == 0
    listed = dict(line.split("\t") for line in (tmp_path / "out" / "left_out.txt").read_text().splitlines())
    assert listed == {
        "Ann/2.png": "12 bytes do not decode as an image",
        "new.jpg": f"no landmarks in {points}",
        "top.png": "expected points that differ, got 5 times [7.5, 7.5]",
        "swapped.png": listed["swapped.png"],
        "pipe.png": f"{source / 'pipe.png'}: expected a regular file, found a folder, device or pipe",
    }
    assert "pixels from those of a face at best; expected x and y in turn of left eye" in listed["swapped.png"]
    output = capsys.readouterr()
    notes = output.out[: output.out.index("left out: ")]
    assert "points.txt: 2 images have no landmarks there: 'new.jpg', 'pipe.png'" in notes
    assert "points.txt: 2 lines name images that are not there: 'a.gif', 'b.gif'" in notes
    assert "2 images aligned, 0 were there already, 5 left out" in output.out
    assert "left out: Ann/2.png: 12 bytes" in output.out
    (source / "Ann" / "2.png").write_bytes(encode_image(photo(1)))
    assert run(*command) == 0
    assert "1 images aligned, 2 were there already, 4 left out" in capsys.readouterr().out
    assert "Ann/2.png" not in (tmp_path / "out" / "left_out.txt").read_text()


def test_a_run_that_was_stopped_goes_on(source, points, tmp_path, monkeypatch):
    """Images that are there are not made again, and no unfinished file is left."""
    calls = []

    def stopping(image, found, size):
        calls.append(found)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return align(image, found, size)

    monkeypatch.setattr(module, "align", stopping)
    command = ("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points)
    assert run(*command) == 130
    assert files(tmp_path / "out") == ["Ann/1.png", "Ann/2.png", "align.json"]
    assert run(*command) == 0
    assert len(calls) == 5
    assert set(NAMES) < set(files(tmp_path / "out"))


def test_other_settings_do_not_mix(source, points, tmp_path, capsys):
    command = ("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points)
    assert run(*command) == 0
    assert run(*command, "--size", 64) == 2
    assert "aligned with {'size': 112" in capsys.readouterr().err
    points.write_text(points.read_text().replace("Ann/1.png ", "Ann/1.png  "))
    assert run(*command) == 2, "another file of landmarks under the same name"
    assert run(*command, "--size", 64, "--overwrite") == 0
    assert decode_image((tmp_path / "out" / "top.png").read_bytes(), "image", 64).shape == (3, 64, 64)
    assert json.loads((tmp_path / "out" / "align.json").read_text())["size"] == 64
    assert run(*command, "--suffix", ".jpg", "--overwrite") == 0
    assert "top.png" not in files(tmp_path / "out")


def test_damaged_settings_are_named(source, points, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "align.json").write_text("{")
    assert run("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points) == 2
    error = capsys.readouterr().err
    assert "align.json: expected the settings of aligned images" in error
    assert "pass --overwrite to make all images again" in error


def test_folders_that_cannot_be_written_to(source, points, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for out, message in ((source / "aligned", "a folder outside of"), (tmp_path / "mine", "is not empty and has no")):
        assert run("align", "--source", source, "--out", out, "--landmarks", points) == 2
        assert message in capsys.readouterr().err


def test_two_images_for_one_file(source, points, tmp_path, capsys):
    (source / "top.jpg").write_bytes(encode_image(photo(5), ".jpg"))
    assert run("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points) == 2
    assert "top.jpg and top.png would both become top.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of --landmarks and --detector"),
        (("--landmarks", "points.txt", "--detector", "x.onnx"), "one of --landmarks and --detector"),
        (("--landmarks", "absent.txt"), "expected a file of landmarks, found none"),
        (("--detector", "absent.onnx"), "expected the detector's ONNX file, found none"),
        (("--detector", "points.txt"), "points.txt: cannot be opened as YuNet"),
        (("--landmarks", "points.txt", "--size", "3"), "at least 16 pixels"),
        (("--detector", "points.txt", "--min-score", "2"), "a score from 0 to 1"),
    ],
)
def test_bad_options(source, points, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert run("align", "--source", source, "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_align(source, tmp_path, capsys):
    points = write_points(tmp_path / "points.txt", ["top.png"])
    points.write_text(points.read_text().replace("top", "other"))
    assert run("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points) == 2
    assert "points.txt: names none of the 4 images, such as 'Ann/1.png', but 'other.png'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "known before anything is written"
    points.write_text("top.png" + " 7.5" * 10)
    assert run("align", "--source", source, "--out", tmp_path / "out", "--landmarks", points) == 2
    assert "none of the 4 images could be aligned" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        assert run("align", "--source", tmp_path / folder, "--out", tmp_path / "out2", "--landmarks", points) == 2
    assert "expected a folder of images, found none" in capsys.readouterr().err


# ---- files of landmarks ----


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_separators(tmp_path, separator):
    found = read_landmarks(write_points(tmp_path / "points.csv", NAMES, separator))
    assert list(found) == NAMES
    assert found["Bob/deep er/3.png"].dtype == np.float32
    assert np.array_equal(found["Bob/deep er/3.png"], landmarks(2))


def test_a_head_line_and_blank_lines(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n\na, b.jpg,1,2,3,4,5,6,7,8,9,1e1\n")
    assert read_landmarks(path)["a, b.jpg"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no landmarks"),
        ("a.jpg 1 2 3\n", "line 1: expected a path and ten finite numbers, got 'a.jpg 1 2 3'"),
        ("1 2 3 4 5 6 7 8 9 10\n", "line 1: expected a path"),
        ("a.jpg 1 2 3 4 5 6 7 8 9 x\n", "line 1: expected a path"),
        ("a 1 2 3 4 5 6 7 8 9 10\nb.jpg 1 2 3 4 5 6 7 8 9 nan\n", "line 2: expected a path"),
        ("a 1 2 3 4 5 6 7 8 9 10\npath 1 2\n", "line 2: expected a path"),
        ("a 1 2 3 4 5 6 7 8 9 10\na 1 2 3 4 5 6 7 8 9 10\n", "line 2: a is there twice"),
        ("a 1 2 3 4 5 6 7 8 9 10\n../a 1 2 3 4 5 6 7 8 9 10\n", "line 2: expected a path below the images' folder"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    (tmp_path / "points.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_landmarks(tmp_path / "points.txt")


# ---- detection ----


@pytest.fixture
def detector(monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path)


@pytest.mark.parametrize("shape", [(200, 300), (1000, 1500), (1500, 800)], ids=["small", "wide", "high"])
def test_the_face_fills_the_aligned_image(detector, tmp_path, shape):
    """The square has the template in it, so it fills the result, also if the image was shrunk for detection."""
    height, width = shape
    side = min(shape) // 2
    (tmp_path / "source").mkdir()
    box = (width // 4, height // 4, side)
    (tmp_path / "source" / "face.png").write_bytes(squares(box, height=height, width=width))
    assert run("align", "--source", tmp_path / "source", "--out", tmp_path / "out", "--detector", detector) == 0
    aligned = decode_image((tmp_path / "out" / "face.png").read_bytes(), "face", 112)
    assert (aligned[:2, 2:-2, 2:-2] == 255).all()
    assert (aligned[2] == 0).all()


def test_no_face(detector, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "face.png").write_bytes(squares((20, 30, 60)))
    (tmp_path / "source" / "none.png").write_bytes(squares())
    assert run("align", "--source", tmp_path / "source", "--out", tmp_path / "out", "--detector", detector) == 0
    assert (tmp_path / "out" / "left_out.txt").read_text() == (
        "none.png\tno face found in 300x200 pixels with a score of 0.6 or more (--detect-at, --min-score)\n"
    )
    assert "1 images aligned, 0 were there already, 1 left out" in capsys.readouterr().out


def test_the_choice_reaches_the_detector(detector, tmp_path):
    """Two faces differ in size; the area around the chosen one shows which it was."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "two.png").write_bytes(squares((10, 10, 80), (140, 90, 20)))
    for choice in ("largest", "central"):
        out = tmp_path / choice
        command = ("align", "--source", tmp_path / "source", "--out", out, "--detector", detector, "--face", choice)
        assert run(*command) == 0
    largest, central = (
        decode_image((tmp_path / name / "two.png").read_bytes(), name, 112) for name in ("largest", "central")
    )
    assert (largest[:2, 1:-1, 1:-1] == 255).all()
    assert (central[:2, 4:-4, 4:-4] == 255).all()
    assert (central[:2, 0] < 255).all(), "the edges of the small square are blurred more"


def test_the_detector_is_made_with_the_options(detector, tmp_path, monkeypatch):
    made = []
    create = lambda *arguments: made.append(arguments) or SquareDetector(*arguments)  # noqa: E731
    monkeypatch.setattr(cv2, "FaceDetectorYN", type("FaceDetectorYN", (), {"create": create}))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "face.png").write_bytes(squares((20, 30, 60)))
    options = ("--detect-at", 64, "--min-score", 0.8)
    command = ("align", "--source", tmp_path / "source", "--out", tmp_path / "out", "--detector", detector, *options)
    assert run(*command) == 0
    assert made == [(str(detector), "", (64, 64), 0.8)]


def test_a_photo_is_decoded_at_any_size():
    image = photo(0)
    decoded = decode_photo(encode_image(image), "photo")
    assert np.array_equal(decoded, image.transpose(1, 2, 0))
    assert decoded.flags.c_contiguous
    with pytest.raises(BadImage, match="photo: 3 bytes do not decode"):
        decode_photo(b"abc", "photo")
