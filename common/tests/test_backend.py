"""What a backend does not offer is refused before a trainer is made, and no framework is imported for it."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from common import backend as backends
from common.backend import BACKENDS, CAPABILITIES, Backend, check_labels
from common.config import HeadConfig, RunConfig
from common.recipes import RECIPES


def configured(**options) -> RunConfig:
    return dataclasses.replace(RECIPES["orl-demo"](), device="cpu", **options)


SAMPLED = HeadConfig(name="cosface", sample_rate=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, options, message.format(CAPABILITIES[name].title))
            for name in ("mxnet", "jittor")
            for options, message in (
                ({"precision": "bf16"}, "--precision: expected fp32 or fp64 with {}, got bf16; PyTorch offers it"),
                ({"precision": "fp16"}, "--precision: expected fp32 or fp64 with {}, got fp16; PyTorch offers it"),
                ({"compile": True}, "--compile: expected false with {}, got true; PyTorch offers it"),
                ({"head": SAMPLED}, "--head.sample-rate: expected 1 with {}, got 0.1; PyTorch offers it"),
            )
        )
    ],
)
def test_what_pytorch_alone_offers(name, options, message):
    with pytest.raises(ValueError) as error:
        Backend(name).create_trainer(configured(**options), 5)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "options", [*({"precision": p} for p in ("fp32", "bf16", "fp16", "fp64")), {"compile": True}, {"head": SAMPLED}]
)
def test_pytorch_offers_every_option(options):
    Backend("pytorch").check(configured(**options))


@pytest.mark.parametrize("name", BACKENDS)
def test_every_recipe_is_offered(name):
    for recipe in RECIPES.values():
        Backend(name).check(recipe())


@pytest.fixture
def on_gpus(monkeypatch):
    """A host with GPUs, where no launcher started this process and MXNet needs none."""
    modules = {
        "runtime": SimpleNamespace(resolve_device=lambda name: "cpu" if name == "cpu" else "cuda:0"),
        "launcher": SimpleNamespace(is_launched=lambda: False, needs_launcher=lambda device: device == "cpu"),
    }
    monkeypatch.setattr(Backend, "module", lambda self, name: modules[name])
    return modules["launcher"]


def test_double_precision_of_jittor_is_for_the_cpu(on_gpus):
    config = configured(precision="fp64")
    Backend("jittor").check(config)
    with pytest.raises(ValueError) as error:
        Backend("jittor").check(dataclasses.replace(config, device="cuda:0"))
    assert str(error.value) == (
        "--precision: expected fp32 with Jittor on cuda:0, got fp64; PyTorch and MXNet offer it"
    )
    for name in ("pytorch", "mxnet"):
        Backend(name).check(dataclasses.replace(config, device="cuda:0"))


def test_batch_norm_is_not_synchronised_within_a_process_of_mxnet(on_gpus):
    config = configured(sync_batch_norm=True, devices=2)
    Backend("mxnet").check(config)
    shared = dataclasses.replace(config, device="cuda:0")
    with pytest.raises(ValueError) as error:
        Backend("mxnet").check(shared)
    assert str(error.value) == (
        "--sync-batch-norm: expected false with several GPUs in one process of MXNet (docs/many_devices.md starts a "
        "process for each GPU by hand), got true; PyTorch and Jittor offer it"
    )
    Backend("mxnet").check(dataclasses.replace(shared, devices=1))
    on_gpus.is_launched = lambda: True
    Backend("mxnet").check(shared)


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="expected one of pytorch, mxnet, jittor, got 'tensorflow'"):
        Backend("tensorflow").check(configured())


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_named(label):
    check_labels(np.arange(5), 5)
    with pytest.raises(ValueError, match=rf"labels: expected 0\.\.4, got {label} at row 2"):
        check_labels(np.array([0, 1, label, label]), 5)


def test_one_line_makes_a_backend_known(monkeypatch):
    monkeypatch.setitem(backends.CAPABILITIES, "new", backends.Capabilities("New", "new", compile=True))
    with pytest.raises(ValueError, match="PyTorch and New offer it"):
        Backend("mxnet").check(configured(compile=True))
    Backend("new").check(configured(compile=True))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_framework_is_named_with_what_installs_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, CAPABILITIES[name].module, None)
    with pytest.raises(ModuleNotFoundError) as error:
        backends.check_framework(name)
    title = CAPABILITIES[name].title
    assert str(error.value) == f"{title} is not installed; pip install -r requirements/{name}.txt"
    monkeypatch.setattr(backends, "PREFIX", "sface.")
    with pytest.raises(ModuleNotFoundError, match=rf'{title} is not installed; pip install "sface\[{name}\]"'):
        backends.check_framework(name)
    monkeypatch.setattr(sys, "argv", ["-m", "info"])
    assert not backends.check_framework(name)
