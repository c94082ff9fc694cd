"""compare, identify and embed of photos, as a user types them; the detector finds yellow squares."""

import base64
import re

import numpy as np
import pytest

from common.commands.main import main
from common.datasets.images import encode_image
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import save_evaluation
from common.evaluation.verification import verify_distances
from common.io.npz import read_arrays
from common.tests.numpy_backend import SIZE, LinearBackend, linear_config, trained, write_checkpoint
from common.tests.yellow_faces import squares, stand_in

NAMES = ("ann", "bob", "cyd")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """The command in a folder with a run: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "run", linear_config(tmp_path), step=20)

    def run(*arguments):
        status = main(LinearBackend(), [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def detector(monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path)


@pytest.fixture
def faces(tmp_path) -> dict[str, np.ndarray]:
    """Two aligned faces of each person, NAME1.png and NAME2.png: they differ a little."""
    random = np.random.default_rng(0)
    found = {}
    for name in NAMES:
        base = random.integers(0, 200, (3, SIZE, SIZE))
        for number in (1, 2):
            image = (base + random.integers(0, 56, base.shape)).astype(np.uint8)
            (tmp_path / f"{name}{number}.png").write_bytes(encode_image(image))
            found[f"{name}{number}.png"] = image
    return found


def evaluated(folder, distance: float) -> float:
    """Write figures of lfw whose threshold is about `distance`; the threshold."""
    issame = np.arange(40) % 2 == 0
    result = verify_distances(np.where(issame, distance - 0.01, distance + 0.01), issame)
    save_evaluation(folder, Evaluation("lfw", result, 20.0, 0.5), 20)
    return result.threshold


def cosine(tmp_path, a: np.ndarray, b: np.ndarray, mirror: bool = True) -> float:
    embed = trained(linear_config(tmp_path)).embed
    views = [np.stack([a, b]), np.stack([a, b])[..., ::-1]]
    one, other = sum(embed(np.ascontiguousarray(view)) for view in views[: 1 + mirror]).astype(np.float64)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def lines(output: str) -> dict[str, str]:
    pairs = (re.split(r"\s{2,}", line, maxsplit=1) for line in output.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


@pytest.mark.parametrize("mirror", [True, False])
def test_two_aligned_faces(run, faces, tmp_path, mirror):
    threshold = evaluated(tmp_path / "run" / "evaluation", 1.0) if mirror else 0.5
    evaluated(tmp_path / "run" / "evaluation", 1.0)
    for names, verdict in ((("ann1.png", "ann2.png"), "same person"), (("ann1.png", "bob1.png"), "different people")):
        status, output, _ = run("compare", "run", *names, "--aligned", *(() if mirror else ("--no-mirror",)))
        assert status == 0
        truth = cosine(tmp_path, *(faces[name] for name in names), mirror)
        found = lines(output)
        assert float(found["cosine"]) == pytest.approx(truth, abs=1e-4)
        assert float(found["squared distance"]) == pytest.approx(2 - 2 * truth, abs=2e-4)
        assert found["verdict"] == verdict
        said = f"cosine {1 - threshold / 2:.4f}, squared distance {threshold:.4f}; lfw, run/evaluation/lfw.json"
        assert found["threshold"] == said
        assert f"embeddings: image {'+ mirror image' if mirror else 'alone'}" in output
        assert f"{names[0]}: taken as it is" in output


def test_the_threshold_of_the_user_and_none(run, faces, tmp_path):
    command = ("compare", "run", "ann1.png", "ann2.png", "--aligned")
    _, output, _ = run(*command)
    assert lines(output)["verdict"] == "no verdict"
    assert "none; `evaluate --out FOLDER` finds one for --figures FOLDER" in output
    truth = cosine(tmp_path, faces["ann1.png"], faces["ann2.png"])
    for threshold, verdict in ((truth - 0.001, "same person"), (truth + 0.001, "different people")):
        _, output, _ = run(*command, "--threshold", threshold)
        assert lines(output)["verdict"] == verdict
        assert lines(output)["threshold"].endswith("; --threshold")
    evaluated(tmp_path / "elsewhere", 1.0)
    assert "lfw, elsewhere/lfw.json" in run(*command, "--figures", "elsewhere", "--set", "lfw")[1]
    status, _, errors = run(*command, "--figures", "elsewhere", "--set", "calfw")
    assert status == 2
    assert "expected the figures of calfw, found those of: lfw" in errors


def test_figures_of_another_step_give_no_verdict(run, faces, tmp_path):
    evaluated(tmp_path / "run" / "evaluation", 1.0)
    write_checkpoint(tmp_path / "run", linear_config(tmp_path), step=30)
    command = ("compare", "run", "ann1.png", "ann2.png", "--aligned")
    status, output, _ = run(*command)
    assert (status, lines(output)["verdict"]) == (0, "no verdict")
    assert "none: run/evaluation/lfw.json: is of step 20, the network of step 30" in output
    assert run(*command, "--set", "lfw")[0] == 2


def test_photos_are_detected_and_aligned(run, detector, tmp_path):
    """Squares of two sizes are the same face; of two faces the larger is taken, and said."""
    (tmp_path / "one.png").write_bytes(squares((20, 30, 60)))
    (tmp_path / "two.png").write_bytes(squares((100, 20, 120), (10, 150, 30)))
    status, output, _ = run("compare", "run", "one.png", "two.png", "--detector", detector)
    assert status == 0
    assert float(lines(output)["cosine"]) > 0.99
    assert "one.png: 1 face\n" in output
    assert "two.png: 2 faces, the largest is taken (--face)\n" in output


def test_several_faces_make_a_matrix_and_a_page(run, faces, tmp_path):
    evaluated(tmp_path / "run" / "evaluation", 1.0)
    names = ["ann1.png", "bob1.png", "ann2.png"]
    status, output, _ = run("compare", "run", *names, "--aligned", "--html", "out/page.html")
    assert status == 0
    rows = [re.split(r"\s{2,}", line.rstrip()) for line in output.splitlines() if re.match(r"\d \w", line)]
    assert [row[0] for row in rows] == [f"{place} {name}" for place, name in enumerate(names, 1)]
    found = {(a, b): cell for a, row in enumerate(rows) for b, cell in enumerate(row[1:])}
    assert found[0, 1] == f"{cosine(tmp_path, faces['ann1.png'], faces['ann2.png']):.4f}*"
    assert sum("*" in cell for cell in found.values()) == 2
    page = (tmp_path / "out" / "page.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page), "one file"
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert pictures == [encode_image(faces[name], ".jpg") for name in names]
    assert re.search(r"1 and 3</th><td[^>]*>0\.\d+</td><td[^>]*>0\.\d+</td><td[^>]*>same person</td>", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]


def test_a_page_of_two_faces(run, faces, tmp_path):
    evaluated(tmp_path / "run" / "evaluation", 1.0)
    assert run("compare", "run", "ann1.png", "ann2.png", "--aligned", "--html", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "<dt>verdict</dt><dd>same person</dd>" in page
    assert "1: ann1.png, taken as it is" in page
    assert "lfw, run/evaluation/lfw.json" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ann1.png",), "expected two photos or more after SOURCE, got 1"),
        (("ann1.png", "bob1.png"), "expected --detector FILE (YuNet, which finds and aligns the faces), or --aligned"),
        (("ann1.png", "bob1.png", "--aligned", "--detector", "yunet.onnx"), "; got both"),
        (("ann1.png", "run", "--aligned"), "run: expected a photo, got a folder; `identify` searches"),
        (("ann1.png", "absent.png", "--aligned"), "absent.png: expected a photo, found none"),
        (("ann1.png", "broken.png", "--aligned"), "broken.png: 6 bytes do not decode"),
        (("ann1.png", "large.png", "--aligned"), "large.png: expected 16x16 pixels, got 300x200"),
        (("large.png", "broken.png", "--detector", "yunet.onnx"), "broken.png: 6 bytes do not decode"),
        (("large.png", "none.png", "--detector", "yunet.onnx"), "none.png: no face found in 300x200 pixels"),
        (("large.png", "large.png", "--detector", "absent.onnx"), "absent.onnx: expected the detector's ONNX file"),
        (
            ("ann1.png", "bob1.png", "--aligned", "--html", "page.txt"),
            "--html: expected a file NAME.html, got page.txt",
        ),
        (("ann1.png", "bob1.png", "--aligned", "--threshold", "2"), "--threshold: expected a cosine from -1 to 1"),
    ],
)
def test_what_cannot_be_compared(run, faces, detector, tmp_path, arguments, message):
    (tmp_path / "broken.png").write_bytes(b"broken")
    (tmp_path / "large.png").write_bytes(squares((20, 30, 60)))
    (tmp_path / "none.png").write_bytes(squares())
    status, output, errors = run("compare", "run", *arguments)
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_aligned_faces_of_another_size_can_be_resized(run, faces, tmp_path):
    (tmp_path / "large.png").write_bytes(encode_image(faces["ann1.png"].repeat(2, axis=1).repeat(2, axis=2)))
    _, output, _ = run("compare", "run", "ann1.png", "large.png", "--aligned", "--on-wrong-size", "resize")
    assert float(lines(output)["cosine"]) > 0.999


# ---- identify ----


@pytest.fixture
def gallery(faces, tmp_path):
    """Ann and Bob have a folder, Cyd a file."""
    for name, image in faces.items():
        path = tmp_path / "gallery" / (f"{name[:3]}/{name}" if name[:3] != "cyd" else name.replace("cyd2", "dan"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image))
    return tmp_path / "gallery"


def test_identify(run, faces, gallery, tmp_path):
    evaluated(tmp_path / "run" / "evaluation", 1.0)
    status, output, _ = run("identify", "run", "ann1.png", "--gallery", "gallery", "--aligned", "--top", 3)
    assert status == 0
    rows = [re.split(r"\s{2,}", line) for line in output.splitlines()]
    start = next(place for place, row in enumerate(rows) if row[0] == "person") + 2
    found = rows[start : start + 3]
    assert found[0] == ["ann", "1.0000", "0.0000", "same person", "ann/ann1.png"]
    assert {row[3] for row in found[1:]} == {"different people"}
    assert [float(row[1]) for row in found] == sorted((float(row[1]) for row in found), reverse=True)
    bob1, bob2, cyd1, cyd2 = (cosine(tmp_path, faces["ann1.png"], faces[name]) for name in list(faces)[2:])
    people = {"bob": max(bob1, bob2), "cyd1": cyd1, "dan": cyd2}
    assert {row[0] for row in found[1:]} == set(sorted(people, key=people.get)[1:])
    assert float(found[1][1]) == pytest.approx(max(people.values()), abs=1e-4)
    assert "6 photos of 4 people, 0 skipped" in output


def test_identify_in_a_gallery_that_convert_numbered(run, gallery, tmp_path):
    for name in ("cyd1.png", "dan.png"):
        (gallery / name).unlink()
    (gallery / "ann").rename(gallery / "0")
    (gallery / "bob").rename(gallery / "1")
    (gallery / "labels.txt").write_text("Ann A\nBob B\n")
    status, output, _ = run("identify", "run", "ann1.png", "--gallery", "gallery", "--aligned")
    assert status == 0
    assert re.search(r"^Ann A +1\.0000 .* 0/ann1\.png$", output, re.MULTILINE)
    assert re.search(r"^Bob B +", output, re.MULTILINE)
    assert "passed over" not in output


def test_the_photo_itself_is_no_match(run, gallery):
    _, output, _ = run("identify", "run", "gallery/ann/ann1.png", "--gallery", "gallery", "--aligned")
    assert "5 photos of 4 people" in output
    assert "ann/ann2.png" in output
    assert "1.0000" not in output


def test_identify_with_a_detector_and_bad_photos(run, detector, tmp_path):
    (tmp_path / "gallery").mkdir()
    for name, content in {"one": squares((20, 30, 60)), "none": squares(), "broken": b"broken"}.items():
        (tmp_path / "gallery" / f"{name}.png").write_bytes(content)
    (tmp_path / "photo.png").write_bytes(squares((100, 20, 120)))
    command = ("identify", "run", "photo.png", "--gallery", "gallery", "--detector", detector)
    status, _, errors = run(*command)
    assert status == 2
    assert "gallery/broken.png: 6 bytes do not decode" in errors
    status, output, _ = run(*command, "--on-bad-image", "skip")
    assert status == 0
    assert "skipped: gallery/none.png: no face found" in output
    assert "1 photos of 1 people, 2 skipped" in output
    assert re.search(r"^one +\d\.\d+ .* one\.png$", output, re.MULTILINE)
    (tmp_path / "gallery" / "one.png").unlink()
    status, _, errors = run(*command, "--on-bad-image", "skip")
    assert status == 2
    assert "--gallery: expected faces of other people in gallery, found none" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gallery", "absent"), "absent: expected a folder of images, found none"),
        (("--gallery", "empty"), "empty: expected images"),
        (("--gallery", "gallery", "--top", "0"), "--top: expected at least 1, got 0"),
        (("--gallery", "gallery", "--batch-size", "0"), "--batch-size: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_identified(run, gallery, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    status, _, errors = run("identify", "run", "ann1.png", "--aligned", *options)
    assert status == 2
    assert message in errors


# ---- embed ----


def test_embed_a_photo(run, detector, faces, tmp_path):
    """An aligned face as it is, a photo with the detector."""
    assert run("embed", "run", "ann1.png", "--out", "ann.npz")[0] == 0
    arrays = read_arrays(tmp_path / "ann.npz")
    assert arrays["names"].tolist() == ["ann1.png"]
    expected = trained(linear_config(tmp_path)).embed(faces["ann1.png"][None])
    assert arrays["embeddings"] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    (tmp_path / "photo.png").write_bytes(squares((100, 20, 120)))
    assert "expected 16x16 pixels" in run("embed", "run", "photo.png", "--out", "photo.npz")[2]
    status, output, _ = run("embed", "run", "photo.png", "--out", "photo.npz", "--detector", detector, "--mirror")
    assert status == 0
    assert "1 images, 0 skipped" in output
    assert read_arrays(tmp_path / "photo.npz")["mirrored"].shape == (1, 8)
