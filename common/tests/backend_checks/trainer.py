"""A trainer against its contract: heads, precision, accumulation, clipping, labels, state."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

from common.backend import CAPABILITIES, Backend, Trainer
from common.config import HEADS, DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from common.datasets.training_sets import open_dataset
from common.training.failures import Diverged
from common.training.loop import fit
from data.synthetic import make_synthetic

CLASSES = 6


def configured(**options) -> RunConfig:
    keys = ("accumulate", "clip_norm", "batch_size", "weight_decay")
    optimiser = {"batch_size": 8} | {key: options.pop(key) for key in keys if key in options}
    config = RunConfig(
        name="test",
        data=DataConfig(root=Path("unused"), image_size=32),
        model=ModelConfig(backbone="iresnet_small", embedding_size=16),
        optimiser=OptimiserConfig(**optimiser),
        device="cpu",
    )
    return dataclasses.replace(config, **options)


WITHOUT_DROPOUT = ModelConfig("iresnet_small", 16, dropout=0.0)


def batch(seed: int = 0, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (size, 3, 32, 32), np.uint8), random.integers(0, CLASSES, size)


def trained(backend: Backend, config: RunConfig, steps: int = 3) -> Trainer:
    trainer = backend.create_trainer(config, CLASSES)
    for step in range(steps):
        trainer.train_step(*batch(step), 0.01)
    return trainer


def bare_loop(backend: Backend):
    return importlib.import_module(f"benchmarks.backends.{backend.name}.bare")


def assert_same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert np.array_equal(one[name], other[name]), name


def without_random(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state.items() if not name.startswith("random.")}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains(backend, head):
    trainer = trained(backend, configured(head=HeadConfig(name=head)))
    metrics = trainer.metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"loss", "target_cosine", "other_cosine", "accuracy"} <= metrics.keys()
    assert ("intra_loss" in metrics) == (head == "sface")
    assert trainer.first_bad_step() is None


def test_a_batch_is_learned(backend):
    """40 steps on one batch of noise: the angles to the own prototypes must shrink below the center of the pull."""
    trainer = backend.create_trainer(configured(model=WITHOUT_DROPOUT), CLASSES)
    images, labels = batch()
    for _ in range(40):
        trainer.train_step(images, labels, 0.02)
    metrics = trainer.metrics()
    assert metrics["accuracy"] == 1
    assert metrics["target_cosine"] > np.cos(0.87)


def test_fp64_is_double_throughout(backend):
    """The first loss differs from fp32 by rounding, times k / 4 = 20 in r; measured 5e-6 of the loss."""
    double, single = (trained(backend, configured(precision=p, model=WITHOUT_DROPOUT), 1) for p in ("fp64", "fp32"))
    weights = [array for name, array in double.state().items() if name.startswith(("backbone.", "head.", "momentum."))]
    assert {array.dtype for array in weights} == {np.dtype(np.float64)}
    assert double.metrics()["loss"] != single.metrics()["loss"]
    assert double.metrics()["loss"] == pytest.approx(single.metrics()["loss"], rel=1e-4)


def test_embeddings_are_float32_whatever_the_precision(backend):
    trainer = trained(backend, configured(precision="fp64"), 1)
    embeddings = trainer.embed(batch()[0])
    assert (embeddings.shape, embeddings.dtype) == ((8, 16), np.float32)
    assert np.array_equal(embeddings, trainer.embed(batch()[0])), "evaluation draws nothing"


def test_evaluation_does_not_depend_on_the_batch(backend):
    trainer = trained(backend, configured())
    images, _ = batch()
    together, alone = trainer.embed(images), np.concatenate([trainer.embed(image[None]) for image in images])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()  # measured 6e-7: another order of sums


def momentum(trainer: Trainer) -> dict[str, np.ndarray]:
    """After the first step, without weight decay: the gradients."""
    return {name: array for name, array in trainer.state().items() if name.startswith("momentum.")}


def test_accumulation_adds_the_gradients_of_the_parts(backend):
    """Half of each part's gradient, where BatchNorm sees a part."""
    options = {"model": WITHOUT_DROPOUT, "weight_decay": 0.0, "precision": "fp64"}
    whole = backend.create_trainer(configured(accumulate=2, **options), CLASSES)
    images, labels = batch()
    whole.train_step(images, labels, 0.01)
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        trainer = backend.create_trainer(configured(batch_size=4, **options), CLASSES)
        trainer.train_step(images[part], labels[part], 0.01)
        parts.append(trainer)
    losses = [part.metrics()["loss"] for part in parts]
    assert whole.metrics()["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    first, second = (momentum(part) for part in parts)
    scale = max(np.abs(array).max() for array in momentum(whole).values())
    for name, array in momentum(whole).items():
        assert np.abs(array - (first[name] + second[name]) / 2).max() < 1e-12 * scale, name


def test_accumulation_starts_anew_with_every_step(backend):
    config = configured(accumulate=2, model=WITHOUT_DROPOUT, weight_decay=0.0)
    trainers = [trained(backend, config, steps) for steps in (1, 2)]
    trainers[0].load_state(trainers[1].state(), 2)
    for trainer in trainers:
        trainer.train_step(*batch(2), 0.01)
    assert_same_state(momentum(trainers[0]), momentum(trainers[1]))


def test_the_gradient_is_clipped(backend):
    norms = []
    for clip_norm in (None, 0.01):
        trainer = trained(backend, configured(clip_norm=clip_norm, weight_decay=0.0), 1)
        norms.append(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in momentum(trainer).values())))
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-4)


def test_the_weight_of_the_last_batch_norm_does_not_train(backend):
    trainer = trained(backend, configured())
    assert "momentum.backbone.features.bias" in trainer.state()
    assert "momentum.backbone.features.weight" not in trainer.state()
    assert (trainer.state()["backbone.features.weight"] == 1).all()


def test_a_single_value_a_channel_is_refused(backend):
    """Its variance says nothing, and its unbiased one divides by zero."""
    trainer = backend.create_trainer(configured(batch_size=1), CLASSES)
    images, labels = batch(size=1)
    with pytest.raises(ValueError, match=r"[Ee]xpected more than 1 value per channel when training"):
        trainer.train_step(images, labels, 0.01)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_out_of_range(backend, label):
    trainer = backend.create_trainer(configured(), CLASSES)
    images, labels = batch()
    labels[3] = label
    with pytest.raises(ValueError, match=rf"labels: expected 0\.\.5, got {label} at row 3"):
        trainer.train_step(images, labels, 0.1)


def test_the_first_bad_step_is_remembered(backend):
    trainer = trained(backend, configured(), 2)
    trainer.train_step(*batch(2), 1e38)
    assert trainer.first_bad_step() is None
    for step in range(3, 6):
        trainer.train_step(*batch(step), 0.01)
    assert trainer.first_bad_step() == 4


def test_a_step_with_a_finite_loss_that_spoils_the_weights_is_not_saved(backend, tmp_path):
    """They overflow, as with a huge gradient; the checkpoint of the step before stays."""
    faces = make_synthetic(tmp_path / "faces", classes=CLASSES, images=4, size=32, pairs=4)
    config = configured(data=DataConfig(faces, image_size=32), save_every=1)
    trainer = backend.create_trainer(config, CLASSES)
    train_step = trainer.train_step
    rates = iter([0.01, 3e38])
    trainer.train_step = lambda images, labels, rate: train_step(images, labels, next(rates))
    with pytest.raises(Diverged, match=r"after step 2 backbone\.\S+ holds NaN or infinity, though the loss was finite"):
        fit(trainer, open_dataset(faces), config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_state_round_trip_continues_to_the_bit(backend):
    """With dropout."""
    config = configured()
    trainer = trained(backend, config, 3)
    state = trainer.state()
    resumed = backend.create_trainer(config, CLASSES)
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


def test_prototypes_are_a_copy_of_the_class_weights(backend):
    trainer = trained(backend, configured())
    prototypes = trainer.prototypes()
    before = trainer.state()["head.class_weight"]
    assert np.array_equal(prototypes, before)
    prototypes += 1
    assert np.array_equal(trainer.state()["head.class_weight"], before)


def test_a_state_that_does_not_fit_changes_nothing(backend):
    trainer = trained(backend, configured())
    before = trainer.state()
    for damage in (
        {"head.class_weight": np.zeros((CLASSES + 1, 16), np.float32)},
        {"momentum.head.class_weight": np.zeros((1, 1), np.float32)},
        {"backbone.surprise": np.zeros(3, np.float32)},
        {"backbone.fc.bias": np.full(16, np.nan, np.float32)},
    ):
        with pytest.raises(ValueError, match=next(iter(damage))):
            trainer.load_state({**trained(backend, configured(), 1).state(), **damage}, 1)
        assert_same_state(without_random(trainer.state()), without_random(before))


def test_weights_alone_are_enough_to_evaluate(backend):
    trainer = trained(backend, configured())
    fresh = backend.create_trainer(configured(), CLASSES)
    fresh.load_weights(trainer.state())
    assert np.array_equal(fresh.embed(batch()[0]), trainer.embed(batch()[0]))


def test_weights_without_a_head_leave_the_head_alone(backend):
    trainer, fresh = trained(backend, configured()), backend.create_trainer(configured(seed=1), CLASSES)
    drawn, weights = fresh.state()["head.class_weight"], trainer.state()
    fresh.load_weights({name: array for name, array in weights.items() if name.startswith("backbone.")})
    assert np.array_equal(fresh.state()["head.class_weight"], drawn)
    assert np.array_equal(fresh.embed(batch()[0]), trainer.embed(batch()[0]))
    with pytest.raises(ValueError, match=r"backbone\.fc\.bias: missing"):
        fresh.load_weights({name: array for name, array in weights.items() if name != "backbone.fc.bias"})


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip_norm": 0.01}])
@pytest.mark.parametrize("head", ["sface", "softmax"])
def test_a_frozen_backbone(backend, head, options):
    """The head alone moves, from embeddings as in evaluation; then all does, also after a resume in between."""
    model = ModelConfig("iresnet_small", 16, freeze_backbone_steps=2)
    config = configured(model=model, head=HeadConfig(name=head), **options)
    drawn, states = backend.create_trainer(config, CLASSES).state(), []
    trainer = backend.create_trainer(config, CLASSES)
    for step in range(4):
        trainer.train_step(*batch(step), 0.01)
        states.append(trainer.state())
    for name, array in drawn.items():
        if "backbone." in name:
            assert np.array_equal(states[1][name], array), f"{name} is frozen"
            moves = name != "backbone.features.weight"
            assert np.array_equal(states[2][name], array) != moves, f"{name} is trained afterwards"
    assert not np.array_equal(states[0]["head.class_weight"], drawn["head.class_weight"])
    assert not np.array_equal(states[1]["momentum.head.class_weight"], states[0]["momentum.head.class_weight"])
    if "clip_norm" in options:
        heads = [a for n, a in states[0].items() if n.startswith("momentum.head.")]
        assert np.sqrt(sum(np.sum(np.square(array)) for array in heads)) < 0.02, "with weight decay"

    resumed = backend.create_trainer(config, CLASSES)
    resumed.load_state(states[0], 1)
    for step in range(1, 4):
        resumed.train_step(*batch(step), 0.01)
    assert_same_state(resumed.state(), states[3])


def test_the_seed_decides_the_weights(backend):
    states = [backend.create_trainer(configured(seed=seed), CLASSES).state() for seed in (0, 0, 1)]
    assert np.array_equal(states[0]["backbone.conv1.weight"], states[1]["backbone.conv1.weight"])
    assert not np.array_equal(states[0]["backbone.conv1.weight"], states[2]["backbone.conv1.weight"])


def test_heads_get_their_numbers(backend):
    create_head = backend.module("trainer").create_head
    head = create_head(HeadConfig(intra_center=0.9, inter_slope=70.0, form="plain"), 16, CLASSES)
    assert isinstance(head, backend.module("losses").SFaceHead)
    assert (head.rescaling.intra_center, head.rescaling.inter_slope, head.form) == (0.9, 70.0, "plain")
    assert create_head(HeadConfig(name="arcface", margin=0.3), 16, CLASSES).margin == 0.3
    assert create_head(HeadConfig(name="cosface"), 16, CLASSES).margin == 0.35


def test_sphereface_knows_the_step_after_a_resume(backend):
    config = configured(head=HeadConfig(name="sphereface"))
    trainer = trained(backend, config, 2)
    resumed = backend.create_trainer(config, CLASSES)
    resumed.load_state(trainer.state(), 2)
    resumed.train_step(*batch(2), 0.01)
    assert resumed.head.step == 2


def test_the_declared_precisions_are_those_of_the_runtime(backend):
    assert CAPABILITIES[backend.name].precisions == tuple(backend.module("runtime").PRECISIONS)


@pytest.mark.parametrize(
    ("options", "offered", "message"),
    [
        ({"precision": "bf16"}, lambda offers: "bf16" in offers.precisions, "--precision: expected fp32 or fp64 with"),
        ({"precision": "fp16"}, lambda offers: "fp16" in offers.precisions, "--precision: expected fp32 or fp64 with"),
        ({"compile": True}, lambda offers: offers.compile, "--compile: expected false with"),
        (
            {"head": HeadConfig(name="cosface", sample_rate=0.5)},
            lambda offers: offers.class_sampling,
            "--head.sample-rate: expected 1 with",
        ),
    ],
)
def test_what_is_not_offered_makes_no_trainer(backend, options, offered, message):
    offers = CAPABILITIES[backend.name]
    if offered(offers):
        backend.check(configured(**options))
        return
    with pytest.raises(ValueError, match=f"{message} {offers.title}, got .*; PyTorch offers it"):
        backend.create_trainer(configured(**options), CLASSES)


def test_describe_counts_parameters(backend):
    facts = backend.create_trainer(configured(), CLASSES).describe()
    assert facts["name"] == backend.name
    assert facts["head_parameters"] == CLASSES * 16
    assert facts["backbone_parameters"] > 1_000_000
    assert {"version", "device", "threads", "cpus", "precision"} <= facts.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:x", "expected auto, cpu, cuda or cuda:N"),
        ("cuda:99", "cuda:99 asked for, but"),
        ("mps", "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(backend, name, message):
    with pytest.raises(ValueError, match=message):
        backend.module("runtime").resolve_device(name)


@pytest.mark.parametrize("head", HEADS)
def test_a_step_does_not_wait_for_the_device(backend, head, monkeypatch):
    """Between logged lines the host must run ahead."""
    seen: list[str] = []
    sface_loss = backend.module("losses").sface_loss

    def uncounted(*arguments, **options):
        count = len(seen)
        result = sface_loss(*arguments, **options)
        del seen[count:]
        return result

    # on the CPU the heads look at the labels, and the streamed form at what matters in a block; on a device they do not
    monkeypatch.setattr(backend.module("losses.sface"), "sface_loss", uncounted)
    monkeypatch.setattr(backend.module("losses.margin_heads"), "check_inputs", lambda *arguments: None)
    trainer = backend.create_trainer(configured(head=HeadConfig(name=head, form="plain")), CLASSES)
    trainer.train_step(*batch(), 0.01)
    with bare_loop(backend).waits(seen):
        for step in range(1, 4):
            trainer.train_step(*batch(step), 0.01)
        assert seen == []
        looked_at = trainer.metrics()
    assert len(seen) == len(looked_at), "a look at a value must count"


def test_the_bare_loop_trains(backend):
    """It is what the trainer is measured against: it must do the same work."""
    bare = bare_loop(backend).Bare(configured(model=WITHOUT_DROPOUT), CLASSES, *batch(), 0.01)
    bare.forward()
    before = bare.weights()
    bare.step()
    bare.wait()
    changed = [not np.array_equal(old, new) for old, new in zip(before, bare.weights(), strict=True)]
    trained_arrays = momentum(backend.create_trainer(configured(), CLASSES))
    assert len(changed) == len(trained_arrays)
    assert all(changed)
