"""python -m data convert keeps every byte and the names of people, and names the images that are no good."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.datasets.images import encode_image
from common.datasets.training_sets import open_dataset, people_of_folders, samples
from data.__main__ import main

NAMES = {"Ann": 2, "Bob Ó": 1, "Cyd\n\udce7": 1}
WRITTEN = ["Ann", "Bob Ó", r"Cyd \udce7"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def image(seed: int, size: int = 16) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (3, size, size), np.uint8))


def content(root: Path) -> list[tuple[bytes, int]]:
    return [(sample.encoded, sample.label) for sample in samples(open_dataset(root))]


@pytest.fixture
def source(tmp_path):
    for name, count in NAMES.items():
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "source" / name / f"{number}.png").write_bytes(image(number))
    return tmp_path / "source"


@pytest.mark.parametrize("kinds", [("record", "list", "folder", "list"), ("folder", "record"), ("list", "record")])
def test_names_of_people_are_kept(source, tmp_path, kinds):
    assert open_dataset(source).people == list(NAMES)
    before = content(source)
    for place, kind in enumerate(kinds):
        assert run("convert", "--source", source, "--target", tmp_path / f"{place}", "--kind", kind) == 0
        source = tmp_path / f"{place}"
        assert open_dataset(source).people == WRITTEN
        assert content(source) == before
        assert open_dataset(source).notes == []


def test_folders_that_convert_numbered_have_names(source, tmp_path):
    assert people_of_folders(source) == {name: name for name in NAMES}
    assert run("convert", "--source", source, "--target", tmp_path / "out", "--kind", "folder") == 0
    assert people_of_folders(tmp_path / "out") == dict(zip("012", WRITTEN, strict=True))


def test_a_file_of_another_length_is_none_of_names(source, capsys, tmp_path):
    (source / "labels.txt").write_text("one\ntwo\n")
    dataset = open_dataset(source)
    assert dataset.people == list(NAMES)
    assert dataset.notes == [
        f"{source / 'labels.txt'}: is not used; names of people would be 3 lines, one a label, not 2"
    ]


def test_a_set_without_names_has_none(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(image(0))
    (tmp_path / "set" / "imgs.txt").write_text("a.png 0\n")
    assert run("convert", "--source", tmp_path / "set", "--target", tmp_path / "out", "--kind", "record") == 0
    assert not (tmp_path / "out" / "labels.txt").exists()


@pytest.mark.parametrize("kind", ["record", "list", "folder"])
def test_images_that_do_not_decode_or_fit_are_named(source, tmp_path, capsys, kind):
    for number in range(10, 15):
        (source / "Ann" / f"{number}.png").write_bytes(b"no image")
    (source / "Ann" / "20.png").write_bytes(image(0, 24))
    command = ("convert", "--source", source, "--target", tmp_path / "out", "--kind", kind)
    assert run(*command) == 2
    error = capsys.readouterr().err
    first = f"{source}: 5 of 10 images do not decode: {source / 'Ann/10.png'}: 8 bytes do not decode as an image; "
    assert f"error: {first}" in error
    assert "and 2 more; --on-bad-image skip leaves them out" in error
    assert not (tmp_path / "out").exists()
    assert run(*command, "--on-bad-image", "skip") == 0
    output = capsys.readouterr().out
    assert "left out: 5 of 10 images do not decode" in output
    assert f"note: 1 images are not 16x16: {source / 'Ann/20.png'} 24x24" in output
    assert "5 images of 3 identities" in output
    assert [label for _, label in content(tmp_path / "out")] == [0, 0, 0, 1, 2]


def test_none_decodes(tmp_path, capsys):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.jpg").write_bytes(b"no image")
    command = ("convert", "--source", tmp_path / "set", "--target", tmp_path / "out", "--kind", "list")
    assert run(*command, "--on-bad-image", "skip") == 2
    assert "1 of 1 images do not decode" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".jp2"])
def test_suffixes_are_kept(tmp_path, suffix):
    (tmp_path / "set" / "a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "set" / "a" / f"1{suffix}").write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    assert run("convert", "--source", tmp_path / "set", "--target", tmp_path / "out", "--kind", "folder") == 0
    assert (tmp_path / "out" / "0" / f"0{suffix}").is_file()
