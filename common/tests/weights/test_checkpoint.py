"""Checkpoints are read with the same bits, and damage of any kind is found."""

import json
import resource
import signal

import numpy as np
import pytest

from common.weights import checkpoint
from common.weights.checkpoint import DamagedCheckpoint, load_checkpoint, prune, save_checkpoint


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "backbone.conv1.weight": random.standard_normal((4, 3, 3, 3)).astype(np.float32).transpose(0, 1, 3, 2),
        "head.class_weight": random.standard_normal((5, 8)),
        "momentum.head.class_weight": random.standard_normal((5, 8)).astype(np.float32),
        "random.cpu": random.integers(0, 255, 5056, np.uint8),
        "scaler.scale": np.float64(65536.0),
        **{f"random.{kind}": np.array([7, 1, 0], kind) for kind in ("u2", "u4", "u8", "i1", "i2", "f2", "?")},
        "random.none": np.zeros((0, 2), np.float32),
    }


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, 12, arrays(), {"progress": {"seconds": 0.1}})
    loaded = load_checkpoint(path)
    assert path.name == "step-00000012"
    assert (loaded.step, loaded.state["progress"]) == (12, {"seconds": 0.1})
    assert loaded.arrays.keys() == arrays().keys()
    for name, array in arrays().items():
        assert loaded.arrays[name].dtype == array.dtype
        assert (loaded.arrays[name] == array).all(), name


def test_inference_needs_the_weights_only(tmp_path):
    from safetensors.numpy import load_file

    path = save_checkpoint(tmp_path, 1, arrays(), {})
    assert load_file(path / "weights.safetensors").keys() == {"backbone.conv1.weight", "head.class_weight"}


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "empty"])
def test_damage_is_found(tmp_path, name, damage):
    path = save_checkpoint(tmp_path, 3, arrays(), {})
    content = bytearray((path / name).read_bytes())
    if damage == "missing":
        (path / name).unlink()
    elif damage == "truncated":
        (path / name).write_bytes(content[:-9])
    elif damage == "empty":
        (path / name).write_bytes(b"")
    else:
        digit = content.index(b'"sha256": "') + 11 if name == "state.json" else len(content) // 2
        content[digit] ^= 1
        (path / name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="take an older checkpoint in its place"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 3, arrays(), {})
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(DamagedCheckpoint, match="expected format 1, got 2"):
        load_checkpoint(path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint folder"):
        load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize("limit", [0, 100, 300, 5000])
def test_a_full_disk_loses_nothing(tmp_path, limit):
    old = save_checkpoint(tmp_path, 1, arrays(), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError):
            save_checkpoint(tmp_path, 2, arrays(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert load_checkpoint(old).step == 1
    save_checkpoint(tmp_path, 2, arrays(), {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["backbone.conv1.weight", "momentum.head.class_weight", "scaler.scale"])
def test_what_is_not_finite_is_not_saved(tmp_path, name, value):
    bad = arrays()
    bad[name] = np.array(bad[name])
    bad[name][(-1,) * bad[name].ndim] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        save_checkpoint(tmp_path, 1, bad, {})
    assert not list(tmp_path.iterdir())


def test_prune_keeps_the_latest_and_the_best(tmp_path):
    for step in (5, 10, 15, 20, 100_000_000):
        save_checkpoint(tmp_path, step, {}, {})
    (tmp_path / ".step-00000025.tmp").mkdir()  # left by a kill
    prune(tmp_path, keep=2, best=10)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [10, 20, 100_000_000]
    assert len(list(tmp_path.iterdir())) == 3
