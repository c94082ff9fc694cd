"""Angles in the log: counted in the right group, by hand on vectors whose angles are known."""

import numpy as np
import pytest

from common.config import DataConfig, HeadConfig
from common.datasets.images import BadImage, encode_image
from common.datasets.label_noise import Change, write_changes
from common.datasets.training_sets import Sample
from common.training.angles import BINS, AngleProbe, inter_weight, intra_weight

# Prototypes in the plane, at these degrees; the image of person i lies at AT[i].
PROTOTYPES = np.array([[np.cos(t), np.sin(t)] for t in np.radians([1, 45, 91])]) * [[5.0], [1.0], [0.1]]
AT = np.array([4.0, 44.0, 88.0, 10.0])


class Faces:
    """Image i is a flat grey of value i; its labels are these."""

    num_classes = 3
    labels = (0, 1, 0, 2)

    def __len__(self) -> int:
        return 4

    def sample(self, index: int) -> Sample:
        return Sample(encode_image(np.full((3, 16, 16), index, np.uint8)), self.labels[index], f"image {index}")


def embed(images: np.ndarray) -> np.ndarray:
    radians = np.radians(AT[images[:, 0, 0, 0]])
    return 3 * np.stack([np.cos(radians), np.sin(radians)], 1)


def probe(root, count: int = 4) -> AngleProbe:
    return AngleProbe(Faces(), DataConfig(root=root, image_size=16), count, seed=0)


def bins(*degrees: float) -> list[int]:
    return np.histogram(degrees, BINS, (0, 180))[0].tolist()


def test_without_known_noise_all_labels_count_as_correct(tmp_path):
    record = probe(tmp_path).record(embed, PROTOTYPES, step=7, batch_size=3)
    assert (record["kind"], record["step"]) == ("angles", 7)
    assert record["correct"]["own"] == bins(3, 1, 87, 81)
    assert record["correct"]["others"] == bins(41, 87, 43, 47, 43, 3, 9, 35)
    assert record["wrong"] == {name: bins() for name in ("own", "others", "true")}


def test_wrong_labels_are_counted_apart(tmp_path):
    """Sample 2 is of person 2 in truth; sample 3 of nobody in the set."""
    write_changes(tmp_path / "noise.csv", [Change(2, 0, 2, 5, None), Change(3, 2, 2, 6, 8)])
    record = probe(tmp_path).record(embed, PROTOTYPES, step=7)
    assert record["correct"]["own"] == bins(3, 1)
    assert record["wrong"]["own"] == bins(87, 81)
    assert record["wrong"]["true"] == bins(3)
    assert record["wrong"]["others"] == bins(43, 3, 9, 35)


def test_the_draw_is_bounded_and_the_same_for_a_seed(tmp_path):
    first, again = (probe(tmp_path, count=2).record(embed, PROTOTYPES, step=1) for _ in range(2))
    assert first == again
    assert sum(first["correct"]["own"]) == 2
    assert sum(probe(tmp_path, count=100).record(embed, PROTOTYPES, step=1)["correct"]["own"]) == 4


def test_damaged_images_are_left_out_only_when_asked(tmp_path, monkeypatch):
    whole = Faces.sample

    def sample(self: Faces, index: int) -> Sample:
        return whole(self, index)._replace(**({"encoded": b""} if index == 1 else {}))

    monkeypatch.setattr(Faces, "sample", sample)
    with pytest.raises(BadImage, match="image 1"):
        probe(tmp_path)
    data = DataConfig(root=tmp_path, image_size=16, on_bad_image="skip")
    record = AngleProbe(Faces(), data, 4, seed=0).record(embed, PROTOTYPES, step=1)
    assert record["correct"]["own"] == bins(3, 87, 81)


def test_the_sigmoids_are_those_of_the_loss():
    head = HeadConfig(scale=10, intra_slope=20, inter_slope=30, intra_center=0.8, inter_center=1.1)
    assert intra_weight(np.array([0.8, 0.9]), head) == pytest.approx([5, 10 / (1 + np.exp(-2))], rel=1e-14)
    assert inter_weight(np.array([1.1, 1.2]), head) == pytest.approx([5, 10 / (1 + np.exp(3))], rel=1e-14)
    with np.errstate(all="raise", under="ignore"):
        assert intra_weight(np.array([0.0, 3.14]), HeadConfig(intra_slope=1e4)).tolist() == [0, 64]
