"""evaluate and embed, with every source, as a user types them; the network is a product with a matrix."""

import json
import re

import numpy as np
import pytest

from common.commands.main import main
from common.datasets.images import decode_image, encode_image
from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.evaluation.evaluate import PROTOCOL, PROTOCOL_AS_GIVEN, evaluate
from common.evaluation.results import load_evaluation
from common.evaluation.verification import verify
from common.io.npz import read_arrays
from common.recipes import PUBLISHED_SETS
from common.tests.numpy_backend import SIZE, LinearBackend, LinearTrainer, linear_config, trained, write_checkpoint
from common.tests.onnx_models import write_model

PAIRS = 20


@pytest.fixture
def run(capsys):
    """The command: status, output, errors."""

    def run(*arguments):
        try:
            status = main(LinearBackend(), [str(argument) for argument in arguments])
        except SystemExit as stop:  # how tyro ends after --help and after an error
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)


@pytest.fixture
def root(tmp_path):
    """lfw.bin and cfp_fp.bin: the images of a same pair share most of their pixels."""
    for seed, name in enumerate(("lfw", "cfp_fp")):
        issame = np.arange(PAIRS) % 2 == 0
        images = pictures(2 * PAIRS, seed)
        images[2 * np.flatnonzero(issame) + 1, :, 4:] = images[2 * np.flatnonzero(issame), :, 4:]
        write_pair_set(tmp_path / "sets" / f"{name}.bin", map(encode_image, images), issame)
    return tmp_path / "sets"


@pytest.fixture
def checkpoint(root, tmp_path):
    return write_checkpoint(tmp_path / "run", linear_config(root))


def network(root):
    return trained(linear_config(root))


def raw(root, name="lfw"):
    """Embeddings of all images of a set and of the mirrored ones, straight from the network."""
    pairs = open_pair_set(root / f"{name}.bin")
    images = np.stack([decode_image(pairs.encoded(i), "image", SIZE) for i in range(2 * PAIRS)])
    embed = network(root).embed
    return embed(images), embed(np.ascontiguousarray(images[..., ::-1])), pairs.issame


def row(output, name="lfw"):
    """Cells of a line of the table by its head."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    head = next(line for line in lines if line[0] == "set")
    return dict(zip(head, next(line for line in lines if line[0] == name), strict=True))


def expected_row(result, xnorm):
    return {
        "set": "lfw",
        "pairs": str(PAIRS),
        "folds": "10",
        "accuracy ± std": f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
        **{
            f"TAR@FAR={far:g}": "–"  # of ten pairs of two people, nine are in the other folds
            for far in result.tar
        },
        "AUC": f"{result.auc:.4f}",
        "EER": f"{100 * result.eer:.2f} %",
        "xnorm": f"{xnorm:.4g}",
    }


def test_the_same_network_from_every_source(run, root, checkpoint, tmp_path):
    """A run, its checkpoint, its ONNX export and its embeddings give one table."""
    truth = evaluate(network(root).embed, open_pair_set(root / "lfw.bin"), image_size=SIZE)
    assert 0.5 < truth.result.accuracy < 1, "a figure that could differ"
    weight = network(root).arrays["backbone.weight"]
    offset = -weight.sum(axis=0)  # (x / 128 - 1) W inside the model
    model = write_model(tmp_path / "net.onnx", weight / 128, offset=offset, metadata={"colours": "rgb"})
    embeddings, mirrored, issame = raw(root)
    np.savez(tmp_path / "lfw.npz", embeddings=embeddings, mirrored=mirrored, issame=issame)
    sources = {tmp_path / "run": (), checkpoint: (), model: ("--root", root, "--sets", "lfw"), tmp_path / "lfw.npz": ()}
    for source, options in sources.items():
        status, output, _ = run("evaluate", source, "--device", "cpu", *options)
        assert status == 0
        assert row(output) == expected_row(truth.result, truth.xnorm)
        assert f"protocol: {PROTOCOL}" in output
        assert str(source) in output
        distances = (truth.result.threshold, truth.plain_threshold)
        assert distances[0] != distances[1]
        expected = [f"{value:.4f}" for distance in distances for value in (distance, 1 - distance / 2)]
        assert re.search(r"^lfw +" + " +".join(expected) + "$", output, re.MULTILINE)


def test_a_model_that_leaves_the_normalisation_to_others(run, root, tmp_path):
    """Without a word it gets raw pixels and a warning; with the scale, the figures are those of the network."""
    truth = evaluate(network(root).embed, open_pair_set(root / "lfw.bin"), image_size=SIZE)
    weight = network(root).arrays["backbone.weight"]
    model = write_model(tmp_path / "net.onnx", weight, offset=weight.sum(axis=0) * -0.5 / 128)
    command = ("evaluate", model, "--root", root, "--sets", "lfw")
    _, output, _ = run(*command)
    assert "warning: " in output
    assert "--pixel-scale" in output
    assert row(output) != expected_row(truth.result, truth.xnorm)
    for option in ("--scale", "--pixel-scale"):
        status, output, _ = run(*command, option, "1/128", "--colours", "rgb", "--output", "out0")
        assert status == 0
        assert "warning: " not in output
        assert row(output) == expected_row(truth.result, truth.xnorm)
    status, _, errors = run("evaluate", model, "--root", root, "--scale", "often")
    assert status == 2
    assert "--pixel-scale: expected a number" in errors


def test_missing_sets_are_in_the_table_and_in_the_status(run, root, checkpoint):
    status, output, _ = run("evaluate", checkpoint, "--sets", "talfw", "lfw", "calfw")
    assert status == 1
    names = [line.split()[0] for line in output.split("\n\n")[1].splitlines()[2:]]
    assert names == ["talfw", "lfw", "calfw"], "in the order asked for"
    assert row(output, "calfw")["pairs"] == "missing"
    assert row(output)["pairs"] == str(PAIRS)
    assert f"calfw: missing, expected {root / 'calfw.bin'}" in output
    assert "did you mean" not in output
    assert "lfx.bin; did you mean lfw?" in run("evaluate", checkpoint, "--sets", "lfx")[1]
    assert "lfw: missing" not in output.replace("talfw", "").replace("calfw", "")


def test_without_a_configuration_the_seven_published_sets_are_expected(run, root, checkpoint, tmp_path):
    model = write_model(tmp_path / "net.onnx", network(root).arrays["backbone.weight"])
    status, output, _ = run("evaluate", model, "--root", root)
    assert status == 1
    for name in PUBLISHED_SETS:
        assert (row(output, name)["pairs"] == "missing") == (name not in ("lfw", "cfp_fp"))
    status, output, errors = run("evaluate", model)
    assert (status, output) == (2, "")
    assert "--root: expected the folder of the evaluation sets" in errors


def test_sets_and_root_of_the_run_can_be_replaced(run, root, checkpoint, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (root / "cfp_fp.bin").rename(other / "cfp_fp.bin")
    status, output, _ = run("evaluate", checkpoint, "--root", other, "--sets", "cfp_fp")
    assert status == 0
    assert row(output, "cfp_fp")["pairs"] == str(PAIRS)
    assert "lfw" not in output


def test_figures_are_written(run, root, checkpoint, tmp_path):
    assert run("evaluate", checkpoint, "--out", tmp_path / "out")[0] == 0
    saved = load_evaluation(tmp_path / "out" / "lfw.json")
    assert (saved.step, saved.method, len(saved.evaluation.result.issame)) == (20, None, PAIRS)
    assert json.loads((tmp_path / "out" / "lfw.json").read_text())["protocol"] == PROTOCOL


def test_batches_and_sizes(run, root, checkpoint, tmp_path):
    output = run("evaluate", checkpoint)[1]
    assert row(run("evaluate", checkpoint, "--batch-size", 3)[1]) == row(output)
    assert run("evaluate", checkpoint, "--batch-size", 0)[0] == 2
    big = pictures(2 * PAIRS).repeat(2, axis=2).repeat(2, axis=3)
    write_pair_set(root / "lfw.bin", map(encode_image, big), [True, False] * (PAIRS // 2))
    status, _, errors = run("evaluate", checkpoint)
    assert status == 2
    assert "expected 16x16 pixels, got 32x32" in errors
    assert run("evaluate", checkpoint, "--on-wrong-size", "resize")[0] == 0


# ---- embeddings ----


def test_embeddings_with_the_pairs_of_a_set(run, root, tmp_path):
    embeddings, _, issame = raw(root)
    np.savez(tmp_path / "mine.npz", embeddings=3 * embeddings)
    status, output, _ = run(
        "evaluate", tmp_path / "mine.npz", "--sets", "lfw", "--root", root, "--out", tmp_path / "out"
    )
    assert status == 0
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert row(output) == expected_row(verify(unit, issame), 3 * np.linalg.norm(embeddings, axis=1).mean())
    assert f"protocol: {PROTOCOL_AS_GIVEN}" in output
    assert json.loads((tmp_path / "out" / "lfw.json").read_text())["protocol"] == PROTOCOL_AS_GIVEN
    status, output, _ = run("evaluate", tmp_path / "mine.npz", "--sets", "calfw", "--root", root)
    assert status == 1
    assert "calfw: missing" in output


def test_the_name_of_the_set_is_that_of_the_file(run, root, tmp_path):
    embeddings, _, _ = raw(root)
    np.savez(tmp_path / "lfw.npz", embeddings=embeddings, issame=np.arange(PAIRS) % 2)  # 0 and 1 will do
    assert row(run("evaluate", tmp_path / "lfw.npz")[1])["pairs"] == str(PAIRS)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"embeddings": None}, (), "expected an array embeddings (2P, D), found issame"),
        ({"issame": None}, (), "expected an array issame in it, or --root"),
        ({"issame": np.full(PAIRS, 2)}, (), r"expected issame (P,) of true and false, got int64 (20,)"),
        ({"issame": np.ones(PAIRS)}, (), "expected issame (P,) of true and false, got float64"),
        ({"issame": np.ones((PAIRS, 1), bool)}, (), "got bool (20, 1)"),
        ({"embeddings": np.ones((39, 4))}, (), "of the P = 20 pairs of lfw, got (39, 4)"),
        ({"embeddings": np.ones(40)}, (), "of the P = 20 pairs of lfw, got (40,)"),
        ({"embeddings": np.ones((40, 4), int)}, (), "expected embeddings of a float dtype, got int64"),
        ({"mirrored": np.ones((40, 5))}, (), "of one shape, got (40, 8) and (40, 5)"),
        ({"embeddings": np.where(np.arange(40)[:, None] == 31, np.nan, 1.0)}, (), "embeddings: row 31 is not finite"),
        ({"mirrored": np.where(np.arange(40)[:, None] == 17, np.inf, np.ones(8))}, (), "flipped: row 17 is not finite"),
        ({}, ("--sets", "lfw", "cfp_fp"), "expected the one set that"),
        ({"issame": np.ones(4, bool), "embeddings": np.ones((8, 4))}, (), "got 4 pairs for 10 folds"),
    ],
)
def test_embeddings_that_do_not_fit(run, root, tmp_path, change, options, message):
    embeddings, _, issame = raw(root)
    arrays = {"embeddings": embeddings, "issame": issame} | change
    np.savez(tmp_path / "lfw.npz", **{name: array for name, array in arrays.items() if array is not None})
    status, output, errors = run("evaluate", tmp_path / "lfw.npz", *options)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors


# ---- embed ----


@pytest.fixture
def folder(tmp_path):
    for name, image in zip(("b/2.png", "b/10.png", "a.PNG", "ü/c.png"), pictures(4), strict=True):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image))
    (tmp_path / "faces" / "notes.txt").write_text("no image")
    return tmp_path / "faces"


ORDER = {"a.PNG": 2, "b/10.png": 1, "b/2.png": 0, "ü/c.png": 3}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_embed_a_folder(run, folder, root, checkpoint, tmp_path, batch_size):
    out = tmp_path / "e.npz"
    status, output, _ = run("embed", checkpoint, folder, "--out", out, "--mirror", "--batch-size", batch_size)
    assert status == 0
    assert "4 images, 0 skipped, 8 numbers each" in output
    arrays = read_arrays(out)
    assert arrays["names"].tolist() == list(ORDER)
    images = pictures(4)[list(ORDER.values())]
    for name, given in (("embeddings", images), ("mirrored", images[..., ::-1])):
        assert arrays[name].dtype == np.float32
        expected = network(root).embed(np.ascontiguousarray(given))
        assert arrays[name] == pytest.approx(expected, rel=1e-4, abs=1e-3)  # another batch, another order of sums


def test_embed_without_mirror_images(run, folder, checkpoint, tmp_path):
    assert run("embed", checkpoint, folder, "--out", tmp_path / "e.npz")[0] == 0
    assert list(read_arrays(tmp_path / "e.npz")) == ["names", "embeddings"]


def test_images_that_do_not_decode(run, folder, checkpoint, tmp_path):
    (folder / "b" / "2.png").write_bytes(b"broken")
    command = ("embed", checkpoint, folder, "--out", tmp_path / "e.npz", "--batch-size", 2)
    status, _, errors = run(*command)
    assert status == 2
    assert f"{folder / 'b' / '2.png'}: 6 bytes do not decode" in errors
    assert not (tmp_path / "e.npz").exists()
    status, output, _ = run(*command, "--on-bad-image", "skip")
    assert status == 0
    assert f"skipped: {folder / 'b' / '2.png'}: 6 bytes do not decode" in output
    assert "3 images, 1 skipped" in output
    assert read_arrays(tmp_path / "e.npz")["names"].tolist() == ["a.PNG", "b/10.png", "ü/c.png"]
    for name in ORDER:
        (folder / name).write_bytes(b"broken")
    status, _, errors = run("embed", checkpoint, folder, "--out", tmp_path / "f.npz", "--on-bad-image", "skip")
    assert status == 2
    assert "none of its 4 images decodes" in errors


def test_images_of_another_size(run, folder, checkpoint, tmp_path):
    (folder / "a.PNG").write_bytes(encode_image(np.zeros((3, 20, 20), np.uint8)))
    command = ("embed", checkpoint, folder, "--out", tmp_path / "e.npz")
    assert "expected 16x16 pixels, got 20x20" in run(*command)[2]
    assert run(*command, "--on-wrong-size", "resize")[0] == 0


def test_an_embedding_that_is_not_finite_is_named(run, folder, checkpoint, tmp_path, monkeypatch):
    good = LinearTrainer.embed

    def broken(self, images):
        embeddings = good(self, images)
        embeddings[1] = np.nan
        return embeddings

    monkeypatch.setattr(LinearTrainer, "embed", broken)
    status, _, errors = run("embed", checkpoint, folder, "--out", tmp_path / "e.npz")
    assert status == 2
    assert "b/10.png: its embedding is not finite" in errors


@pytest.mark.parametrize(
    ("source", "images", "out", "message"),
    [
        ("{run}", "absent", "e.npz", "expected a photo or a folder of images, found none"),
        ("{run}", "empty", "e.npz", "expected images (.bmp"),
        ("{run}", "faces", "e.npy", "--out: expected a file NAME.npz"),
        ("{run}", "faces", "old.npz", "is there already"),
        ("old.npz", "faces", "e.npz", "expected a network, got embeddings"),
        ("absent", "faces", "e.npz", "expected a checkpoint folder"),
    ],
)
def test_what_cannot_be_embedded(run, folder, checkpoint, tmp_path, monkeypatch, source, images, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "old.npz", embeddings=np.ones((4, 4)))
    status, _, errors = run("embed", source.format(run=checkpoint), images, "--out", out)
    assert status == 2
    assert message in errors


def test_help(run):
    for command in ("evaluate", "embed"):
        status, output, _ = run(command, "--help")
        assert status == 0
        assert "MODEL.onnx" in output
    assert "embed " in run("--help")[1]
