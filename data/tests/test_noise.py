"""Label noise has the given share and kind and is recorded; everything else stays the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.datasets.label_noise import Change, read_labels
from common.datasets.training_sets import open_dataset, samples
from common.weights.checkpoint import save_checkpoint
from data.__main__ import main
from data.noise import nearest_class, plan
from data.synthetic import make_synthetic

CLASSES, IMAGES = 8, 5


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("noise") / "faces", classes=CLASSES, images=IMAGES, size=16, pairs=10)


def run(faces: Path, out: Path, *options: object) -> int:
    return main([str(a) for a in ("noise", "--source", faces, "--out", out, *options)])


def content(root: Path) -> list[tuple[bytes, int]]:
    return [(sample.encoded, sample.label) for sample in samples(open_dataset(root))]


def known(root: Path):
    return read_labels(root, np.array([label for _, label in content(root)]))


def test_uniform_noise_is_what_its_record_says(faces, tmp_path):
    assert run(faces, tmp_path / "out", "--share", 0.4) == 0
    true_label = dict(content(faces))
    found = content(tmp_path / "out")
    assert {image for image, _ in found} == true_label.keys(), "every image is there, none twice"
    wrong = [label != true_label[image] for image, label in found]
    assert sum(wrong) == 0.4 * CLASSES * IMAGES
    labels = known(tmp_path / "out")
    assert labels.is_wrong.tolist() == wrong
    assert labels.original.tolist() == [true_label[image] for image, _ in found]
    summary = json.loads((tmp_path / "out" / "noise.json").read_text())
    expected = {"source": str(faces), "share": 0.4, "kind": "uniform", "seed": 0, "images": 40, "changed": 16}
    assert summary == expected
    assert (tmp_path / "out" / "synthetic.bin").read_bytes() == (faces / "synthetic.bin").read_bytes()
    sources = [int(line.split(",")[3]) for line in (tmp_path / "out" / "noise.csv").read_text().splitlines()[1:]]
    originals = content(faces)
    changed = np.flatnonzero(labels.is_wrong)
    assert [originals[i][0] for i in sources] == [found[i][0] for i in changed]


def test_noise_is_a_function_of_its_seed(faces, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(faces, tmp_path / name, "--share", 0.5, "--seed", seed) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_no_noise_is_the_same_set(faces, tmp_path):
    assert run(faces, tmp_path / "out", "--share", 0) == 0
    assert content(tmp_path / "out") == content(faces)
    assert not known(tmp_path / "out").is_wrong.any()
    assert read_labels(faces, np.zeros(40)) is None


def test_uniform_noise_reaches_every_other_class_equally():
    """16,000 changes over 7 other classes: the expected count is 2,286, and 5 standard deviations are 221."""
    labels = np.repeat(np.arange(8), 2000)
    changed = plan(labels, 8, 1.0, "uniform", 0)
    shift = np.bincount([(changed[i].label - labels[i]) % 8 for i in range(len(labels))], minlength=8)
    assert shift[0] == 0
    assert np.abs(shift[1:] - 16_000 / 7).max() < 221


def test_similar_noise_goes_to_the_nearest_prototype(faces, tmp_path):
    class_weight = np.random.default_rng(0).standard_normal((CLASSES, 4)).astype(np.float32)
    class_weight[3] = 100 * class_weight[5]  # by angle, not by distance
    unit = class_weight / np.linalg.norm(class_weight, axis=1, keepdims=True)
    nearest = [max((j for j in range(CLASSES) if j != i), key=lambda j, i=i: unit[i] @ unit[j]) for i in range(CLASSES)]
    assert nearest_class(class_weight, block=3).tolist() == nearest
    saved = save_checkpoint(tmp_path, 1, {"head.class_weight": class_weight}, {})
    assert run(faces, tmp_path / "out", "--share", 0.3, "--kind", "similar", "--prototypes", saved) == 0
    true_label = dict(content(faces))
    wrong = [(true_label[image], label) for image, label in content(tmp_path / "out") if label != true_label[image]]
    assert len(wrong) == 12
    assert all(label == nearest[true] for true, label in wrong)


def test_outsiders_take_the_place_of_images(faces, tmp_path):
    others = make_synthetic(tmp_path / "others", classes=4, images=5, size=16, pairs=0, seed=9)
    assert run(faces, tmp_path / "out", "--share", 0.5, "--kind", "outsiders", "--outsiders", others) == 0
    found, originals, strangers = content(tmp_path / "out"), dict(content(faces)), dict(content(others))
    assert [label for _, label in found] == [label for _, label in content(faces)]
    labels = known(tmp_path / "out")
    for (image, label), is_wrong, original in zip(found, *labels, strict=True):
        assert (image in strangers) == is_wrong
        assert original == (-1 if is_wrong else originals[image])
        assert is_wrong or originals[image] == label
    assert len({image for image, _ in found}) == 40, "no stranger twice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", 1.5), "share: expected 0 to 1, got 1.5"),
        (("--share", 0.1, "--kind", "similar"), "prototypes: needed by kind similar"),
        (("--share", 0.1, "--outsiders", "x"), "outsiders: only for kind outsiders"),
        (("--share", 0.1, "--kind", "outsiders", "--outsiders", "{few}"), "expected at least 4 images, got 2"),
        (("--share", 0.1, "--kind", "outsiders", "--outsiders", "{large}"), "expected 16x16 pixels, got 24x24"),
        (("--share", 0.1, "--kind", "similar", "--prototypes", "{saved}"), "expected 8 prototypes"),
    ],
)
def test_bad_input_is_named_and_nothing_written(faces, tmp_path, capsys, options, message):
    places = {
        "few": make_synthetic(tmp_path / "few", classes=2, images=1, size=16, pairs=0),
        "large": make_synthetic(tmp_path / "large", classes=4, images=5, size=24, pairs=0),
        "saved": save_checkpoint(tmp_path, 1, {"head.class_weight": np.ones((7, 4), np.float32)}, {}),
    }
    assert run(faces, tmp_path / "out", *(str(option).format(**places) for option in options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


HEADER = ",".join(Change._fields) + "\n"


@pytest.mark.parametrize(
    "text",
    ["", "sample,label\n", HEADER + "1,2,3\n", HEADER + "1,2,3,x,\n", HEADER + "9,0,1,0,\n", HEADER + "0,7,1,0,\n"],
)
def test_a_record_of_another_set_is_refused(tmp_path, text):
    (tmp_path / "noise.csv").write_text(text)
    with pytest.raises(ValueError, match=r"noise.csv line [12]: "):
        read_labels(tmp_path, np.zeros(3, np.int64))
