"""The three kinds of training set are read; a damaged one is refused with its file and line."""

import os
import time
from pathlib import Path

import pytest

from common.datasets import training_sets
from common.datasets.image_files import image_files
from common.datasets.records import RecordReader, RecordWriter
from common.datasets.training_sets import open_dataset, samples, write_records

IMAGES = [(b"a0", 0), (b"a1", 0), (b"b0", 1), (b"c0", 2), (b"c1", 2)]


def record_folder(root):
    write_records(root, iter(IMAGES), 3, 112)
    return root


def content_of(root):
    return content(open_dataset(root))


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
    with pytest.raises(FileNotFoundError, match="imgs.txt: expected lines of a path and a label, found none"):
        open_dataset(tmp_path, "list")
    with pytest.raises(ValueError, match="expected one folder an identity, found none"):
        open_dataset(tmp_path, "folder")


def test_an_empty_identity_is_named(tmp_path):
    (tmp_path / "ann").mkdir()
    with pytest.raises(ValueError, match="ann: expected images, found none"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "3", "3,112", "x,112,112", "0,112,112", "3,112,112,1", "3/112/112", "9" * 5000 + ",112,112"]
)
def test_a_bad_property_file(tmp_path, text):
    (record_folder(tmp_path) / "property").write_text(text)
    with pytest.raises(ValueError, match='property: expected one line "classes,height,width", for example'):
        open_dataset(tmp_path)


def test_a_missing_property_file(tmp_path):
    (record_folder(tmp_path) / "property").unlink()
    with pytest.raises(
        FileNotFoundError,
        match="property: is missing; it should hold one line .classes,height,width., for example 10572,112,112",
    ):
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


@pytest.mark.parametrize("line", ["only", "a.jpg x", "a.jpg -1", "a.jpg 1.5", " 3", "a.jpg ²", "a.jpg " + "9" * 5000])
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


@pytest.mark.parametrize("content", ["a b.jpg 0\r\nc.jpg\t1\r\n", "a b.jpg 0\rc.jpg 1"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_as_windows_and_spreadsheets_write_it(tmp_path, content, encoding):
    (tmp_path / "imgs.txt").write_bytes(content.encode(encoding))
    for name in ("a b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert content_of(tmp_path) == [(b"a b.jpg", 0), (b"c.jpg", 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"../x.jpg 0", "line 2: expected a path below"),
        (b"/dev/zero 0", "line 2: expected a path below"),
        (b"caf\xe9.jpg 0", "line 2: expected text in UTF-8"),
        (b"a\0b.jpg 0", "line 2: expected lines of a path and a label, got a NUL byte"),
        (b"a.jpg 20231103", "labels go up to 20231103, but there are only 2 images; number classes 0 .. C-1"),
    ],
)
def test_a_list_that_cannot_be_meant(tmp_path, line, message):
    (tmp_path / "imgs.txt").write_bytes(b"a.jpg 0\n" + line)
    with pytest.raises(ValueError, match=f"imgs.txt:? {message}"):
        open_dataset(tmp_path)


def test_a_pipe_in_place_of_an_image_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg: expected a regular file"):
        open_dataset(tmp_path).sample(0)


def test_missing_images_of_a_list_are_counted_when_it_is_opened(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"image")
    (tmp_path / "link.jpg").symlink_to("a/1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("absent")
    good = ["a/1.jpg 0", "link.jpg 0", "", "./a//1.jpg 1"]
    lines = [*good, "a/2.jpg 1", "b/1.jpg 1", "pipe.jpg 0", "broken.jpg 0", "a 0"]
    (tmp_path / "imgs.txt").write_text("\n".join(lines))
    message = rf"imgs.txt line 5: {tmp_path}/a/2.jpg is missing or no file; of the 8 images, 5 are"
    with pytest.raises(FileNotFoundError, match=message):
        open_dataset(tmp_path)
    (tmp_path / "imgs.txt").write_text("\n".join(good))
    assert len(open_dataset(tmp_path)) == 3


def test_classes_without_an_image_are_counted(tmp_path):
    (tmp_path / "imgs.txt").write_text("a.jpg 1\nb.jpg 3\n")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    assert open_dataset(tmp_path).notes == [f"{tmp_path / 'imgs.txt'}: 2 of the classes 0 to 3 have no image"]


def test_more_classes_than_images_can_have(tmp_path):
    (record_folder(tmp_path) / "property").write_text("100000,112,112")
    with pytest.raises(ValueError, match="property: labels go up to 99999, but there are only 5 images"):
        open_dataset(tmp_path)


def test_leftovers_of_programs_are_no_identities(tmp_path):
    for name in (".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg", "ann/1.jpg", "ann/._1.jpg", "ann/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.num_classes) == (1, 1)
    (note,) = dataset.notes
    assert "passed over as no images: 4 ('.ipynb_checkpoints', '@eaDir', 'ann/._1.jpg' ...)" in note


def test_images_behind_links_are_found_once(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ann").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real")  # a circle
    (tmp_path / "set" / "notes.txt").write_text("x")
    assert image_files(tmp_path / "set") == [Path("ann/1.jpg")]
    assert "passed over as no images: 1 ('notes.txt')" in capsys.readouterr().out


@pytest.mark.parametrize("end", [2**24 - 1, 2**24 + 1, 42_474_557, 42_474_558])
def test_identity_keys_that_float32_rounds(tmp_path, end):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write_header(end - 5, end, end + 2)
        for key in range(end - 4, end):
            writer.write_image(key, 0, b"image")
        writer.write_header(end, end - 4, end - 2)
        writer.write_header(end + 1, end - 2, end)
    (tmp_path / "property").write_text("2,112,112")
    assert content_of(tmp_path) == [(b"image", 0)] * 4


def test_keys_that_float32_would_round_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(training_sets, "EXACT_KEYS", 8)
    write_records(tmp_path / "fits", [(b"x", i // 3) for i in range(5)], 2, 112)
    with pytest.raises(ValueError, match="expected fewer than 8 images and identities together"):
        write_records(tmp_path / "too many", [(b"x", i // 3) for i in range(6)], 2, 112)
    assert not list((tmp_path / "too many").iterdir())


def test_an_index_without_its_last_line(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in range(3):
            writer.write_image(key, 0, b"image")
    (tmp_path / "property").write_text("1,112,112")
    assert open_dataset(tmp_path).notes == []
    index = tmp_path / "train.idx"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:2]))
    (note,) = open_dataset(tmp_path).notes
    assert "train.idx: the last record that it lists ends at byte 80 of 120; images after it are not used" in note


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
