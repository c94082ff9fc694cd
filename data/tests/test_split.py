"""A set of any kind becomes a training set, and pairs of people who are not in it."""

import json
import shutil
from pathlib import Path

import pytest

from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset, samples
from data.__main__ import main
from data.faces import all_and_sampled_pairs
from data.synthetic import make_synthetic

CLASSES, IMAGES = 9, 4


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("split") / "faces", classes=CLASSES, images=IMAGES, size=16, pairs=0)


@pytest.fixture(scope="module")
def folders(record, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("folders") / "faces"
    assert main(["convert", "--source", str(record), "--target", str(target), "--kind", "folder"]) == 0
    return target


def run(source: Path, out: Path, *options: object) -> int:
    return main([str(a) for a in ("split", "--source", source, "--out", out, *options)])


def content(root: Path) -> list[tuple[bytes, int]]:
    return [(sample.encoded, sample.label) for sample in samples(open_dataset(root))]


def images_of_pairs(root: Path) -> list[bytes]:
    pairs = open_pair_set(root / f"{root.name}.bin")
    return [pairs.encoded(image) for image in range(2 * len(pairs))]


@pytest.mark.parametrize("kind", ["record", "list", "folder"])
def test_nobody_is_trained_and_tested(record, tmp_path, kind):
    source = tmp_path / "source"
    assert main(["convert", "--source", str(record), "--target", str(source), "--kind", kind]) == 0
    assert run(source, tmp_path / "mine", "--people", 4) == 0
    person = dict(content(record))
    found = content(tmp_path / "mine")
    split = json.loads((tmp_path / "mine" / "split.json").read_text())
    unseen = split["unseen"]
    assert len(unseen) == 4
    kept = [label for label in range(CLASSES) if label not in unseen]
    assert found == [(image, kept.index(label)) for image, label in content(record) if label in kept]
    assert open_dataset(tmp_path / "mine").num_classes == CLASSES - 4
    named = kind == "folder"  # its folders' names
    assert open_dataset(tmp_path / "mine").people == ([f"{label:02d}" for label in kept] if named else [])
    assert split.get("unseen_people") == ([f"{label:02d}" for label in unseen] if named else None)
    assert (tmp_path / "mine" / "property").read_text() == "5,16,16\n"

    pairs = open_pair_set(tmp_path / "mine" / "mine.bin")
    shown = images_of_pairs(tmp_path / "mine")
    assert {person[image] for image in shown} == set(unseen)
    same = [person[a] == person[b] for a, b in zip(shown[::2], shown[1::2], strict=True)]
    assert pairs.issame.tolist() == same == [True, False] * (4 * IMAGES * (IMAGES - 1) // 2)
    assert all(a != b for a, b in zip(shown[::2], shown[1::2], strict=True))


def test_seed_people_and_name(record, tmp_path):
    for name, options in {"a": (), "b": (), "c": ("--seed", 1)}.items():
        assert run(record, tmp_path / name, "--people", 3, "--pairs", 21, "--name", "test", *options) == 0
        assert len(open_pair_set(tmp_path / name / "test.bin")) == 20
    a, b, c = (((tmp_path / name / "test.bin").read_bytes(), content(tmp_path / name)) for name in "abc")
    assert a == b
    assert a[0] != c[0]
    assert a[1] != c[1]


def test_fewer_pairs_than_asked_for_are_said(record, tmp_path, capsys):
    assert run(record, tmp_path / "mine", "--people", 3) == 0
    expected = "24 images of 6 people to train, 36 pairs (not 900: there are no more) of 3 others"
    assert expected in capsys.readouterr().out


def test_people_with_one_image_are_trained_on(folders, tmp_path):
    source = shutil.copytree(folders, tmp_path / "source")
    for person in range(4):
        for image in sorted((source / str(person).zfill(2)).iterdir())[1:]:
            image.unlink()
    assert run(source, tmp_path / "mine", "--people", 5) == 0
    assert json.loads((tmp_path / "mine" / "split.json").read_text())["unseen"] == [4, 5, 6, 7, 8]
    assert [label for _, label in content(tmp_path / "mine")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--people", 8), "--people: expected at most 7, got 8"),
        (("--people", 1), "--people: expected at least 2, got 1"),
        (("--pairs", 18), "--pairs: expected at least 20, got 18"),
        (("--people", 2, "--seed", -1), "--seed: expected at least 0"),
        (("--people", 2, "--name", "a/b"), "expected a name that can be part of a file name, got 'a/b'"),
    ],
)
def test_options_that_do_not_fit(record, tmp_path, capsys, options, message):
    assert run(record, tmp_path / "mine", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_sources_that_do_not_fit(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "mine") == 2
    assert "expected train.rec, or imgs.txt, or one folder an identity" in capsys.readouterr().err
    broken = shutil.copytree(folders, tmp_path / "broken")
    for image in broken.rglob("*.jpg"):
        image.write_bytes(b"broken")
    assert run(broken, tmp_path / "mine", "--people", 3) == 2
    assert ".jpg: 6 bytes do not decode" in capsys.readouterr().err
    few = tmp_path / "few"
    for person in sorted(folders.iterdir()):
        (few / person.name).mkdir(parents=True)
        for image in sorted(person.iterdir())[:2]:
            shutil.copy(image, few / person.name)
    assert run(few, tmp_path / "mine", "--people", 7) == 2
    assert "expected people with 20 pairs to test on, found 14; take more people" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_two_people_without_enough_pairs_of_two():
    """Ten pairs of Ann, and ten of Ann and Bob would need ten images: the draw must end."""
    pairs = all_and_sampled_pairs({"ann": [f"a{i}" for i in range(5)], "bob": ["b"]}, seed=0)
    assert len(pairs) == len(set(pairs)) == 10
    assert [pair.is_same for pair in pairs] == [True, False] * 5
