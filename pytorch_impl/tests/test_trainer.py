"""The trainer against its contract, and what only PyTorch's has: reduced precision and CUDA."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.tests.backend_checks.trainer import *  # noqa: F403
from common.tests.backend_checks.trainer import CLASSES, assert_same_state, batch, configured, trained
from pytorch_impl.tests.conftest import BACKEND
from pytorch_impl.trainer import Trainer


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near_fp32(precision):
    """The first loss differs by what 8 (bf16) or 11 (fp16) bits do to the embeddings; measured 0.04 and 0.02 of 28."""
    reference, reduced = (
        trained(BACKEND, configured(), 1).metrics(),
        trained(BACKEND, configured(precision=precision), 1).metrics(),
    )
    assert reduced["loss"] != reference["loss"]
    assert abs(reduced["loss"] - reference["loss"]) < 0.3
    assert abs(reduced["target_cosine"] - reference["target_cosine"]) < 0.003


def test_fp32_is_float32_in_convolutions_too(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default
    Trainer(configured(), CLASSES)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_embeddings_of_reduced_precision_are_float32(precision):
    assert trained(BACKEND, configured(precision=precision), 1).embed(batch()[0]).dtype == np.float32


def test_the_gradient_is_clipped_after_the_loss_scale_is_taken_out():
    norms = []
    for clip_norm in (None, 0.01):
        trainer = Trainer(configured(precision="fp16", clip_norm=clip_norm), CLASSES)
        trainer.load_state(trainer.state() | {"scaler.scale": np.float64(32)}, 0)  # the first, 65536, overflows
        trainer.train_step(*batch(), 0.01)
        gradients = [p.grad.norm() for p in trainer._modules.parameters() if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-4)


def test_a_compiled_backbone_trains_the_same_weights(monkeypatch):
    """The compiler is a stand-in that calls what it was given: its own code is PyTorch's to test, and slow to make."""
    compiled = []

    def compiler(module):
        return lambda images: compiled.append(len(images)) or module(images)

    monkeypatch.setattr(torch, "compile", compiler)
    trainer = trained(BACKEND, configured(compile=True, accumulate=2))
    assert compiled == [4] * 6
    assert trainer.head.compiled
    trainer.embed(batch()[0])
    assert len(compiled) == 6, "evaluation has batches of any size, each of which it would compile again"
    reference = trained(BACKEND, configured(accumulate=2))
    assert compiled == [4] * 6
    assert_same_state(trainer.state(), reference.state())


def test_pixels_are_normalised_as_the_specification_says():
    trainer = Trainer(configured(), CLASSES)
    seen = []
    trainer.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer.embed(np.array([0, 127, 255], np.uint8)[None, :, None, None].repeat(32, 2).repeat(32, 3))
    assert seen[0][0, :, 0, 0].tolist() == [-127.5 / 128, -0.5 / 128, 127.5 / 128]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_state_of_reduced_precision_continues_to_the_bit(precision):
    """The loss scale must come along."""
    config = configured(precision=precision)
    trainer, resumed = trained(BACKEND, config, 3), Trainer(config, CLASSES)
    state = trainer.state()
    for one in (trainer, resumed):
        one.load_state(state, 3)
        assert_same_state(one.state(), state)
        one.train_step(*batch(3), 0.01)
    assert trainer.metrics() == resumed.metrics()
    assert_same_state(trainer.state(), resumed.state())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_state_round_trip(precision):
    config = configured(device="cuda:0", precision=precision)
    trainer = trained(BACKEND, config)
    resumed = Trainer(config, CLASSES)
    resumed.load_state(trainer.state(), 3)
    assert_same_state(resumed.state(), trainer.state())
    resumed.train_step(*batch(3), 0.01)
    assert np.isfinite(resumed.metrics()["loss"])


FAULTS = """
import resource, torch
from pytorch_impl import runtime
for round in range(20):
    if round == 15:  # what is taken at a time lasts for a few rounds
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(40 * 2**20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_the_memory_of_a_step_is_kept_for_the_next(monkeypatch):
    """Blocks above 32 MiB have a mapping of their own by default: 5 times 10,240 pages taken anew."""
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1000


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_steps_do_not_wait():
    """As PyTorch itself sees it, the head's kernels included."""
    trainer = trained(BACKEND, configured(device="cuda:0"), 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            trainer.train_step(*batch(step), 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(trainer.metrics()["loss"])
