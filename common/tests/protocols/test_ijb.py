"""The files of IJB-B and IJB-C, and the command on a small generated set against the protocol in plain loops."""

import csv
import json
import re
from functools import partial

import numpy as np
import pytest

from common.commands.main import main
from common.datasets.alignment import align
from common.datasets.images import decode_photo
from common.protocols import ijb
from common.protocols.identification import UNMEASURED
from common.protocols.ijb import TemplateSubjects
from common.protocols.templates import Pooling, Templates
from common.tests.protocol_stand_ins import BACKEND, SIZE, embed, stand_ins
from common.tests.protocols.test_identification import slow_compare
from common.tests.protocols.test_templates import slow_pool
from data.synthetic_protocols import make_ijb_synthetic

__all__ = ["stand_ins"]  # a fixture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_ijb_synthetic(tmp_path_factory.mktemp("ijb") / "IJBC", subjects=6, probes=2, size=24)


@pytest.fixture
def root(made, tmp_path):
    """A copy of the lists, to be damaged; the images are those of `made`."""
    (tmp_path / "meta").mkdir()
    for path in (made / "meta").iterdir():
        (tmp_path / "meta" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "loose_crop").symlink_to(made / "loose_crop")
    return tmp_path


def change(root, part, edit):
    path = ijb.layout(root, "ijbc")[part][0]
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in edit(lines)))
    return path


def run(*arguments):
    return main(BACKEND, ["ijb", *map(str, arguments)])


# ---- the files ----


def test_faces(made):
    faces = ijb.read_faces(made, "ijbc")
    media = [line.split() for line in (made / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    listed = [line.split() for line in (made / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()]
    assert faces.names == tuple(line[0] for line in media)
    assert faces.template_ids.tolist() == [int(line[1]) for line in media]
    assert faces.media_ids.tolist() == [int(line[2]) for line in media]
    assert faces.landmarks.shape == (len(media), 5, 2)
    assert faces.landmarks.dtype == faces.detector_scores.dtype == np.float32
    assert faces.landmarks[3, 2].tolist() == [np.float32(listed[3][5]), np.float32(listed[3][6])]
    assert faces.detector_scores[3] == np.float32(listed[3][11])


def test_pairs_are_read_in_blocks(made, monkeypatch):
    whole = ijb.read_pairs(made, "ijbc")
    expected = np.loadtxt(made / "meta" / "ijbc_template_pair_label.txt", int)
    monkeypatch.setattr(ijb, "_PAIRS_AT_ONCE", 7)
    for pairs in (whole, ijb.read_pairs(made, "ijbc")):
        assert np.array_equal(np.stack([pairs.first, pairs.second, pairs.issame], axis=1), expected)
        assert pairs.issame.dtype == np.bool_


def test_a_damaged_line_of_a_later_block_is_numbered_right(root, monkeypatch):
    monkeypatch.setattr(ijb, "_PAIRS_AT_ONCE", 7)
    for bad, message in (("1 2", "line 20: expected 3 whole numbers"), ("1 2 5", "line 20: expected two template ids")):
        change(root, "pairs", lambda lines: [*lines[:19], bad, *lines[20:]])  # noqa: B023
        with pytest.raises(ValueError, match=message):
            ijb.read_pairs(root, "ijbc")


def test_template_subjects(made):
    probes = ijb.read_template_subjects(made, "ijbc", "probes")
    assert probes.templates.tolist() == list(range(7, 19))
    assert probes.subjects.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert ijb.read_template_subjects(made, "ijbc", "G2").subjects.tolist() == [3, 4, 5]


def test_galleries_are_named_s_in_ijbb(tmp_path):
    made = make_ijb_synthetic(tmp_path / "IJBB", name="ijbb", subjects=4, probes=1, size=16)
    assert (made / "meta" / "ijbb_1N_gallery_S2.csv").is_file()
    assert ijb.missing_files(made, "ijbb") == {}
    assert list(ijb.read_search_lists(made, "ijbb")) == ["probes", "S1", "S2"]


def test_a_name_that_is_no_set(made):
    with pytest.raises(ValueError, match="expected one of ijbb, ijbc, got 'ijba'"):
        ijb.layout(made, "ijba")


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("media", lambda lines: lines[:-1], r"name_5pts_score.txt: expected the \d+ images of ijbc_face_tid_mid.txt"),
        ("media", lambda lines: [], "tid_mid.txt, got"),
        ("media", lambda lines: ["9.jpg 1 1", *lines[1:]], "line 1: expected the file name .* '9.jpg'"),
        ("media", lambda lines: [lines[0], "2.jpg one 1", *lines[2:]], "tid_mid.txt: expected numbers .*one"),
        ("media", lambda lines: [lines[0], "2.jpg 1.5 1", *lines[2:]], "tid_mid.txt: expected numbers .*1.5"),
        ("media", lambda lines: ["", *lines[:-1], "9.jpg"], "line .*: expected 3 fields, got 1"),
        ("faces", lambda lines: [*lines[:-1], lines[-1] + " 1"], "line .*: expected 12 fields, got 13"),
        ("faces", lambda lines: [lines[0], lines[1].replace("0.", "nan0.", 1), *lines[2:]], "numbers after the file"),
        ("faces", lambda lines: [lines[0], "", lines[1][:-5] + " inf", *lines[2:]], "line 3: expected finite numbers"),
    ],
)
def test_damaged_lists_of_images(root, part, edit, message):
    change(root, part, edit)
    with pytest.raises(ValueError, match=message):
        ijb.read_faces(root, "ijbc")


def test_a_file_name_that_leaves_the_folder(root):
    for part in ("media", "faces"):
        change(root, part, lambda lines: ["../" + lines[0], *lines[1:]])
    with pytest.raises(ValueError, match="without folders"):
        ijb.read_faces(root, "ijbc")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "is empty; expected pairs"),
        (lambda lines: [lines[0], "1 2 2", *lines[2:]], r"line 2: expected two template ids and 1 or 0, got \[1 2 2\]"),
        (lambda lines: [lines[0], "1 2 -1", *lines[2:]], "line 2: expected two template ids"),
        (lambda lines: [lines[0], f"{2**31} 2 1", *lines[2:]], "line 2: expected two template ids"),
        (lambda lines: [lines[0], "1 2", *lines[2:]], "line 2: expected 3 whole numbers, got '1 2'"),
        (lambda lines: ["1 2"], "expected 3 whole numbers"),
        (lambda lines: [lines[0], "1 two 1", *lines[2:]], "line 2: expected 3 whole numbers, got '1 two 1'"),
        (lambda lines: [lines[0], "", "1 2", *lines[1:]], "line 3: expected 3 whole numbers"),
    ],
)
def test_damaged_pairs(root, edit, message):
    change(root, "pairs", edit)
    with pytest.raises(ValueError, match=message):
        ijb.read_pairs(root, "ijbc")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[1:], "expected a header in the first line, got 7,0"),
        (lambda lines: lines[:1], "holds no template"),
        (lambda lines: [*lines, "7,5,x.jpg"], r"line \d+: template 7 is of subject 0 before, and of 5 here"),
        (lambda lines: [*lines, "7"], r"line \d+: expected TEMPLATE_ID,SUBJECT_ID"),
        (lambda lines: [*lines, "x,5"], "expected TEMPLATE_ID,SUBJECT_ID"),
        (lambda lines: [*lines, f"{2**63},5"], r"line \d+: expected TEMPLATE_ID,SUBJECT_ID"),
    ],
)
def test_damaged_lists_of_subjects(root, edit, message):
    change(root, "probes", edit)
    with pytest.raises(ValueError, match=message):
        ijb.read_template_subjects(root, "ijbc", "probes")


def test_means_over_galleries(monkeypatch):
    """G1: one of two mates is first, and none above the alarm of the others; G2: the only mate is first and above."""
    ids = np.arange(1, 8)
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0.5], [0.5, 1, 0.25], [0, 1.5, 1], [0, 0, 2]]
    templates = Templates(ids, np.array(rows))
    lists = {
        "probes": TemplateSubjects(ids[3:], np.array([10, 10, 12, 12])),
        "G1": TemplateSubjects(ids[:2], np.array([10, 11])),
        "G2": TemplateSubjects(ids[2:3], np.array([12])),
    }
    monkeypatch.setattr(ijb, "FPIRS", (0.5,))
    monkeypatch.setattr(ijb, "search", partial(ijb.search, fpirs=(0.5,)))
    found = ijb.search_galleries(templates, lists)
    assert [(g.mated, g.unmated, g.ranks[1]) for g in found.galleries.values()] == [(2, 2, 0.5), (2, 2, 1)]
    lists["probes"].subjects[3] = 99
    found = ijb.search_galleries(templates, lists)
    assert [g.mated for g in found.galleries.values()] == [2, 1]
    assert found.ranks[1] == pytest.approx(2 / 3)  # of three mated probes, and not the mean of 1/2 and 1
    rates = [g.tpir[0.5].rate for g in found.galleries.values()]
    assert found.tpir[0.5] == np.mean(rates)
    assert found.merged.gallery == 3
    assert found.probes == 4


# ---- the command ----


def slow_figures(root, embeddings, mirrored, pooling):
    """TAR at FAR and the 1:N figures from the files and the definitions."""
    meta = root / "meta"
    media = [line.split() for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    scores = [np.float32(line.split()[-1]) for line in (meta / "ijbc_name_5pts_score.txt").read_text().splitlines()]
    ids = [int(line[1]) for line in media]
    templates = slow_pool(embeddings, mirrored, ids, [int(line[2]) for line in media], scores, pooling)
    pairs = [list(map(int, line.split())) for line in (meta / "ijbc_template_pair_label.txt").read_text().splitlines()]
    cosines = [float(np.sum(templates[a] * templates[b])) for a, b, _ in pairs]
    tar = {far: slow_compare(cosines, [bool(same) for *_, same in pairs], far) for far in (1e-2, 1e-1)}

    lists = {}
    for part in ("probe_mixed", "gallery_G1", "gallery_G2"):
        with (meta / f"ijbc_1N_{part}.csv").open() as file:
            lists[part] = {int(row["TEMPLATE_ID"]): int(row["SUBJECT_ID"]) for row in csv.DictReader(file)}
    ranks = {}
    for name, gallery in (
        ("G1", lists["gallery_G1"]),
        ("G2", lists["gallery_G2"]),
        ("merged", lists["gallery_G1"] | lists["gallery_G2"]),
    ):
        hits = []
        for probe, subject in lists["probe_mixed"].items():
            by_score = sorted(gallery, key=lambda t: np.sum(templates[probe] * templates[t]), reverse=True)
            if subject in gallery.values():
                hits.append(gallery[by_score[0]] == subject)
        ranks[name] = sum(hits) / len(hits)
    return tar, ranks


@pytest.mark.parametrize(
    ("switches", "pooling"),
    [
        ([], Pooling()),
        (["--flip", "concatenate", "--no-keep-norm"], Pooling("concatenate", keep_norm=False)),
        (["--flip", "none", "--no-detector-score"], Pooling("none", detector_score=False)),
    ],
)
def test_the_command_equals_the_slow_protocol(made, tmp_path, capsys, stand_ins, switches, pooling):
    assert run("a/run", "--root", made, "--out", tmp_path, "--batch-size", 7, *switches) == 0
    record = json.loads((tmp_path / "ijbc.json").read_text())
    faces = ijb.read_faces(made, "ijbc")
    crops = [decode_photo((made / "loose_crop" / name).read_bytes(), name) for name in faces.names]
    images = np.stack([align(*face, SIZE) for face in zip(crops, faces.landmarks, strict=True)])
    tar, ranks = slow_figures(made, embed(images), embed(images[..., ::-1]), pooling)
    for far, point in tar.items():
        found = record["one_to_one"]["tar"][repr(far)]
        if point is UNMEASURED:  # 60 pairs of two people
            assert (far, set(found.values())) == (1e-2, {None})
            continue
        assert (found["rate"], found["false_rate"]) == point[:2]
        assert found["threshold"] == pytest.approx(point.threshold, abs=1e-12)
    searches = record["one_to_n"]
    assert searches["galleries"]["G1"]["ranks"]["1"] == ranks["G1"]
    assert searches["galleries"]["G2"]["ranks"]["1"] == ranks["G2"]
    assert searches["merged"]["ranks"]["1"] == ranks["merged"]
    assert searches["ranks"]["1"] == pytest.approx((ranks["G1"] + ranks["G2"]) / 2)
    for name in ("G1", "G2"):  # six probes without a mate, and no FPIR of 0.1 or less
        assert searches["galleries"][name]["tpir"]["0.1"] == {"rate": None, "false_rate": None, "threshold": None}
    assert searches["tpir"] == {"0.001": None, "0.01": None, "0.1": None}
    assert (record["set"], record["images"], record["templates"]) == ("ijbc", len(faces.names), 18)
    assert (record["flip"], record["keep_norm"], record["detector_score"]) == tuple(vars(pooling).values())
    assert (record["one_to_one"]["pairs"], record["one_to_one"]["same_pairs"], searches["probes"]) == (72, 12, 12)

    # The table says the same.
    printed = capsys.readouterr().out
    assert "1:1, 72 pairs, 12 of one person" in printed
    table = {line.split("  ")[0]: line.split()[1:] for line in printed.splitlines() if line}
    assert table["TAR %"][-2:] == ["–", f"{100 * tar[1e-1].rate:.2f}"]
    assert table["FAR reached"][-2:] == ["–", f"{tar[1e-1].false_rate:.2g}"]
    assert table["G1"][2] == f"{100 * ranks['G1']:.2f}"


def test_embeddings_from_a_file_give_the_same_figures(made, tmp_path, stand_ins):
    faces = ijb.read_faces(made, "ijbc")
    crops = [decode_photo((made / "loose_crop" / name).read_bytes(), name) for name in faces.names]
    images = np.stack([align(*face, SIZE) for face in zip(crops, faces.landmarks, strict=True)])
    np.savez(tmp_path / "all.npz", embeddings=embed(images), mirrored=embed(images[..., ::-1]))
    for flip in ("sum", "concatenate", "none"):
        records = []
        for source in ("a/run", tmp_path / "all.npz"):
            assert run(source, "--root", made, "--out", tmp_path, "--flip", flip) == 0
            record = json.loads((tmp_path / "ijbc.json").read_text())
            del record["source"]
            records.append(record)
        assert records[0] == records[1]


@pytest.mark.parametrize(
    ("arrays", "switches", "message"),
    [
        ({"other": np.ones((3, 2))}, [], "other 3 x 2 float64: expected an array 'embeddings'"),
        (
            {"embeddings": np.ones((3, 2))},
            [],
            r"embeddings 3 x 2 float64: expected 'embeddings' of shape \(\d+, D\), float",
        ),
        ({"embeddings": 0}, [], "expected an array 'mirrored', or --flip none"),
        ({"embeddings": np.nan}, ["--flip", "none"], "image 0 .* not finite"),
    ],
)
def test_bad_embeddings(made, tmp_path, capsys, stand_ins, arrays, switches, message):
    faces = ijb.read_faces(made, "ijbc")
    filled = {k: np.full((len(faces.names), 4), v, np.float32) if np.ndim(v) == 0 else v for k, v in arrays.items()}
    np.savez(tmp_path / "bad.npz", **filled)
    assert run(tmp_path / "bad.npz", "--root", made, *switches) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_protocol_whose_files_are_missing_is_named_and_the_other_is_evaluated(root, tmp_path, capsys, stand_ins):
    (root / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    assert run("a/run", "--root", root, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "1:1, 72 pairs" in printed
    assert "1:N" not in printed
    assert "missing: expected" in printed
    assert "ijbc_1N_gallery_G2.csv (a header, then TEMPLATE_ID,SUBJECT_ID,... a line)" in printed
    assert json.loads((tmp_path / "out" / "ijbc.json").read_text())["one_to_n"] is None

    (root / "meta" / "ijbc_template_pair_label.txt").unlink()
    assert run("a/run", "--root", root) == 2
    error = capsys.readouterr().err
    assert "ijbc_template_pair_label.txt (a line a pair: two template ids, 1 or 0)" in error
    assert "ijbc_1N_gallery_G2.csv" in error


def test_the_search_alone(root, capsys, stand_ins):
    (root / "meta" / "ijbc_template_pair_label.txt").unlink()
    assert run("a/run", "--root", root) == 1
    printed = capsys.readouterr().out
    assert "1:N, 12 probes" in printed
    assert "1:1" not in printed


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("pairs", lambda lines: [*lines, "1 99 0"], "ijbc_template_pair_label.txt: .*template 99, which has none"),
        ("probes", lambda lines: [*lines, "99,1,x"], "ijbc_1N_probe_mixed.csv: .*template 99, which has none"),
        ("pairs", lambda lines: [line for line in lines if line.endswith("0")], "of one person and of two, got 0"),
        ("G1", lambda lines: [*lines, "7,4,x"], "several of subject 4"),
        (
            "G2",
            lambda lines: [*lines, "7,3,x"],
            "one template a subject in the galleries G1, G2, got several of subject 3",
        ),
    ],
)
def test_lists_that_do_not_fit_each_other(root, capsys, stand_ins, part, edit, message):
    change(root, part, edit)
    assert run("a/run", "--root", root) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_probe_without_mate_is_for_the_open_set_only(root, tmp_path, stand_ins):
    assert run("a/run", "--root", root, "--out", tmp_path / "before") == 0
    change(root, "probes", lambda lines: [lines[0], *(line.replace(",0,", ",77,") for line in lines[1:])])
    assert run("a/run", "--root", root, "--out", tmp_path / "after") == 0
    before, after = (
        json.loads((tmp_path / name / "ijbc.json").read_text())["one_to_n"] for name in ("before", "after")
    )
    assert [before["merged"][count] for count in ("mated", "unmated")] == [12, 0]
    assert [after["merged"][count] for count in ("mated", "unmated")] == [10, 2]
    assert before["merged"]["pooled_tpir"]
    assert after["merged"]["pooled_tpir"] == {}
    assert before["merged"]["tpir"] == {}
    assert after["merged"]["tpir"]


def test_a_missing_image_is_found_before_anything_is_embedded(root, made, capsys, stand_ins):
    (root / "loose_crop").unlink()
    (root / "loose_crop").mkdir()
    (root / "loose_crop" / "1.jpg").write_bytes((made / "loose_crop" / "1.jpg").read_bytes())
    assert run("a/run", "--root", root) == 2
    error = capsys.readouterr().err
    assert "2.jpg: is missing, as are" in error
