"""MegaFace's files, and the command on a small generated set: from images, features and arrays."""

import json
import re
import struct
from functools import partial

import numpy as np
import pytest

from common.commands import megaface as command
from common.commands.main import main
from common.datasets.images import decode_image
from common.protocols import megaface
from common.protocols.distractors import search_among_distractors
from common.protocols.megaface import ProbeList
from common.tests.protocol_stand_ins import BACKEND, SIZE, embed, stand_ins
from common.tests.protocols.test_distractors import slow_search
from data.synthetic_protocols import make_megaface_synthetic

__all__ = ["stand_ins"]  # a fixture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("mf") / "megaface"
    return make_megaface_synthetic(root, people=3, photos=4, distractors=30, noisy=2, size=SIZE)


def run(source, root, *arguments):
    return main(BACKEND, ["megaface", str(source), "--root", str(root), "--size", "30", *map(str, arguments)])


def lists_of(root):
    lists = root / "devkit" / "templatelists"
    return megaface.read_probe_list(lists / megaface.PROBE_LIST), megaface.read_distractor_list(
        lists / megaface.distractor_list(30)
    )


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings.astype(float), axis=1, keepdims=True)


def embedded(folder, paths, flip=True):
    images = np.stack([decode_image((folder / path).read_bytes(), path, SIZE) for path in paths])
    return unit(embed(images) + (embed(images[..., ::-1]) if flip else 0))


# ---- the files ----


def write_feature(path, feature):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f"<4i{len(feature)}f", len(feature), 1, 4, 5, *feature))


def test_a_feature_is_read(tmp_path):
    write_feature(tmp_path / "a.bin", [1.5, -2, 0.25])
    assert np.array_equal(megaface.read_feature(tmp_path / "a.bin"), [1.5, -2, 0.25])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<4i", 3, 1, 4, 5),
        struct.pack("<4i3f", 4, 1, 4, 5, 1, 2, 3),  # cut short
        struct.pack("<4i3f", 2, 1, 4, 5, 1, 2, 3),  # too long
        struct.pack("<4i3f", -3, 1, 4, 5, 1, 2, 3),
        struct.pack("<4i3f", 2**30 + 3, 1, 4, 5, 1, 2, 3),  # 4 * rows overflows to the right size
        struct.pack("<4i3f", 1, 3, 12, 5, 1, 2, 3),  # a row, not a column
        struct.pack("<4i3f", 3, 1, 8, 5, 1, 2, 3),
        struct.pack("<4i3f", 3, 1, 4, 6, 1, 2, 3),  # float64
        struct.pack(">4i3f", 3, 1, 4, 5, 1, 2, 3),
        struct.pack("<4i3f", 3, 1, 4, 5, 1, np.nan, 3),
    ],
)
def test_damaged_features(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "a.bin")) + ": expected"):
        megaface.read_feature(tmp_path / "a.bin")


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="got 1099511627776 bytes"):
        megaface.read_feature(tmp_path / "a.bin")


def test_feature_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(megaface, "FEATURES_AT_ONCE", 2)
    for i in range(5):
        write_feature(tmp_path / "x" / f"{i}_r.bin", np.array([3, 4 * i]))
    blocks = list(megaface.feature_blocks(tmp_path, [f"x/{i}" for i in range(5)], "_r.bin"))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert np.concatenate(blocks)[1] == pytest.approx([0.6, 0.8])
    write_feature(tmp_path / "x" / "4_r.bin", np.ones(3))
    with pytest.raises(ValueError, match="4_r.bin: expected 2 numbers, as in the first feature, got 3"):
        list(megaface.feature_blocks(tmp_path, [f"x/{i}" for i in range(5)], "_r.bin"))
    with pytest.raises(FileNotFoundError, match="5_r.bin: is missing; it should hold the feature"):
        list(megaface.feature_blocks(tmp_path, ["x/5"], "_r.bin"))


def test_lists(made):
    probes, distractors = lists_of(made)
    assert probes.paths[:2] == ("Person_0/Person_0_0.png", "Person_0/Person_0_1.png")
    assert probes.subjects == tuple(f"Person_{i // 4}" for i in range(12))
    assert len(distractors) == 30
    assert distractors[12] == "000/0000001@N00/12_0.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a JSON object [(]Expecting"),
        ("[" * 100_000, "a JSON object [(]maximum recursion"),
        ("[]", "got list"),
        ("{}", '"path", a list of paths'),
        ('{"path": []}', "not empty"),
        ('{"path": ["a.png", 3], "id": ["a", "b"]}', "a list of paths"),
        ('{"path": ["../a.png"], "id": ["a"]}', "inside the folder of images, got '../a.png'"),
        ('{"path": ["/etc/a.png"], "id": ["a"]}', "inside the folder"),
        ('{"path": ["."], "id": ["a"]}', "inside the folder"),
        ('{"path": ["a.png", "b.png"], "id": ["a"]}', "for each of 2 paths, got 1"),
        ('{"path": ["a.png"]}', "for each of 1 paths, got none"),
        ('{"path": ["a.png"], "id": [[]]}', "a string or a number"),
        ('{"path": ["a.png", "a.png"], "id": ["a", "b"]}', "different photos, got 1 of them twice"),
    ],
)
def test_damaged_lists(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        megaface.read_probe_list(tmp_path / "list.json")


def test_noisy_faces(tmp_path):
    (tmp_path / "noises.txt").write_text("# 3 faces\na_1.png\n17\t363/3@N00/2 5_0.jpg\n\nb_2.png \n")
    noisy = megaface.read_noisy(tmp_path / "noises.txt")
    assert noisy == {"a_1.png", "363/3@N00/2 5_0.jpg", "b_2.png"}
    probes = ProbeList(("A/a_1.png", "A/a_2.png", "B/b_2.png"), ("A", "A", "B"))
    assert megaface.noisy_probes(probes, noisy).tolist() == [True, False, True]
    paths = ["363/3@N00/2 5_0.jpg", "root/363/3@N00/2 5_0.jpg", "3@N00/2 5_0.jpg", "a_1.png"]
    assert megaface.noisy_distractors(paths, noisy).tolist() == [True, True, False, True]
    with pytest.raises(FileNotFoundError, match="expected a list that names a noisy face a line"):
        megaface.read_noisy(tmp_path / "none.txt")
    (tmp_path / "noises.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="expected text"):
        megaface.read_noisy(tmp_path / "noises.txt")


def test_centres_for_noisy_probes():
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, -1], [0, 1]], np.float32)
    noisy = np.array([False, False, True, False])
    replaced = megaface.centres_for_noisy(embeddings, ["a", "a", "a", "b"], noisy)
    assert np.array_equal(replaced[~noisy], embeddings[~noisy])
    assert replaced[2] == pytest.approx(np.array([1.6, 0.8]) / np.hypot(1.6, 0.8), abs=1e-3)
    assert np.linalg.norm(replaced[2]) == pytest.approx(1, abs=1e-6)
    assert not np.array_equal(replaced[2], megaface.centres_for_noisy(embeddings, ["a"] * 4, noisy, seed=1)[2])
    with pytest.raises(ValueError, match="a clean photo of each person, got none of 'b'"):
        megaface.centres_for_noisy(embeddings, ["a", "a", "a", "b"], np.array([False] * 3 + [True]))


def test_unit_rows_keep_zeros():
    assert megaface.unit_rows(np.array([[0.0, 0], [3, 4]])).tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]


# ---- the command ----


@pytest.mark.parametrize("noisy", ["remove", "keep"])
@pytest.mark.parametrize("flip", [True, False])
def test_the_command_equals_the_slow_protocol(made, tmp_path, capsys, stand_ins, monkeypatch, noisy, flip):
    fars = (1e-6, 1e-2)
    monkeypatch.setattr(command, "search_among_distractors", partial(search_among_distractors, fars=fars))
    switches = ["--noisy", noisy] + ([] if flip else ["--no-flip"])
    assert run("a/run", made, "--out", tmp_path, "--batch-size", 5, *switches) == 0
    record = json.loads((tmp_path / "megaface-30-1.json").read_text())
    probes, distractors = lists_of(made)
    left_out = 2 if noisy == "remove" else 0
    faces = embedded(made / "facescrub_images", probes.paths[left_out:], flip)
    others = embedded(made / "megaface_images", distractors[left_out:], flip)
    cmc, tar, mates = slow_search(faces, probes.subjects[left_out:], others, 1000, fars)
    assert mates == (2 + 12 + 12 if left_out else 36)
    assert {k: record["cmc"][str(k)] for k in (1, 10, 1000)} == {k: pytest.approx(cmc[k - 1]) for k in (1, 10, 1000)}
    assert record["tar"]["0.01"]["rate"] == pytest.approx(tar[1e-2][0])
    assert set(record["tar"]["1e-06"].values()) == {None}  # 280 or 360 pairs of a probe and a distractor
    assert 0 < cmc[0] < 1  # the generated set tells networks apart
    counts = ("probes", "subjects", "searches", "distractors", "noisy_probes", "noisy_distractors", "lone_probes")
    assert [record[count] for count in counts] == [12 - left_out, 3, mates, 30 - left_out, left_out, left_out, 0]
    assert (record["noisy"], record["flip"]) == (noisy, flip)
    printed = capsys.readouterr().out
    assert f"{12 - left_out} probes of 3 people, {mates} searches, {30 - left_out} distractors" in printed
    assert re.search(rf"rank-1 .*\n[- ]+\n *{100 * cmc[0]:.2f} .* –  +{100 * tar[1e-2][0]:.2f}\n", printed)


def test_features_and_arrays_give_the_figures_of_the_images(made, tmp_path, stand_ins, monkeypatch):
    monkeypatch.setattr(command, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(megaface, "FEATURES_AT_ONCE", 8)
    monkeypatch.setattr(command, "search_among_distractors", partial(search_among_distractors, fars=(0.01,)))
    probes, distractors = lists_of(made)
    arrays = {}
    for part, paths in (("facescrub", probes.paths), ("megaface", distractors)):
        images = np.stack([decode_image((made / f"{part}_images" / p).read_bytes(), p, SIZE) for p in paths])
        arrays[part], arrays[f"{part}_mirrored"] = embed(images), embed(images[..., ::-1])
        for path, feature in zip(paths, arrays[part] + arrays[f"{part}_mirrored"], strict=True):
            write_feature(tmp_path / "features" / part / f"{path}_net.bin", feature)
    np.savez(tmp_path / "all.npz", **arrays)
    for noisy in ("remove", "centre"):
        records = []
        for source in ("a/run", tmp_path / "all.npz", tmp_path / "features"):
            assert run(source, made, "--out", tmp_path, "--suffix", "_net.bin", "--noisy", noisy) == 0
            records.append(json.loads((tmp_path / "megaface-30-1.json").read_text()))
        assert [record["flip"] for record in records] == [True, True, None]
        for record in records[1:]:
            assert record["cmc"] == records[0]["cmc"]
            assert record["probes"] == records[0]["probes"] == (10 if noisy == "remove" else 12)
            assert record["tar"]["0.01"] == pytest.approx(records[0]["tar"]["0.01"], abs=1e-6)


def test_a_noisy_photo_counts_as_the_centre_of_its_person(tmp_path, stand_ins):
    """One photo of a person shows a stranger: nobody finds it until it is replaced."""
    root = make_megaface_synthetic(tmp_path / "mf", people=3, photos=4, distractors=30, noisy=1, size=SIZE)
    stranger = root / "megaface_images" / "000" / "0000001@N00" / "12_0.jpg"
    (root / "facescrub_images" / "Person_0" / "Person_0_0.png").write_bytes(stranger.read_bytes())
    rates = {}
    for noisy in ("keep", "centre", "remove"):
        assert run("a/run", root, "--out", tmp_path, "--noisy", noisy) == 0
        record = json.loads((tmp_path / "megaface-30-1.json").read_text())
        rates[noisy] = record["cmc"]["1"] * record["searches"]
    found_without = rates["remove"]
    assert rates["keep"] == pytest.approx(found_without)
    assert rates["centre"] >= found_without + 5  # of the 6 searches that it is in


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("facescrub_noises.txt", "facescrub_noises.txt: expected a list that names a noisy face a line"),
        ("megaface_noises.txt", "megaface_noises.txt: expected a list"),
        ("devkit/templatelists/facescrub_features_list.json", 'it should hold {"id": [...], "path": [...]}'),
        ("devkit/templatelists/megaface_features_list.json_30_1", 'it should hold {"path": [...]}'),
        ("facescrub_images/Person_1/Person_1_2.png", "Person_1_2.png: is missing, as are 0 others of the images"),
        ("megaface_images/000/0000001@N00/12_0.jpg", "12_0.jpg: is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path, capsys, stand_ins, remove, message):
    root = make_megaface_synthetic(tmp_path / "mf", people=3, photos=4, distractors=30, size=SIZE)
    (root / remove).unlink()
    assert run("a/run", root) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("facescrub", np.ones((11, 4)), r"facescrub 11 x 4 float64.*: expected 'facescrub' of shape \(12, D\), float"),
        ("megaface", np.ones((30, 4), int), r"megaface 30 x 4 int64: expected 'megaface' of shape \(30, D\), float"),
        ("megaface", np.ones((30, 5)), r"shape \(n, 4\), as the probes, got \(28, 5\)"),
        ("megaface", np.full((30, 4), np.nan), "not finite"),
        ("facescrub", None, "expected an array 'facescrub'"),
    ],
)
def test_bad_arrays(made, tmp_path, capsys, stand_ins, part, value, message):
    arrays = {"facescrub": np.ones((12, 4)), "megaface": np.ones((30, 4)), part: value}
    np.savez(tmp_path / "bad.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert run(tmp_path / "bad.npz", made, "--no-flip") == 2
    assert re.search(message, capsys.readouterr().err)


def test_nothing_left(tmp_path, capsys, stand_ins):
    root = make_megaface_synthetic(tmp_path / "mf", people=1, photos=2, distractors=30, noisy=1, size=SIZE)
    (root / "facescrub_noises.txt").write_text("Person_0_0.png\nPerson_0_1.png\n")
    assert run("a/run", root) == 2
    assert "expected clean probes and distractors, got 0 and 29" in capsys.readouterr().err
