"""The log: what is written comes back, a torn end is forgiven, a resumed run rewrites its tail."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.training.run_log import RunLog, environment, read_log


def record(step: int, **figures) -> dict:
    return {"kind": "train", "step": step, **figures}


def test_round_trip_and_tensorboard(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write(record(1, loss=-2.5, accuracy=1))
    log.write({"kind": "evaluation", "step": 1, "set": "lfw", "accuracy": 0.9, "auc": None})
    log.close()
    assert read_log(tmp_path / "log.jsonl")[0] == record(1, loss=-2.5, accuracy=1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = [tag for kind in ("scalars", "tensors") for tag in events.Tags()[kind]]
    assert sorted(tags) == ["evaluation/lfw/accuracy", "train/accuracy", "train/loss"]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = json.dumps(record(1)) + "\n"
    for length in range(len(whole)):
        path.write_text(whole + whole[:length])
        assert read_log(path) == [record(1)]


@pytest.mark.parametrize("line", ["{", "3", '{"kind": "train"}', '{"step": "1", "kind": "train"}', ""])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record(1)) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="log.jsonl line 2: "):
        read_log(path)


def test_resuming_drops_what_comes_after(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(record(step))
    log.close()
    log = RunLog(tmp_path, 2)
    log.write(record(3, again=True))
    log.close()
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert read_log(tmp_path / "log.jsonl")[-1] == record(3, again=True)


def test_nan_is_refused(tmp_path):
    log = RunLog(tmp_path, 0)
    with pytest.raises(ValueError, match="JSON"):
        log.write(record(1, loss=float("nan")))
    log.close()


def test_environment_is_json():
    assert json.loads(json.dumps(environment({"name": "none"})))["backend"] == {"name": "none"}
