"""The probe on a trainer whose steps cost what the test says, by a clock that only it moves."""

import dataclasses

import numpy as np
import pytest

from common.io import memory
from common.io.memory import GpuMemory
from common.recipes import casia_r50
from common.training import probe
from common.training.probe import Measurement, Probe, batch_sizes, extrapolate, fitting_accumulate, measure

MIB = 2**20


class Device:
    """A clock and a memory: a step takes 1 s and 0.5 s an image, and holds 100 MiB and 10 MiB an image."""

    def __init__(self, monkeypatch, available=10_000 * MIB, name="cpu", capacity=None):
        self.now = self.peak = 0.0
        self.name, self.capacity = name, capacity
        self.failure = RuntimeError("out of memory: asked for 5\nand a long trace")
        self.steps, self.labels, self.resets = [], [], 0
        monkeypatch.setattr(probe.os, "getloadavg", lambda: (1.25, 0, 0))
        monkeypatch.setattr(probe.os, "cpu_count", lambda: 4)
        monkeypatch.setattr(probe.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(probe.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(memory, "host_available", lambda: available)
        monkeypatch.setattr(memory, "host_peak", lambda: int(self.peak))
        monkeypatch.setattr(memory, "reset_host_peak", self.reset)
        monkeypatch.setattr(memory, "gpu_memory", self.gpus)

    def reset(self):
        self.peak, self.resets = 0.0, self.resets + 1

    def gpus(self):
        return (
            []
            if self.name == "cpu"
            else [GpuMemory(7 * MIB, 9999 * MIB), GpuMemory(int(50 * MIB + self.peak), 900 * MIB)]
        )

    def create(self, config, num_classes):
        self.config, self.num_classes = config, num_classes
        return self

    def train_step(self, images, labels, learning_rate):
        assert images.shape[1:] == (3, 112, 112)
        assert images.dtype == np.uint8
        assert self.config.optimiser.accumulate == 1
        if self.capacity is not None and len(images) > self.capacity:
            raise self.failure
        is_first = not self.steps
        self.now += 1 + 0.5 * len(images) + (40 if is_first else 0)  # a first step compiles
        self.peak = max(self.peak, (100 + 10 * len(images)) * MIB)
        self.steps.append(len(images))
        self.labels += labels.tolist()

    def metrics(self):
        return {"loss": 0.0}

    def embed(self, images):
        self.now += 0.1 * len(images)
        return np.zeros((len(images), 2), np.float32)

    def state(self):
        return {"head.class_weight": np.zeros((5, 3), np.float32), "scaler.scale": np.float64(1)}

    def describe(self):
        return {"name": "pytorch", "device": self.name, "threads": 2} | (
            {"device_name": "H100"} if self.name != "cpu" else {}
        )


def configured(batch=8, parts=1):
    config = casia_r50()
    optimiser = dataclasses.replace(config.optimiser, batch_size=batch, accumulate=parts)
    return dataclasses.replace(config, optimiser=optimiser)


def run(device, config, budget=1000.0):
    return measure(device.create, config, 7, budget, lambda text: None)


def test_a_batch_that_fits_is_measured_itself(monkeypatch):
    device = Device(monkeypatch)
    found = run(device, configured(8))
    assert found.measurements == [
        Measurement(2, pytest.approx(2.0), 120 * MIB),  # not the 42 s of the first step
        Measurement(4, pytest.approx(3.0), 140 * MIB),
        Measurement(8, pytest.approx(5.0), 180 * MIB),
    ]
    assert device.steps == [2] * 3 + [4] * 3 + [8] * 3
    assert device.resets == 3
    assert set(device.labels) <= set(range(7))
    assert len(set(device.labels)) > 2
    assert (device.num_classes, device.config.model.backbone) == (7, "iresnet50")
    assert found.device == "cpu, 2 threads, load 1.2 on 4 CPUs before"
    assert found.available == 10_000 * MIB
    assert found.embed_seconds == pytest.approx(0.1)
    assert found.state_bytes == 5 * 3 * 4 + 8
    assert found.refused is None


def test_a_part_of_a_batch_is_measured_where_it_is_computed_in_parts(monkeypatch):
    assert [m.images for m in run(Device(monkeypatch), configured(24, 4)).measurements] == [2, 4, 6]


def test_the_time_ends_the_probe_before_a_size_that_would_be_late(monkeypatch):
    device = Device(monkeypatch)
    # After the first step: 2 images 4 s, 4 images 9 s, 8 images 15 s; three steps of 16 images take 27 s.
    found = run(device, configured(256), budget=54)
    assert [m.images for m in found.measurements] == [2, 4, 8]
    assert found.refused == "no time was left for steps of 16 images"
    assert [m.images for m in run(Device(monkeypatch), configured(256), budget=56).measurements] == [2, 4, 8, 16]


def test_two_sizes_are_measured_whatever_the_time(monkeypatch):
    device = Device(monkeypatch)
    found = run(device, configured(256), budget=3)
    # The second size begins one step after the time, and takes two.
    assert [(m.images, m.seconds) for m in found.measurements] == [(2, pytest.approx(2)), (4, pytest.approx(3))]
    assert device.steps == [2] * 3 + [4] * 2


def test_the_memory_ends_the_probe_before_a_size_that_would_not_fit(monkeypatch):
    # 16 images: 260 MiB, 32 images: 420 MiB, of which a tenth must stay free
    found = run(Device(monkeypatch, available=450 * MIB), configured(256))
    assert found.measurements[-1].images == 16
    assert found.refused == "a step of 32 images would not fit the memory"


def test_a_step_that_runs_out_of_memory_ends_the_probe(monkeypatch):
    found = run(Device(monkeypatch, capacity=6), configured(256))
    assert [m.images for m in found.measurements] == [2, 4]
    assert found.refused == "a step of 8 images failed: out of memory: asked for 5"
    with pytest.raises(ValueError, match="does not fit this device: a step of 2 images failed: out of memory"):
        run(Device(monkeypatch, capacity=1), configured(256))
    device = Device(monkeypatch, capacity=6)
    device.failure = MemoryError()
    assert run(device, configured(256)).refused == "a step of 8 images failed: MemoryError()"


def test_on_a_gpu_its_own_memory_counts(monkeypatch):
    found = run(Device(monkeypatch, name="cuda:1"), configured(4))
    assert found.device == "H100"
    assert found.available == 850 * MIB  # of the GPU that fills up, not of the one that is emptier
    assert [m.peak for m in found.measurements] == [120 * MIB, 140 * MIB]


def test_a_gpu_that_does_not_say(monkeypatch):
    device = Device(monkeypatch, name="gpu(0)")
    monkeypatch.setattr(memory, "gpu_memory", lambda: [])
    found = run(device, configured(8))
    assert (found.available, found.measurements[-1]) == (None, Measurement(8, pytest.approx(5.0), None))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(256, [2, 4, 8, 16, 32, 64, 128, 256]), (6, [2, 4, 6]), (3, [2, 3]), (2, [2]), (1, [1])]
)
def test_batch_sizes(largest, sizes):
    assert batch_sizes(largest) == sizes


@pytest.mark.parametrize(
    ("points", "at", "expected"),
    [
        ([(4, 2.0)], 8, 4.0),
        ([(2, 9.0), (4, 3.0), (8, 5.0)], 16, 9.0),  # half a second an image
        ([(4, 3.0), (8, 5.0)], 8, 5.0),
        ([(4, 3.0), (8, 2.0)], 16, 2.0),  # noise: not less than what was seen
        ([(4, 1.0), (8, 5.0)], 16, 10.0),  # noise: not less than nothing at no images
    ],
)
def test_extrapolate(points, at, expected):
    assert extrapolate(points, at) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("available", "parts", "expected"),
    [
        (10_000, 1, 1),
        (10_000, 4, 4),  # what was asked for
        (2_600, 1, 2),  # 256 images take 2,660 MiB, 128 take 1,380
        (200, 1, 32),  # 8 images take 180 MiB: nine tenths
        (190, 1, 64),
        (100, 1, None),
        (None, 1, None),
    ],
)
def test_fitting_accumulate(available, parts, expected):
    seen = [Measurement(2, 1.0, 120 * MIB), Measurement(4, 1.0, 140 * MIB)]
    found = Probe("cpu", seen, available and int(available * MIB), 0.1, 1, None)
    assert fitting_accumulate(configured(256, parts), found) == expected
