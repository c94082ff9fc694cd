"""Lists as spreadsheets write them are read by every reader as the same lists, and errors name the right line."""

import codecs

import numpy as np
import pytest

from common.datasets import label_noise
from common.datasets.images import encode_image
from common.datasets.training_sets import open_dataset, samples, write_records
from common.io.rows import cells, each_row, path_and_numbers
from common.protocols import ijb, megaface
from data.align import read_landmarks
from data.faces import Pair, read_pairs
from parity_tests.known import read_known

WRITERS = {
    "plain": str.encode,
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "windows": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "old mac": lambda text: text.replace("\n", "\r").encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}
FORMS = {
    "commas": lambda rows: "".join(",".join(row) + "\n" for row in rows),
    "cells at the end": lambda rows: "".join(",".join(row) + ",,\n" for row in rows) + ",,,\n\n",
    "semicolons": lambda rows: "".join(";".join(row) + ";\n" for row in rows),
    "quotes": lambda rows: "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows),
    "quoted semicolons": lambda rows: "".join(";".join(f'"{cell}"' for cell in row) + "\n" for row in rows),
    "tabs": lambda rows: "".join("\t".join(row) + "\n" for row in rows),
}
POINTS = [[float(10 * i + j) + 0.5 for i in range(10)] for j in range(2)]


@pytest.fixture(params=[(writer, "commas") for writer in WRITERS] + [("windows", form) for form in FORMS])
def write(request, tmp_path):
    writer, form = request.param

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(WRITERS[writer](FORMS[form]([list(map(str, row)) for row in rows])))
        return path

    return write


@pytest.mark.parametrize("head", [[], [("path", "label")]])
def test_list(write, tmp_path, head):
    for name in ("a b.jpg", "Ó.jpg"):
        (tmp_path / name).write_bytes(b"image")
    write("imgs.txt", [*head, ("a b.jpg", 1), ("Ó.jpg", 0)])
    found = [(sample.name, sample.label) for sample in samples(open_dataset(tmp_path))]
    assert found == [(str(tmp_path / "a b.jpg"), 1), (str(tmp_path / "Ó.jpg"), 0)]


def test_property_and_noise(write, tmp_path):
    write_records(tmp_path, [(b"x", 0), (b"y", 1)], 2, 112)
    write("property", [(2, 112, 112)])
    assert open_dataset(tmp_path).num_classes == 2
    write("noise.csv", [label_noise.Change._fields, (0, 0, 1, 1, ""), (1, 1, 0, 0, 7)])
    assert label_noise.read_labels(tmp_path, np.array([0, 1])).original.tolist() == [1, -1]


def test_pairs(write):
    same = Pair("Ann B/Ann B_0001", "Ann B/Ann B_0002", True)
    different = Pair("Ann B/Ann B_0001", "Cyd/Cyd_0003", False)
    rows = [(2, 1), ("Ann B", 1, 2), ("Ann B", 1, "Cyd", 3)]
    assert read_pairs(write("pairs.txt", [*rows, *rows[1:]])) == [[same, different]] * 2
    paths = [Pair("a b.jpg", "c.jpg", True), Pair("a b.jpg", "d.jpg", False)]
    rows = [("a b.jpg", "c.jpg", 1), ("a b.jpg", "d.jpg", 0)]
    assert read_pairs(write("paths.csv", [("one", "two", "same"), *rows])) == read_pairs(write("b", rows)) == [paths]
    assert read_pairs(write("c", [(name, is_same) for *names, is_same in rows for name in names])) == [paths]


def test_landmarks(write):
    rows = [(name, *points) for name, points in zip(["a b.jpg", "Ó.jpg"], POINTS, strict=True)]
    found = read_landmarks(write("points.csv", [("path", *"abcdefghij"), *rows]))
    assert {name: points.ravel().tolist() for name, points in found.items()} == dict(
        zip(["a b.jpg", "Ó.jpg"], POINTS, strict=True)
    )


def test_decimal_commas(tmp_path):
    numbers = ["38,5", *["7"] * 9]
    for separator in ";\t":
        (tmp_path / "points.csv").write_text(separator.join(["a, b;c.jpg" if separator == "\t" else "a.jpg", *numbers]))
        ((points,),) = [read_landmarks(tmp_path / "points.csv").values()]
        assert points[0].tolist() == [38.5, 7]


def test_lists_of_ijb(write, tmp_path):
    write("meta/ijbc_face_tid_mid.txt", [("1.jpg", 7, 1), ("2.jpg", 8, 2)])
    write("meta/ijbc_name_5pts_score.txt", [(f"{i + 1}.jpg", *points, 0.5) for i, points in enumerate(POINTS)])
    write("meta/ijbc_template_pair_label.txt", [(7, 8, 0), (7, 7, 1)])
    write("meta/ijbc_1N_probe_mixed.csv", [("TEMPLATE_ID", "SUBJECT_ID", "FILENAME"), (7, 1, "img/1.jpg"), (8, 2, "x")])
    faces = ijb.read_faces(tmp_path, "ijbc")
    assert faces.names == ("1.jpg", "2.jpg")
    assert faces.landmarks.reshape(2, 10).tolist() == POINTS
    assert ijb.read_pairs(tmp_path, "ijbc").issame.tolist() == [False, True]
    assert ijb.read_template_subjects(tmp_path, "ijbc", "probes").subjects.tolist() == [1, 2]


def test_noisy_faces_and_known_failures(write):
    assert megaface.read_noisy(write("noisy.txt", [("# faces",), (17, "3/4 5/a b.jpg"), ("c_1.png",)])) == {
        "3/4 5/a b.jpg",
        "c_1.png",
    }
    (known,) = read_known(write("known.txt", [("# known",), ("sface[*] # slow",)]))
    assert (known.pattern, known.reason) == ("sface[*]", "slow")


@pytest.mark.parametrize("writer", ["plain", "utf-16", "old mac"])
def test_each_row_keeps_the_numbers_of_lines(tmp_path, writer):
    (tmp_path / "a").write_bytes(WRITERS[writer]("\none\n,,\n two \n\n"))
    assert list(each_row(tmp_path / "a", "rows")) == [(2, "one"), (4, " two ")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n" * 9000 + b"\xff\n", "a line 9001: expected text in UTF-8"),
        (b"one\ntw\0\n", "a line 2: expected rows, got a NUL byte"),
        (codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le") + b"\x00\xd8", "a line 2: expected text in UTF-8"),
    ],
)
def test_what_is_no_text_is_named_by_its_line(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(each_row(tmp_path / "a", "rows"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a  b\tc", ["a  b", "c"]),
        ('"a;b",c', ["a;b", "c"]),
        ('"a ""b""" "c d"  1 ', ['a "b"', "c d", "1"]),
        ("a,,b,", ["a", "", "b"]),
        ('"' + "x" * 200_000, ['"' + "x" * 200_000]),
    ],
)
def test_cells(line, found):
    assert cells(line) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Smith, Ann/1.jpg 7", ("Smith, Ann/1.jpg", ["7"])),
        ("a;b c.jpg 7", ("a;b c.jpg", ["7"])),
        ("a.jpg\t1 2", ("a.jpg", ["1", "2"])),
        ('"a ""b"".jpg",7', ('a "b".jpg', ["7"])),
        ("a.jpg", None),
        ("7", None),
        ("a.jpg x", None),
    ],
)
def test_path_and_numbers(line, found):
    assert path_and_numbers(line, len(found[1]) if found else 1) == found


def test_a_picture_is_no_list(tmp_path):
    (tmp_path / "imgs.txt").write_bytes(encode_image(np.zeros((3, 16, 16), np.uint8)))
    with pytest.raises(ValueError, match=r"imgs.txt line 1: expected text in UTF-8"):
        open_dataset(tmp_path)
