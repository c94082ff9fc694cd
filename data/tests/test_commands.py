"""The commands on small generated input, as a user types them."""

import io
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import sklearn.datasets

from common.datasets.images import decode_image, encode_image
from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset, samples
from data.__main__ import main
from data.lfw import LANDMARKS, TEMPLATE
from data.synthetic import TRAINING, face, make_synthetic


def content(root: Path) -> list[tuple[bytes, int]]:
    return [(sample.encoded, sample.label) for sample in samples(open_dataset(root))]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=11, images=3, size=32, pairs=12)


def test_synthetic(faces):
    dataset = open_dataset(faces)
    assert (len(dataset), dataset.num_classes) == (33, 11)
    assert [label for _, label in content(faces)] == [i // 3 for i in range(33)]
    pairs = open_pair_set(faces / "synthetic.bin")
    assert pairs.issame.tolist() == [True, False] * 6
    assert decode_image(pairs.encoded(23), "image", 32).shape == (3, 32, 32)
    assert len({pairs.encoded(i) for i in range(24)}) == 24


def test_synthetic_is_a_function_of_its_seed(faces, tmp_path):
    for seed in (0, 1):
        assert run("synthetic", "--out", tmp_path / str(seed), "--classes", 11, "--images", 3, "--size", 32,
                   "--pairs", 12, "--seed", seed) == 0  # fmt: skip
    assert content(tmp_path / "0") == content(faces) != content(tmp_path / "1")


def test_synthetic_people_can_be_told_apart():
    """For nearly all people, two images of one person are nearer to each other than to one of the next person."""
    images = [[face(TRAINING, person, number, 32, 0).astype(float) for number in (0, 1)] for person in range(50)]
    right = sum(
        np.square(one - own).mean() < np.square(one - other).mean()
        for (one, own), (other, _) in zip(images, images[1:] + images[:1], strict=True)
    )
    assert right >= 45


@pytest.mark.parametrize("kinds", [("list", "record"), ("folder", "record"), ("folder", "list", "record")])
def test_conversions_keep_every_byte(faces, tmp_path, kinds):
    source = faces
    for kind in kinds:
        assert run("convert", "--source", source, "--target", tmp_path / kind, "--kind", kind) == 0
        source = tmp_path / kind
        assert content(source) == content(faces)
    assert (tmp_path / "record" / "property").read_text() == "11,32,32\n"


def test_convert_refuses_a_folder_that_would_move_labels(tmp_path, capsys):
    image = encode_image(np.zeros((3, 16, 16), np.uint8))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(image)
    (tmp_path / "a" / "imgs.txt").write_text("x.png 0\nx.png 2\n")
    assert run("convert", "--source", tmp_path / "a", "--target", tmp_path / "b", "--kind", "folder") == 2
    assert "expected an image of every identity" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_output_is_not_overwritten_unless_asked(faces, tmp_path, capsys):
    arguments = ("synthetic", "--out", tmp_path / "out", "--classes", 2, "--images", 1, "--size", 16, "--pairs", 0)
    assert run(*arguments) == 0
    before = content(tmp_path / "out")
    assert run(*arguments, "--seed", 1) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert content(tmp_path / "out") == before
    assert run(*arguments, "--seed", 1, "--overwrite") == 0
    assert content(tmp_path / "out") != before
    assert run("synthetic", "--out", tmp_path / "out", "--classes", 1, "--overwrite") == 2
    assert "classes: expected at least 2, got 1" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_pairs(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("Ann_0001.JPG", "Ann_0002.png", "Bob_0001.jpg"):
        (tmp_path / name.split("_")[0]).mkdir(exist_ok=True)
        path = tmp_path / name.split("_")[0] / name
        path.write_bytes(encode_image(random.integers(0, 255, (3, 16, 16), np.uint8), path.suffix))
    (tmp_path / "pairs.txt").write_text("1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    arguments = ("pairs", "--images", tmp_path, "--pairs", tmp_path / "pairs.txt", "--out", tmp_path / "set.bin")
    assert run(*arguments) == 0
    pairs = open_pair_set(tmp_path / "set.bin")
    assert pairs.issame.tolist() == [True, False]
    assert pairs.encoded(1) == (tmp_path / "Ann" / "Ann_0002.png").read_bytes()
    assert run(*arguments) == 2
    (tmp_path / "paths.csv").write_text("Ann/Ann_0002.png,Bob/Bob_0001.jpg,0\nAnn/Ann_0001.JPG,Ann/Ann_0002.png,1\n")
    assert run(*arguments[:4], tmp_path / "paths.csv", *arguments[5:], "--overwrite") == 0
    assert open_pair_set(tmp_path / "set.bin").issame.tolist() == [False, True]
    (tmp_path / "Bob" / "Bob_0001.jpg").unlink()
    os.mkfifo(tmp_path / "Bob" / "Bob_0001.JPG")
    assert run(*arguments, "--overwrite") == 2
    error = capsys.readouterr().err
    assert "Bob_0001: expected an image" in error
    assert f"found none; pair 2 of {tmp_path / 'pairs.txt'}, and 1 of its 2 pairs lack one" in error
    assert len(open_pair_set(tmp_path / "set.bin")) == 2, "a failure must not lose the old set"


@pytest.mark.parametrize("folders", [False, True])
def test_pairs_of_cplfw_and_folds(tmp_path, capsys, folders):
    names = [f"{person}_{number}" for person in ("Ann_B", "Cyd") for number in (1, 2)]
    for seed, name in enumerate(names):
        path = tmp_path / "images" / (name.rpartition("_")[0] if folders else "") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(np.random.default_rng(seed).integers(0, 255, (3, 16, 16), np.uint8)))
    pairs = {True: ("Ann_B_1.jpg", "Ann_B_2.jpg"), False: ("Ann_B_1.jpg", "Cyd_2.jpg")}
    for order, kinds in {"mixed": [True, False] * 10, "sorted": [True] * 10 + [False] * 10}.items():
        lines = [f"{name} {int(is_same)}\n" for is_same in kinds for name in pairs[is_same]]
        (tmp_path / f"{order}.txt").write_text("".join(lines))
        command = ("--images", tmp_path / "images", "--pairs", tmp_path / f"{order}.txt", "--out", tmp_path / order)
        assert run("pairs", *command) == 0
        assert open_pair_set(tmp_path / order).issame.tolist() == kinds
        assert ("10 of the 10 contiguous folds" in capsys.readouterr().out) == (order == "sorted")
    (seed,) = (number for number, name in enumerate(names) if name == "Cyd_2")
    expected = encode_image(np.random.default_rng(seed).integers(0, 255, (3, 16, 16), np.uint8))
    assert open_pair_set(tmp_path / "mixed").encoded(3) == expected


@pytest.mark.parametrize("folds", [1, 5, 10])
def test_folds_of_another_number_are_said(tmp_path, capsys, folds):
    for name in ("Ann/Ann_0001.png", "Ann/Ann_0002.png", "Bob/Bob_0001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_image(np.zeros((3, 16, 16), np.uint8)))
    count = 10 // folds
    fold = "Ann\t1\t2\n" * count + "Ann\t1\tBob\t1\n" * count
    (tmp_path / "pairs.txt").write_text(f"{folds}\t{count}\n" + fold * folds)
    assert run("pairs", "--images", tmp_path, "--pairs", tmp_path / "pairs.txt", "--out", tmp_path / "set.bin") == 0
    output = capsys.readouterr().out
    assert ("pairs.txt: has 5 folds; they are not kept" in output) == (folds == 5)
    assert ("pairs of one kind only" in output) == (folds != 10)


def lfw_image(number: int) -> bytes:
    image = np.random.default_rng(number).integers(0, 255, (25, 25, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(image, (250, 250)))[1].tobytes()


@pytest.fixture
def small_lfw(tmp_path) -> Path:
    """Ann and Bob are tested; Cyd has 5 images, Dan 4, Eve 45, Gus 2, Hal 1."""
    root = tmp_path / "lfw"
    for person, count in {"Ann": 6, "Bob": 2, "Cyd": 5, "Dan": 4, "Eve": 45, "Gus": 2, "Hal": 1}.items():
        (root / person).mkdir(parents=True)
        for number in range(1, count + 1):
            (root / person / f"{person}_{number:04d}.jpg").write_bytes(lfw_image(number))
    fold = "Ann\t1\t2\nAnn\t3\tBob\t1\n"
    (tmp_path / "pairs.txt").write_text("3\t1\n" + fold + fold.replace("1\t2", "4\t5") + "Cyd\t1\t2\nCyd\t1\tDan\t1\n")
    return root


def archive(root: Path, *members: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> Path:
    path = root.with_suffix(".tgz")
    with tarfile.open(path, "w:gz", format=form) as tar:
        tar.add(root, "lfw")
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.pax_headers = size, kind, "/etc/passwd", headers
    return info


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tgz"])
def test_lfw(small_lfw, tmp_path, packed):
    source = archive(small_lfw) if packed else small_lfw
    assert run("lfw", "--source", source, "--pairs", tmp_path / "pairs.txt", "--out", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.num_classes == 2, "Cyd and Eve: Ann is tested, Dan and Gus have too few"
    assert [label for _, label in content(tmp_path / "out")] == [0] * 5 + [1] * 40
    pairs = open_pair_set(tmp_path / "out" / "lfw_view2_folds01.bin")
    assert pairs.issame.tolist() == [True, False, True, False]
    validation = open_pair_set(tmp_path / "out" / "lfw_validation.bin")
    assert validation.issame.tolist() == [True, False] * 7, "Dan's 6 pairs of two images and Gus's one"
    assert len({validation.encoded(i) for i in range(28)}) == 4, "images of one number are the same here"
    aligned = decode_image(pairs.encoded(0), "image", 112)
    original = cv2.imdecode(np.frombuffer(lfw_image(1), np.uint8), cv2.IMREAD_COLOR)
    for (x, y), (u, v) in zip(LANDMARKS, TEMPLATE, strict=True):
        found, expected = aligned[:, round(float(v)), round(float(u))], original[round(float(y)), round(float(x)), ::-1]
        assert np.abs(found.astype(int) - expected).max() < 40, "a landmark must land on the template"


def test_lfw_without_what_it_needs(small_lfw, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    assert run("lfw", "--source", tmp_path / "nowhere", "--pairs", tmp_path / "pairs.txt", *out) == 2
    assert "expected LFW's folder or .tgz" in capsys.readouterr().err
    (small_lfw / "Bob" / "Bob_0001.jpg").unlink()
    assert run("lfw", "--source", small_lfw, *out) == 2
    assert "are missing, first Bob/Bob_0001" in capsys.readouterr().err
    (tmp_path / "broken.tgz").write_bytes(archive(small_lfw).read_bytes()[:3000])
    assert run("lfw", "--source", tmp_path / "broken.tgz", *out) == 2
    assert "cannot be read as a .tgz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("lfw/Fay/Fay_0001.jpg", kind=tarfile.SYMTYPE), "'lfw/Fay/Fay_0001.jpg': expected files below"),
        (member("lfw/Fay/Fay_0001.jpg", kind=tarfile.LNKTYPE), "'lfw/Fay/Fay_0001.jpg': expected files below"),
        (member("../../Fay/Fay_0001.jpg"), "'../../Fay/Fay_0001.jpg': expected files below"),
        (member("/Fay/Fay_0001.jpg"), "'/Fay/Fay_0001.jpg': expected files below"),
        (member("lfw/zeros", 2**26), "'lfw/zeros': claims 67108864 bytes in an archive of"),
        (member("lfw/a", comment="x" * 2**26), "claims 671088"),
    ],
)
def test_a_hostile_archive(small_lfw, tmp_path, capsys, bad, message):
    source = archive(small_lfw, bad, form=tarfile.PAX_FORMAT)
    tracemalloc.start()
    try:
        assert run("lfw", "--source", source, "--out", tmp_path / "out") == 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = capsys.readouterr().err
    assert f"{source}: " in error
    assert message in error
    assert peak < 2**25


def test_an_archive_with_other_files_and_headers(small_lfw, tmp_path):
    source = archive(small_lfw, member("lfw/notes.txt", 2**21, comment="x" * 1000), form=tarfile.PAX_FORMAT)
    assert run("lfw", "--source", source, "--out", tmp_path / "out") == 0


@pytest.mark.lfw
@pytest.mark.skipif("SFACE_LFW" not in os.environ, reason="set SFACE_LFW to LFW's folder or .tgz, pairs.txt beside it")
def test_the_real_lfw(tmp_path):
    assert run("lfw", "--source", os.environ["SFACE_LFW"], "--out", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert (len(dataset), dataset.num_classes) == (3758, 336)
    assert len(open_pair_set(tmp_path / "out" / "lfw_view2_folds01.bin")) == 1200
    assert len(open_pair_set(tmp_path / "out" / "lfw_validation.bin")) == 4498


def test_orl(tmp_path):
    assert run("orl", "--out", tmp_path / "orl") == 0
    dataset = open_dataset(tmp_path / "orl")
    assert (len(dataset), dataset.num_classes) == (300, 30)
    pairs = open_pair_set(tmp_path / "orl" / "orl.bin")
    assert pairs.issame.tolist() == [True, False] * 450
    assert pickle.loads((tmp_path / "orl" / "orl.bin").read_bytes())[1] == pairs.issame.tolist()


def test_orl_with_an_image_missing(tmp_path, capsys):
    assert run("orl", "--out", tmp_path / "orl", "--source", tmp_path) == 2
    assert "s1/1.pgm: expected a grey image of 92x112, found none" in capsys.readouterr().err
    for person in range(1, 41):
        (tmp_path / f"s{person}").mkdir()
        for number in range(1, 11):
            image = np.random.default_rng(person).integers(0, 256, (3, 112, 92), np.uint8)
            (tmp_path / f"s{person}" / f"{number}.pgm").write_bytes(encode_image(image))
    assert run("orl", "--out", tmp_path / "orl", "--source", tmp_path) == 2
    assert "s1/1.pgm: expected a grey image of 92x112, got 92x112, or colours" in capsys.readouterr().err
    (tmp_path / "s1" / "1.pgm").write_bytes(
        b"\x89PNG\r\n\x1a\n" + (2**32 - 20).to_bytes(4, "big") + b"IHDR" + bytes(30)
    )
    assert run("orl", "--out", tmp_path / "orl", "--source", tmp_path) == 2
    assert "s1/1.pgm: b'IHDR' claims 4294967276 bytes" in capsys.readouterr().err


def test_an_unknown_command_is_refused(capsys):
    assert run("opencv_sfaces") == 2
    assert "synthetic, ijb-synthetic, megaface-synthetic, got 'opencv_sfaces'; did you mean opencv-sface?" in (
        capsys.readouterr().err
    )
    assert run("mnist") == 2
    assert "got 'mnist'\n" in capsys.readouterr().err


def test_lfw_without_a_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", lambda **_: urlopen("file:///absent"))
    assert run("lfw", "--out", tmp_path / "out") == 2
    assert "LFW cannot be downloaded (" in (error := capsys.readouterr().err)
    assert "; pass --source, its folder or .tgz" in error
