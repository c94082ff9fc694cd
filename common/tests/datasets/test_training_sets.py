"""The three kinds of training set are read; a damaged one is refused with its file and line."""

import time

import pytest

from common.datasets.records import RecordReader, RecordWriter
from common.datasets.training_sets import open_dataset, samples, write_records

IMAGES = [(b"a0", 0), (b"a1", 0), (b"b0", 1), (b"c0", 2), (b"c1", 2)]


def record_folder(root):
    write_records(root, iter(IMAGES), 3, 112)
    return root


def content(dataset):
    return [(sample.encoded, sample.label) for sample in samples(dataset)]


def test_records(tmp_path):
    dataset = open_dataset(record_folder(tmp_path))
    assert (len(dataset), dataset.num_classes) == (5, 3)
    assert content(dataset) == IMAGES


def test_records_without_an_index(tmp_path):
    (record_folder(tmp_path) / "train.idx").unlink()
    assert content(open_dataset(tmp_path)) == IMAGES


def test_the_layout_is_insightfaces(tmp_path):
    """Record 0: (first identity key, end); identity records: (first image key, end); property: classes, size."""
    reader = RecordReader(record_folder(tmp_path) / "train.rec")
    assert reader.keys.tolist() == list(range(9))
    assert reader.read(0) == (2, (6.0, 9.0), b"")
    assert [reader.read(key).labels for key in (6, 7, 8)] == [(1.0, 3.0), (3.0, 4.0), (4.0, 6.0)]
    assert (tmp_path / "property").read_text() == "3,112,112\n"


@pytest.mark.parametrize("with_index", [True, False])
def test_record_0_may_stand_after_the_images(tmp_path, with_index):
    """As insightface's face2rec2.py writes it, in file and index."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, (image, label) in enumerate(IMAGES, 1):
            writer.write_image(key, label, image)
        writer.write_header(0, 6, 9)
        for key, (first, end) in enumerate([(1, 3), (3, 4), (4, 6)], 6):
            writer.write_header(key, first, end)
    (tmp_path / "property").write_text("3,112,112")
    if not with_index:
        (tmp_path / "train.idx").unlink()
    assert content(open_dataset(tmp_path)) == IMAGES


def test_records_without_a_header_are_all_images(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, (image, label) in enumerate(IMAGES):
            writer.write_image(key, label, image)
    (tmp_path / "property").write_text("3,112,112")
    assert content(open_dataset(tmp_path)) == IMAGES


def test_list(tmp_path):
    (tmp_path / "a folder").mkdir()
    for name in ("a folder/0 1.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "imgs.txt").write_text("a folder/0 1.jpg 1\n\nb.jpg 0\n")
    dataset = open_dataset(tmp_path)
    assert dataset.num_classes == 2
    assert content(dataset) == [(b"a folder/0 1.jpg", 1), (b"b.jpg", 0)]


def test_folder(tmp_path):
    for name in ("bob/1.png", "ann/2.JPG", "ann/1.jpg", "ann/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    dataset = open_dataset(tmp_path)
    assert dataset.num_classes == 2
    assert content(dataset) == [(b"ann/1.jpg", 0), (b"ann/2.JPG", 0), (b"bob/1.png", 1)]


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: expected a folder at .*nowhere"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected train.rec, or imgs.txt, or one folder an identity"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="train.rec: expected a record file"):
        open_dataset(tmp_path, "record")
    with pytest.raises(FileNotFoundError, match="imgs.txt: expected this file"):
        open_dataset(tmp_path, "list")
    with pytest.raises(ValueError, match="expected one folder an identity, found none"):
        open_dataset(tmp_path, "folder")


def test_an_empty_identity_is_named(tmp_path):
    (tmp_path / "ann").mkdir()
    with pytest.raises(ValueError, match="ann: expected images, found none"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["", "3", "3,112", "x,112,112", "0,112,112", "3,112,112,1", "3;112;112"])
def test_a_bad_property_file(tmp_path, text):
    (record_folder(tmp_path) / "property").write_text(text)
    with pytest.raises(ValueError, match='property: expected "classes,height,width"'):
        open_dataset(tmp_path)


def test_a_missing_property_file(tmp_path):
    (record_folder(tmp_path) / "property").unlink()
    with pytest.raises(FileNotFoundError, match="property: expected this file"):
        open_dataset(tmp_path)


def test_an_index_cut_short(tmp_path):
    index = record_folder(tmp_path) / "train.idx"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="keys 1 to 5 are images, but the index has 3 of these 5"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("label", [3, -1, 0.5, float("nan"), float("inf")])
def test_a_bad_label_is_named(tmp_path, label):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write_image(0, label, b"image")
    (tmp_path / "property").write_text("3,112,112")
    with pytest.raises(ValueError, match=r"train.rec key 0: expected a label 0 to 2"):
        open_dataset(tmp_path).sample(0)


@pytest.mark.parametrize("line", ["onlyone", "a.jpg x", "a.jpg -1", "a.jpg 1.5", " 3"])
def test_a_bad_list_line_is_named(tmp_path, line):
    (tmp_path / "imgs.txt").write_text(f"a.jpg 0\n{line}\n")
    with pytest.raises(ValueError, match="imgs.txt line 2: expected a path and a label"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [([(b"a", 3)], "expected a label 0 to 2, got 3"), ([(b"a", 0), (b"b", 1), (b"c", 0)], "label 0 comes again")],
)
def test_writing_bad_labels_leaves_nothing(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        write_records(tmp_path, images, 3, 112)
    assert not list(tmp_path.iterdir())


def test_a_large_file_opens_without_a_pass_over_its_records(tmp_path):
    """Opening 100,000 records reads none of them, which would take seconds; labels are read with their samples."""
    write_records(tmp_path, ((b"x", i // 10) for i in range(100_000)), 10_000, 112)
    reads = []
    original = RecordReader.read_at
    try:
        RecordReader.read_at = lambda self, row: reads.append(row) or original(self, row)
        started = time.monotonic()
        dataset = open_dataset(tmp_path)
        dataset.sample(99_999)
    finally:
        RecordReader.read_at = original
    assert len(reads) == 2
    assert time.monotonic() - started < 20  # a hang, not a benchmark
