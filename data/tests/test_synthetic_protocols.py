"""The generated sets in the layouts of IJB and MegaFace, as a user makes them."""

import json

import numpy as np
import pytest

from common.datasets.alignment import TEMPLATE
from common.datasets.images import decode_photo
from common.protocols.ijb import read_faces, read_pairs, read_search_lists
from data.__main__ import main


def run(command, out, *arguments):
    return main([command, "--out", str(out), *map(str, arguments)])


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("ijb-synthetic", ("--subjects", 4, "--probes", 1, "--size", 16)),
        ("megaface-synthetic", ("--people", 2, "--photos", 3, "--distractors", 5, "--size", 16)),
    ],
)
def test_a_function_of_the_seed(tmp_path, capsys, command, arguments):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(command, tmp_path / name, *arguments, "--seed", seed) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")
    assert run(command, tmp_path / "a", *arguments) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run(command, tmp_path / "a", *arguments, "--overwrite") == 0


def test_ijb(tmp_path):
    assert run("ijb-synthetic", tmp_path / "set", "--name", "ijbb", "--subjects", 5, "--size", 32) == 0
    faces, pairs = read_faces(tmp_path / "set", "ijbb"), read_pairs(tmp_path / "set", "ijbb")
    lists = read_search_lists(tmp_path / "set", "ijbb")
    assert set(faces.template_ids) == set(range(1, 21))
    counts = np.unique(faces.media_ids, return_counts=True)[1]
    assert {1, 2} <= set(counts)  # stills and videos
    assert len(pairs.issame) == 15 * 5
    assert pairs.issame.sum() == 15
    assert lists["S1"].subjects.tolist() + lists["S2"].subjects.tolist() == [0, 1, 2, 3, 4]
    assert lists["probes"].subjects.tolist() == [0, 1, 2, 3, 4] * 3
    assert len(list((tmp_path / "set" / "loose_crop").iterdir())) == len(faces.names)
    path, points = tmp_path / "set" / "loose_crop" / faces.names[0], faces.landmarks[0]
    crop = decode_photo(path.read_bytes(), path.name)
    assert crop.shape == (48, 48, 3)
    assert points - points[0] == pytest.approx((TEMPLATE - TEMPLATE[0]) * 32 / 112, abs=1e-2)


def test_megaface(tmp_path):
    assert run("megaface-synthetic", tmp_path / "set", "--people", 2, "--photos", 3, "--distractors", 12, "--noisy", 1,
               "--size", 16) == 0  # fmt: skip
    root = tmp_path / "set"
    probes = json.loads((root / "devkit/templatelists/facescrub_features_list.json").read_text())
    distractors = json.loads((root / "devkit/templatelists/megaface_features_list.json_12_1").read_text())
    assert probes["id"] == ["Person_0"] * 3 + ["Person_1"] * 3
    assert all((root / "facescrub_images" / path).is_file() for path in probes["path"])
    assert all((root / "megaface_images" / path).is_file() for path in distractors["path"])
    assert (root / "facescrub_noises.txt").read_text() == "# noisy faces\nPerson_0_0.png\n"
    assert (root / "megaface_noises.txt").read_text() == f"# noisy faces\n0\t{distractors['path'][0]}\n"


@pytest.mark.parametrize(
    ("command", "argument", "message"),
    [
        ("ijb-synthetic", ("--subjects", 3), "subjects: expected at least 4, got 3"),
        ("ijb-synthetic", ("--size", 15), "size: expected at least 16"),
        ("megaface-synthetic", ("--photos", 1), "photos: expected at least 2, got 1"),
        ("megaface-synthetic", ("--noisy", 4), "0 <= noisy < photos and distractors"),
        ("megaface-synthetic", ("--size", 15), "size >= 16"),
    ],
)
def test_bad_arguments(tmp_path, capsys, command, argument, message):
    assert run(command, tmp_path / "set", *argument) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
