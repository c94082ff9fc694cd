"""Evaluating a made-up network on made-up pairs: figures, memory, and the files left behind."""

import io
import json
import math
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.evaluation import (
    Evaluation,
    evaluate,
    evaluation_record,
    find_pair_sets,
    load_evaluation,
    raw_pixels,
    save_evaluation,
)
from common.images import BadImage, decode_image, encode_image
from common.pair_set import write_pair_set
from common.verification import flip_sum_normalise, verify, verify_distances

SIZE = 16


class FakePairs:
    """Pairs of noise images; the images of a "same" pair share most of their pixels."""

    def __init__(self, pairs=33, seed=0):
        rng = np.random.default_rng(seed)
        self.name = "fake"
        self.pairs = pairs
        self.issame = rng.random(pairs) < 0.5
        images = rng.integers(0, 256, (pairs, 2, 3, SIZE, SIZE), dtype=np.uint8)
        images[self.issame, 1, :, 5:] = images[self.issame, 0, :, 5:]
        self.images = images.reshape(2 * pairs, 3, SIZE, SIZE)
        self.files = [encode_image(image) for image in self.images]
        self.threads = set()

    def __len__(self):
        return self.pairs

    def encoded(self, i):
        self.threads.add(threading.get_ident())
        return self.files[i]


def embed(images):
    """Not symmetric under mirroring, and not normalised."""
    weight = np.random.default_rng(7).normal(size=(3 * SIZE * SIZE, 24)).astype(np.float32)
    return (images.reshape(len(images), -1).astype(np.float32) - 127.5) @ weight / 100


@pytest.mark.parametrize("batch_size", [2, 5, 16, 66, 1000])
def test_evaluate_is_the_protocol_on_all_images(batch_size):
    pairs = FakePairs()
    sizes = []

    def watched(images):
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        sizes.append(len(images))
        return embed(images)

    evaluation = evaluate(watched, pairs, image_size=SIZE, batch_size=batch_size, progress=False)
    raw, mirrored = embed(pairs.images), embed(np.ascontiguousarray(pairs.images[:, :, :, ::-1]))
    expected = verify(flip_sum_normalise(raw, mirrored), pairs.issame)
    assert evaluation.name == "fake"
    assert evaluation.result.distances == pytest.approx(expected.distances, abs=1e-5)
    assert (evaluation.result.accuracy, evaluation.result.std) == (expected.accuracy, expected.std)
    norms = np.linalg.norm(np.concatenate([raw, mirrored]), axis=1)
    assert evaluation.xnorm == pytest.approx(norms.mean(), rel=1e-5)
    assert max(sizes) <= batch_size
    assert sum(sizes) == 4 * len(pairs)
    assert pairs.threads == {threading.get_ident()}  # a pair set need not be thread-safe


def test_an_image_of_several_pairs_is_embedded_once():
    pairs = FakePairs(40)
    order = np.random.default_rng(1).integers(0, 30, 80)  # 30 images, each in a few pairs, in no order
    pairs.images, pairs.files = pairs.images[order], [pairs.files[i] for i in order]
    sizes = []

    def watched(images):
        sizes.append(len(images))
        return embed(images)

    evaluation = evaluate(watched, pairs, image_size=SIZE, batch_size=8, progress=False)
    assert sum(sizes) == 2 * len(set(order))
    raw, mirrored = embed(pairs.images), embed(np.ascontiguousarray(pairs.images[:, :, :, ::-1]))
    expected = verify(flip_sum_normalise(raw, mirrored), pairs.issame)
    assert evaluation.result.distances == pytest.approx(expected.distances, abs=1e-5)
    norms = np.linalg.norm(np.concatenate([raw, mirrored]), axis=1)
    assert evaluation.xnorm == pytest.approx(norms.mean(), rel=1e-5)


def test_folds_and_fars_are_passed_on():
    evaluation = evaluate(embed, FakePairs(), image_size=SIZE, progress=False, folds=3, fars=(0.5,))
    assert len(evaluation.result.fold_accuracies) == 3
    assert list(evaluation.result.tar) == [0.5]


def test_a_damaged_image_is_named_and_ends_the_evaluation():
    pairs = FakePairs()
    pairs.files[41] = b"not an image"
    with pytest.raises(BadImage, match="fake image 41"):
        evaluate(embed, pairs, image_size=SIZE, batch_size=8, progress=False)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_another_size_fails_or_is_resized():
    with pytest.raises(BadImage, match="fake image 0: expected 8x8 pixels, got 16x16"):
        evaluate(raw_pixels, FakePairs(), image_size=8, progress=False)
    evaluation = evaluate(raw_pixels, FakePairs(), image_size=8, on_wrong_size="resize", progress=False)
    assert evaluation.result.accuracy > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[:-1], r"shape \(8, D\), float, got \(7, 24\)"),
        (lambda x: x.ravel(), r"shape \(8, D\), float, got \(192,\)"),
        (lambda x: x.astype(np.int64), "int64"),
        (lambda x: np.where(np.arange(8)[:, None] == 3, math.nan, x), "fake image 3: its embedding is not finite"),
    ],
)
def test_a_bad_embedding_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda images: wrong(embed(images)), FakePairs(), image_size=SIZE, batch_size=8, progress=False)


def test_the_image_with_the_bad_embedding_is_counted_over_batches():
    calls = iter(range(100))

    def diverging(images):
        embeddings = embed(images)
        if next(calls) == 5:  # the mirror images of the third batch
            embeddings[2] = math.inf
        return embeddings

    with pytest.raises(ValueError, match="fake image 18"):
        evaluate(diverging, FakePairs(), image_size=SIZE, batch_size=8, progress=False)


def test_impossible_sets_fail_before_any_work():
    def never(images):
        raise AssertionError("called")

    with pytest.raises(ValueError, match="9 pairs for 10 folds"):
        evaluate(never, FakePairs(9), image_size=SIZE, progress=False)
    with pytest.raises(ValueError, match="batch size of at least 1"):
        evaluate(never, FakePairs(), image_size=SIZE, batch_size=0, progress=False)
    pairs = FakePairs()
    pairs.issame = pairs.issame[:-1]
    with pytest.raises(ValueError, match=r"issame of shape \(33,\), got \(32,\)"):
        evaluate(never, pairs, image_size=SIZE, progress=False)


MEMORY = """
import resource, sys
import numpy as np
from common.evaluation import evaluate, raw_pixels
from common.images import encode_image

class Pairs:
    name = "big"
    def __init__(self, pairs):
        self.issame = np.arange(pairs) % 2 == 0
        image = np.arange(3 * 112 * 112).reshape(3, 112, 112) // 150
        self.files = [encode_image((image + k).astype(np.uint8), ".jpg") for k in range(8)]
    def __len__(self): return len(self.issame)
    def encoded(self, i): return self.files[i * i % 8]

def embed(images): return images.reshape(len(images), -1)[:, 7000:7512].astype(np.float32) + 1

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

evaluate(embed, Pairs(100), image_size=112, progress=False)
before = peak()
evaluate(embed, Pairs(6000), image_size=112, progress=False)
middle = peak()
evaluate(raw_pixels, Pairs(700), image_size=112, progress=False)  # 210 MB, were the embeddings kept
print(middle - before, peak() - middle)
"""


def test_six_thousand_pairs_take_little_memory():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
    network, pixels = map(float, result.stdout.split())
    assert network < 60  # MB; the limit is 200
    assert pixels < 150


# ---- raw pixels ----


def test_raw_pixels_have_no_mean():
    images = FakePairs().images
    embeddings = raw_pixels(images)
    assert embeddings.shape == (66, 3 * SIZE * SIZE)
    assert embeddings.dtype == np.float32
    assert np.abs(embeddings.mean(axis=1)).max() < 1e-3
    flat = images[5].astype(float).ravel()
    assert embeddings[5] == pytest.approx(flat - flat.mean(), abs=1e-3)


def test_raw_pixels_separate_the_fake_pairs():
    assert evaluate(raw_pixels, FakePairs(), image_size=SIZE, progress=False).result.accuracy > 0.9


def test_images_without_contrast_are_counted_not_fatal():
    pairs = FakePairs()
    pairs.files[4] = encode_image(np.full((3, SIZE, SIZE), 128, np.uint8))
    assert evaluate(raw_pixels, pairs, image_size=SIZE, progress=False).result.zero_embeddings == 1


# ---- files ----


def evaluation(name="lfw", seed=0, issame=None):
    rng = np.random.default_rng(seed)
    issame = rng.random(60) < 0.5 if issame is None else issame
    return Evaluation(name, verify_distances(np.clip(rng.normal(1.4 - 0.5 * issame, 0.3), 0, 4), issame), 21.5)


def test_saved_and_loaded(tmp_path):
    first = evaluation()
    path = save_evaluation(tmp_path / "evaluation", first, 600)
    assert path == tmp_path / "evaluation" / "lfw.json"
    saved = load_evaluation(path)
    assert (saved.step, saved.method) == (600, None)
    assert evaluation_record(saved.evaluation, 600) == evaluation_record(first, 600)
    assert (saved.evaluation.result.distances == first.result.distances).all()
    assert (saved.evaluation.result.issame == first.result.issame).all()
    assert (saved.evaluation.result.fold_accuracies == first.result.fold_accuracies).all()

    record = json.loads(path.read_text())
    assert record["pairs"] == 60
    assert record["folds"] == 10
    assert record["tar"] == {
        "0.1": first.result.tar[0.1],
        "0.01": first.result.tar[0.01],
        "0.001": first.result.tar[1e-3],
    }
    assert "squared L2" in record["protocol"]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["distances", "fpr", "issame", "tpr"]
        assert (arrays["fpr"] == first.result.roc.fpr).all()
    assert sorted(p.name for p in path.parent.iterdir()) == ["lfw.json", "lfw.npz"]


def test_a_baseline_lies_beside_the_run(tmp_path):
    save_evaluation(tmp_path, evaluation(), 600)
    path = save_evaluation(tmp_path, evaluation(seed=1), 0, method="raw_pixels")
    assert path.name == "lfw.raw_pixels.json"
    assert load_evaluation(path).method == "raw_pixels"
    assert load_evaluation(tmp_path / "lfw.json").step == 600


def test_figures_that_nothing_measured_are_null(tmp_path):
    one_kind = evaluation(issame=np.ones(60, bool))
    record = evaluation_record(one_kind, 5)
    assert record["kind"] == "evaluation"
    assert record["auc"] is record["eer"] is record["tar"]["0.001"] is None
    json.dumps(record, allow_nan=False)
    loaded = load_evaluation(save_evaluation(tmp_path, one_kind, 5)).evaluation.result
    assert math.isnan(loaded.auc)
    assert loaded.accuracy == one_kind.result.accuracy


@pytest.mark.parametrize("name", ["../lfw", "a/b", "", ".hidden", "a\\b", "a\0b"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="part of a file name"):
        save_evaluation(tmp_path / "evaluation", evaluation(name), 1)
    with pytest.raises(ValueError, match="part of a file name"):
        find_pair_sets(tmp_path, [name])
    assert not list(tmp_path.iterdir())


def test_a_kill_between_the_two_writes_is_found(tmp_path):
    path = save_evaluation(tmp_path, evaluation(seed=1), 100)
    old = path.read_bytes()
    save_evaluation(tmp_path, evaluation(seed=2), 200)
    path.write_bytes(old)
    with pytest.raises(ValueError, match="not of one evaluation"):
        load_evaluation(path)


def edited(**changes):
    def edit(path):
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not KeyError}))

    return edit


def header(shape, dtype="<f8", data=b""):
    def edit(path):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
            archive.writestr("distances.npy", file.getvalue() + data)
            archive.writestr("padding", bytes(1000))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text('{"set": "lf'), "lfw.json: expected an evaluation"),
        (lambda path: path.write_text("[1]"), "lfw.json: expected an evaluation"),
        (lambda path: path.write_text("[" * 100_000), "lfw.json: expected an evaluation"),
        (edited(step=KeyError), "expected an evaluation"),
        (edited(pairs="many"), "expected counts"),
        (edited(pairs=-60), "expected counts"),
        (edited(pairs=10**15), "too short for 1000000000000000 pairs"),
        (edited(xnorm=math.nan), "finite norm"),
        (edited(xnorm=10**400), "expected an evaluation"),
        (edited(set=5), "names of a set"),
        (edited(folds=1), "at least 2 folds"),
        (edited(accuracy=0.99), "accuracy is 0.99 here"),
        (edited(eer=None), "eer is None here"),
        (edited(auc=10**400), "auc is 1000"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK\x03\x04" + bytes(2000)), "npz: cannot read distances"),
        (header((10**12,)), r"expected float64 of shape \(60,\), got float64 of shape \(1000000000000,\)"),
        (header((60,), "<i8"), "got int64"),
        (header((60,), "|O"), "got object"),
        (header((60,), data=bytes(100)), "cannot read distances"),
        (header((60,), data=np.full(60, np.nan).tobytes()), "cannot read issame"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    path = save_evaluation(tmp_path, evaluation(), 100)
    damage(path)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lfw\.json"):
        load_evaluation(tmp_path / "lfw.json")
    path = save_evaluation(tmp_path, evaluation(), 100)
    path.with_suffix(".npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lfw\.npz"):
        load_evaluation(path)


def test_a_missing_set_is_reported(tmp_path):
    pairs = FakePairs(12)
    write_pair_set(tmp_path / "fake.bin", pairs.files, pairs.issame)
    found, missing = find_pair_sets(tmp_path, ["lfw", "fake", "cfp_fp", "lfw"])
    assert list(found) == ["fake"]
    assert missing == ["lfw", "cfp_fp"]
    assert found["fake"].issame.tolist() == pairs.issame.tolist()
    image = decode_image(found["fake"].encoded(23), "image", SIZE)
    assert (image == pairs.images[23]).all()
    assert evaluate(embed, found["fake"], image_size=SIZE, progress=False).name == "fake"


def test_nothing_is_found_in_no_folder(tmp_path):
    assert find_pair_sets(tmp_path / "absent", ["lfw"]) == ({}, ["lfw"])
