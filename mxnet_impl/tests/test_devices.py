"""Several devices of one process (two contexts of the CPU) against one that accumulates the same parts of a batch."""

import dataclasses

import mxnet as mx
import numpy as np
import pytest

from mxnet_impl import distributed, launcher
from mxnet_impl.tests.conftest import BACKEND
from mxnet_impl.tests.test_distributed import CLASSES, configured, errors, train
from mxnet_impl.trainer import Trainer

TWO = [mx.cpu(0), mx.cpu(1)]


def weights(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state.items() if not name.startswith("metrics.")}


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_two_devices_are_one_that_accumulates(precision):
    """With clipping in float32; six steps, of which the last three go on from the other's state.

    float64: measured 2e-11. float32: halves are exact, so weights are the same to the bit.
    """
    two = Trainer(configured(precision), CLASSES, devices=TWO)
    alone = Trainer(configured(precision, accumulate=2), CLASSES)
    halfway = train(two, 0, 3), train(alone, 0, 3)
    two.load_state(weights(halfway[1]), 3)
    alone.load_state(weights(halfway[0]), 3)
    for found, expected in (halfway, (train(two, 3, 6), train(alone, 3, 6))):
        of_each = errors(found, expected)
        worst = max(of_each, key=of_each.get)
        assert of_each[worst] < {"fp64": 1e-9, "fp32": 1e-6}[precision], worst
    one, other = (replica._modules.collect_params().values() for replica in two._replicas)
    for mine, its in zip(one, other, strict=True):
        assert mine.list_ctx() != its.list_ctx()
        assert mine.grad_req == "null" or np.array_equal(mine.data().asnumpy(), its.data().asnumpy()), mine.name
    assert two.describe()["ranks"] == 2


def test_weights_are_those_of_all_devices():
    """A step after other weights were loaded: a device that kept its own would pull the mean gradient elsewhere."""
    start = Trainer(configured("fp64"), CLASSES).state()
    two = Trainer(configured("fp64"), CLASSES, devices=TWO)
    alone = Trainer(configured("fp64", accumulate=2), CLASSES)
    for trainer in (two, alone):
        train(trainer, 0, 2)
        trainer.load_weights({name: array for name, array in start.items() if "momentum." not in name})
    of_each = errors(train(two, 2, 3), train(alone, 2, 3))
    assert max(of_each.values()) < 1e-9


def test_a_bad_step_of_any_device_counts():
    trainer = Trainer(configured("fp32"), CLASSES, devices=TWO)
    assert trainer.first_bad_step() is None
    trainer._replicas[1]._first_bad_step[:] = 4
    assert trainer.first_bad_step() == 4


@pytest.fixture
def gpus(monkeypatch):
    """A host with three."""

    def resolved(name: str) -> mx.Context:
        number = int(name.partition(":")[2] or 0)
        if number >= 3:
            raise ValueError("no such device")
        return mx.cpu() if name == "cpu" else mx.gpu(number)

    monkeypatch.setattr("mxnet_impl.runtime.resolve_device", resolved)


def test_batch_norm_is_not_synchronised_within_a_process(gpus):
    config = dataclasses.replace(configured("fp32", sync_batch_norm=True), device="cuda", devices=2)
    with pytest.raises(ValueError, match="--sync-batch-norm: expected false with several GPUs in one process of MXNet"):
        BACKEND.create_trainer(config, CLASSES)


def test_gpus_of_one_host_share_a_process(gpus, monkeypatch):
    assert not launcher.needs_launcher("cuda")
    assert launcher.needs_launcher("cpu")
    assert distributed.local_devices("cuda", 3) == [mx.gpu(0), mx.gpu(1), mx.gpu(2)]
    assert distributed.local_devices("cuda:1", 1) == [mx.gpu(1)]
    assert distributed.local_devices("cpu", 2) == [mx.cpu()]
    with pytest.raises(ValueError, match="no such device"):
        distributed.local_devices("cuda", 4)
    monkeypatch.setenv("DMLC_ROLE", "worker")  # by hand, on several hosts
    assert distributed.local_devices("cuda:1", 2) == [mx.gpu(1)]
    assert not launcher.needs_launcher("cpu")
