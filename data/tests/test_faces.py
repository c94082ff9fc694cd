"""Pairs: LFW's format line by line, and the order that balanced folds need."""

import pytest

from data.faces import Pair, all_and_sampled_pairs, alternating, in_turn, people_of, read_pairs

TWO_FOLDS = """2\t2
Ann\t1\t2
Bob\t3\t4
Ann\t1\tBob\t1
Ann\t2\tCyd\t12
Cyd\t1\t2
Cyd\t2\t3
Ann\t3\tDan\t1
Bob\t5\tCyd\t4
"""


def test_read_pairs(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(TWO_FOLDS)
    folds = read_pairs(path)
    assert folds[0] == [
        Pair("Ann/Ann_0001", "Ann/Ann_0002", True),
        Pair("Bob/Bob_0003", "Bob/Bob_0004", True),
        Pair("Ann/Ann_0001", "Bob/Bob_0001", False),
        Pair("Ann/Ann_0002", "Cyd/Cyd_0012", False),
    ]
    assert [pair.is_same for pair in folds[1]] == [True, True, False, False]
    assert [pair.is_same for pair in in_turn(folds[0])] == [True, False, True, False]
    assert set(people_of(folds[1])) == {"Ann", "Bob", "Cyd", "Dan"}


def test_a_single_number_means_one_fold(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    assert len(read_pairs(path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg b/2.png 1\na/1.jpg c/3.jpg 0\n",
        "first,second,same\r\na/1.jpg,b/2.png,1\r\na/1.jpg,c/3.jpg,0\r\n",
        '"a/1.jpg";"b/2.png";"1"\n"a/1.jpg";"c/3.jpg";"0"\n',
        "a/1.jpg\tb/2.png\t1\na/1.jpg\tc/3.jpg\t0",
    ],
)
def test_a_list_of_paths(tmp_path, text):
    path = tmp_path / "pairs.csv"
    path.write_text(text, newline="")
    assert read_pairs(path) == [[Pair("a/1.jpg", "b/2.png", True), Pair("a/1.jpg", "c/3.jpg", False)]]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_the_list_of_cplfw(tmp_path, separator):
    path = tmp_path / "pairs_CPLFW.txt"
    lines = ["AJ_Cook_1.jpg 1", "AJ_Cook_2.jpg 1", "AJ_Cook_1.jpg 0", "Marsha Thomason_3.jpg 0"]
    path.write_text("".join(separator.join(line.rsplit(" ", 1)) + "\r\n" for line in lines))
    same, different = (
        Pair("AJ_Cook_1.jpg", "AJ_Cook_2.jpg", True),
        Pair("AJ_Cook_1.jpg", "Marsha Thomason_3.jpg", False),
    )
    assert read_pairs(path) == [[same, different]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9999999999\t0\n", 'line 1: expected "folds pairs"'),
        ("1\n../../etc\t1\t2\nAnn\t1\tBob\t1\n", "line 2: expected names of people"),
        ("a b 1\na . 0\n", "line 2: expected path, path below the folder, 0 or 1"),
        ("a b 1\na ../b 0\n", "line 2: expected path, path below the folder, 0 or 1"),
        ("a b 1\na b 2\n", "line 2: expected path, path below the folder, 0 or 1"),
        ("Ann_1.jpg 1\nAnn_2.jpg 1\nCyd_1.jpg 0\nDan_1.jpg 1\n", "line 4: expected 0 as in the line before, got 1"),
        ("Ann_1.jpg 1\nAnn_2.jpg 1\nAnn_1.jpg 0\n../Dan_1.jpg 0\n", "line 4: expected a path below the folder"),
        ("Ann_1.jpg 1\nAnn_2.jpg\n", "line 2: expected a path below the folder and 0 or 1, got 'Ann_2.jpg'"),
        ("Ann_1.jpg 1\nAnn_2.jpg 1\nCyd_1.jpg 0\n", "expected two lines a pair, got 3 lines"),
        ("", 'line 1: expected "folds pairs"'),
        ("ten 300\n", 'line 1: expected "folds pairs"'),
        ("1 2 3 4\n", 'line 1: expected "folds pairs"'),
        (TWO_FOLDS.rsplit("\n", 2)[0], "expected 2 x 2 x 2 pairs after line 1, got 7 lines"),
        (TWO_FOLDS.replace("Bob\t3\t4", "Bob\t3"), "line 3: expected person, i, j"),
        (TWO_FOLDS.replace("Ann\t1\tBob\t1", "Ann\t1\t2"), "line 4: expected person, i, person, j"),
        (TWO_FOLDS.replace("Cyd\t12", "Cyd\tx"), "line 5: expected person, i, person, j"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"pairs.txt.*{message}"):
        read_pairs(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a pairs file"):
        read_pairs(tmp_path / "pairs.txt")


def test_alternating_wants_as_many_of_each():
    one = Pair("a", "b", True)
    with pytest.raises(ValueError, match="shorter"):
        alternating([one, one], [one])


def test_all_and_sampled_pairs():
    people = {name: [f"{name}{i}" for i in range(5)] for name in "abcd"}
    pairs = all_and_sampled_pairs(people, seed=0)
    assert len(pairs) == len(set(pairs)) == 2 * 4 * 10
    assert [pair.is_same for pair in pairs] == [True, False] * 40
    assert all((pair.first[0] == pair.second[0]) == pair.is_same for pair in pairs)
    assert pairs == all_and_sampled_pairs(people, seed=0) != all_and_sampled_pairs(people, seed=1)
