"""The trainer against its contract: heads, precisions, accumulation, clipping, labels, state."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import HEADS, DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from pytorch_impl import runtime
from pytorch_impl.margin_losses import SphereFaceHead
from pytorch_impl.sface_loss import SFaceHead
from pytorch_impl.trainer import Trainer, create_head

CLASSES = 6


def configured(**options) -> RunConfig:
    optimiser = {key: options.pop(key) for key in ("accumulate", "clip_norm") if key in options}
    config = RunConfig(
        name="test",
        data=DataConfig(root=Path("unused"), image_size=32),
        model=ModelConfig(backbone="iresnet_small", embedding_size=16),
        optimiser=OptimiserConfig(batch_size=8, **optimiser),
        device="cpu",
    )
    return dataclasses.replace(config, **options)


def batch(seed: int = 0, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (size, 3, 32, 32), np.uint8), random.integers(0, CLASSES, size)


def trained(config: RunConfig, steps: int = 3) -> Trainer:
    trainer = Trainer(config, CLASSES)
    for step in range(steps):
        trainer.train_step(*batch(step), 0.01)
    return trainer


def assert_same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains(head):
    trainer = trained(configured(head=HeadConfig(name=head)))
    metrics = trainer.metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"loss", "target_cosine", "other_cosine", "accuracy"} <= metrics.keys()
    assert ("intra_loss" in metrics) == (head == "sface")
    assert trainer.first_bad_step() is None


def test_a_batch_is_learned():
    """40 steps on one batch of noise: the angles to the own prototypes must shrink below the center of the pull."""
    trainer = Trainer(configured(model=ModelConfig("iresnet_small", 16, dropout=0.0)), CLASSES)
    images, labels = batch()
    for _ in range(40):
        trainer.train_step(images, labels, 0.02)
    metrics = trainer.metrics()
    assert metrics["accuracy"] == 1
    assert metrics["target_cosine"] > np.cos(0.87)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near_fp32(precision):
    """The first loss differs by what 8 (bf16) or 11 (fp16) bits do to the embeddings; measured 0.04 and 0.02 of 28."""
    reference, reduced = trained(configured(), 1).metrics(), trained(configured(precision=precision), 1).metrics()
    assert reduced["loss"] != reference["loss"]
    assert abs(reduced["loss"] - reference["loss"]) < 0.3
    assert abs(reduced["target_cosine"] - reference["target_cosine"]) < 0.003


def test_fp64_is_double_throughout():
    """The first loss differs from fp32 by rounding, times k / 4 = 20 in r; measured 5e-6 of the loss."""
    double, single = trained(configured(precision="fp64"), 1), trained(configured(), 1)
    weights = [array for name, array in double.state().items() if name.startswith(("backbone.", "head.", "momentum."))]
    assert {array.dtype for array in weights} == {np.dtype(np.float64)}
    assert double.metrics()["loss"] != single.metrics()["loss"]
    assert double.metrics()["loss"] == pytest.approx(single.metrics()["loss"], rel=1e-4)


def test_embeddings_are_float32_whatever_the_precision():
    trainer = trained(configured(precision="bf16"), 1)
    embeddings = trainer.embed(batch()[0])
    assert (embeddings.shape, embeddings.dtype) == ((8, 16), np.float32)
    assert np.array_equal(embeddings, trainer.embed(batch()[0])), "evaluation draws nothing"


def test_evaluation_does_not_depend_on_the_batch():
    trainer = trained(configured())
    images, _ = batch()
    together, alone = trainer.embed(images), np.concatenate([trainer.embed(image[None]) for image in images])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()  # measured 6e-7: another order of sums


def test_accumulation_adds_the_gradients_of_the_parts():
    """Where BatchNorm does not mix the batch, halves give the gradient of the whole; in training it does, so here the
    trainer's own step is compared with one made of two backward passes."""
    config = configured(accumulate=2, model=ModelConfig("iresnet_small", 16, dropout=0.0))
    trainer, other = Trainer(config, CLASSES), Trainer(config, CLASSES)
    images, labels = batch()
    trainer.train_step(images, labels, 0.01)

    other._modules.train()
    total = 0
    for part in (slice(0, 4), slice(4, 8)):
        x = (torch.from_numpy(images[part]).float() - 127.5) / 128
        result = other.head(other.backbone(x), torch.from_numpy(labels[part]))
        (result.loss / 2).backward()
        total += result.loss.item() / 2
    assert trainer.metrics()["loss"] == pytest.approx(total, rel=1e-5)
    for (name, a), (_, b) in zip(trainer._modules.named_parameters(), other._modules.named_parameters(), strict=True):
        if a.requires_grad:
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5 * b.grad.abs().max().item()), name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gradient_is_clipped(precision):
    """In fp16, after the loss scale is taken out."""
    norms = []
    for clip_norm in (None, 0.01):
        trainer = Trainer(configured(precision=precision, clip_norm=clip_norm), CLASSES)
        trainer.load_state(trainer.state() | {"scaler.scale": np.float64(32)}, 0)  # the first, 65536, overflows
        trainer.train_step(*batch(), 0.01)
        gradients = [p.grad.norm() for p in trainer._modules.parameters() if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-4)


def test_pixels_are_normalised_as_the_specification_says():
    trainer = Trainer(configured(), CLASSES)
    seen = []
    trainer.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer.embed(np.array([0, 127, 255], np.uint8)[None, :, None, None].repeat(32, 2).repeat(32, 3))
    assert seen[0][0, :, 0, 0].tolist() == [-127.5 / 128, -0.5 / 128, 127.5 / 128]


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_out_of_range(label):
    trainer = Trainer(configured(), CLASSES)
    trainer.head = None  # the trainer refuses them itself: on a CUDA device the loss would not
    images, labels = batch()
    labels[3] = label
    with pytest.raises(ValueError, match=rf"labels: expected 0\.\.5, got {label} at row 3"):
        trainer.train_step(images, labels, 0.1)


def test_the_first_bad_step_is_remembered():
    trainer = trained(configured(), 2)
    with torch.no_grad():
        trainer.head.class_weight[0, 0] = float("nan")
    for step in range(3):
        trainer.train_step(*batch(step), 0.01)
    assert trainer.first_bad_step() == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_state_round_trip_continues_to_the_bit(precision):
    """With dropout: the random state must come along, the momentum and the loss scale too."""
    config = configured(precision=precision)
    trainer = trained(config, 3)
    state = trainer.state()
    resumed = Trainer(config, CLASSES)
    resumed.embed(batch()[0])
    resumed.load_state(state, 3)
    assert_same_state(resumed.state(), state)
    losses = []
    for one in (trainer, resumed):
        one.load_state(state, 3)
        for step in range(3, 6):
            one.train_step(*batch(step), 0.01)
        losses.append(one.metrics())
    assert losses[0] == losses[1]
    assert_same_state(trainer.state(), resumed.state())


def test_a_state_that_does_not_fit_changes_nothing():
    trainer = trained(configured())
    before = trainer.state()
    for damage in (
        {"head.class_weight": np.zeros((CLASSES + 1, 16), np.float32)},
        {"momentum.head.class_weight": np.zeros((1, 1), np.float32)},
        {"backbone.surprise": np.zeros(3, np.float32)},
        {"backbone.fc.bias": np.full(16, np.nan, np.float32)},
    ):
        with pytest.raises(ValueError, match=next(iter(damage))):
            trainer.load_state({**trained(configured(), 1).state(), **damage}, 1)
        assert_same_state(
            {k: v for k, v in trainer.state().items() if not k.startswith("random")},
            {k: v for k, v in before.items() if not k.startswith("random")},
        )


def test_weights_alone_are_enough_to_evaluate():
    trainer = trained(configured())
    fresh = Trainer(configured(), CLASSES)
    fresh.load_weights(trainer.state())
    assert np.array_equal(fresh.embed(batch()[0]), trainer.embed(batch()[0]))


def test_the_seed_decides_the_weights():
    states = [Trainer(configured(seed=seed), CLASSES).state() for seed in (0, 0, 1)]
    assert np.array_equal(states[0]["backbone.conv1.weight"], states[1]["backbone.conv1.weight"])
    assert not np.array_equal(states[0]["backbone.conv1.weight"], states[2]["backbone.conv1.weight"])


def test_heads_get_their_numbers():
    head = create_head(HeadConfig(intra_center=0.9, inter_slope=70.0, form="plain"), 16, CLASSES)
    assert isinstance(head, SFaceHead)
    assert (head.intra_center, head.inter_slope, head.form) == (0.9, 70.0, "plain")
    assert create_head(HeadConfig(name="arcface", margin=0.3), 16, CLASSES).margin == 0.3
    assert create_head(HeadConfig(name="cosface"), 16, CLASSES).margin == 0.35


def test_sphereface_knows_the_step_after_a_resume():
    config = configured(head=HeadConfig(name="sphereface"))
    trainer = trained(config, 2)
    resumed = Trainer(config, CLASSES)
    resumed.load_state(trainer.state(), 2)
    resumed.train_step(*batch(2), 0.01)
    assert isinstance(resumed.head, SphereFaceHead)
    assert resumed.head.step == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:x", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:99", "cuda:99 asked for, but"),
        ("mps", "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        runtime.resolve_device(name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_state_round_trip(precision):
    config = configured(device="cuda:0", precision=precision)
    trainer = trained(config)
    resumed = Trainer(config, CLASSES)
    resumed.load_state(trainer.state(), 3)
    assert_same_state(resumed.state(), trainer.state())
    resumed.train_step(*batch(3), 0.01)
    assert np.isfinite(resumed.metrics()["loss"])
