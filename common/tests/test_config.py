"""Bad values name their field; a saved configuration reads back unchanged; recipes hold the published numbers."""

import dataclasses
import json
from pathlib import Path

import pytest

from common import config as configuration
from common.config import RunConfig
from common.recipes import RECIPES


def changed(config: RunConfig, field: str, value) -> RunConfig:
    section, _, name = field.rpartition(".")
    if section:
        return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    return dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid(name):
    config = RECIPES[name]()
    configuration.check(config)
    assert config.name == name


# backbone, a, b, batch, milestones, unit, epochs: the rows as published
PUBLISHED = {
    "casia-r50": ("iresnet50", 0.87, 1.20, 256, (100_000, 140_000, 160_000), "steps", 100),
    "casia-ir50": ("ir50", 0.87, 1.20, 256, (50, 70, 80), "epochs", 125),
    "casia-mobilefacenet": ("mobilefacenet", 0.87, 1.20, 256, (50, 70, 80), "epochs", 125),
    "vggface2-r50": ("iresnet50", 0.88, 1.25, 512, (100_000, 160_000, 220_000), "steps", 30),
    "ms1mv2-r100": ("iresnet100", 0.90, 1.20, 512, (100_000, 160_000, 220_000), "steps", 30),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    config = RECIPES[name]()
    head, optimiser = config.head, config.optimiser
    assert PUBLISHED[name] == (
        config.model.backbone,
        head.intra_center,
        head.inter_center,
        optimiser.batch_size,
        optimiser.milestones,
        optimiser.milestone_unit,
        optimiser.epochs,
    )
    assert (head.name, head.scale, head.intra_slope, head.inter_slope) == ("sface", 64, 80, 80)
    assert (optimiser.learning_rate, optimiser.momentum, optimiser.weight_decay) == (0.1, 0.9, 5e-4)
    assert (config.model.embedding_size, config.data.image_size) == (512, 112)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.image_size", 15),
        ("data.workers", 0),
        ("data.prefetch_mib", 0),
        ("data.evaluate_on", ("../lfw",)),
        ("data.evaluate_on", ("",)),
        ("model.embedding_size", 0),
        ("model.dropout", 1.0),
        ("head.name", "triplet"),
        ("head.scale", 0.0),
        ("head.scale", float("nan")),
        ("head.intra_slope", -1.0),
        ("head.inter_slope", float("inf")),
        ("head.intra_center", 50.0),  # degrees
        ("head.inter_center", 0.0),
        ("head.epsilon", -1e-9),
        ("head.epsilon", 1.0),
        ("head.epsilon", float("nan")),
        ("head.margin", 0.5),  # sface has none
        ("head.sample_rate", 0.0),
        ("head.sample_rate", 0.5),  # sface does not sample
        ("optimiser.batch_size", 0),
        ("optimiser.epochs", 0),
        ("optimiser.max_steps", 0),
        ("optimiser.learning_rate", float("nan")),
        ("optimiser.milestones", (5, 5)),
        ("optimiser.milestones", (-1,)),
        ("optimiser.warmup_steps", -1),
        ("optimiser.momentum", 1.0),
        ("optimiser.weight_decay", -1e-4),
        ("optimiser.accumulate", 3),
        ("optimiser.clip_norm", 0.0),
        ("optimiser.accumulate", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("devices", 0),
        ("devices", 3),
        ("angle_images", -1),
        ("log_every", 0),
        ("evaluate_every", 0),
        ("save_every", 0),
        ("keep", 0),
    ],
)
def test_a_bad_value_names_its_field(field, value):
    config = changed(RECIPES["casia-r50"](), field, value)
    with pytest.raises(ValueError, match=rf"^{field}: expected .*, got "):
        configuration.check(config)


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    config = RECIPES[name]()
    assert configuration.from_json(json.loads(json.dumps(configuration.to_json(config)))) == config


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["data"].pop("root"), "data.root: missing"),
        (lambda c: c["head"].update(temperature=1), "head.temperature: unknown field$"),
        (lambda c: c.update(optimizer=c["optimiser"]), "optimizer: unknown field; did you mean optimiser?"),
        (lambda c: c["optimiser"].update(batch_size="256"), "optimiser.batch_size: expected int, got '256'"),
        (lambda c: c["optimiser"].update(batch_size=True), "optimiser.batch_size: expected int, got True"),
        (lambda c: c.update(precision="fp8"), "precision: expected"),
        (lambda c: c.update(data=None), "data: expected an object"),
        (lambda c: c["data"].update(workers=-1), "data.workers: expected at least 1"),
    ],
)
def test_a_damaged_file_names_its_field(damage, message):
    value = configuration.to_json(RECIPES["casia-r50"]())
    damage(value)
    with pytest.raises(ValueError, match=message):
        configuration.from_json(value)


def test_differences_name_what_changes_the_trajectory():
    old = RECIPES["lfw-small"]()
    new = changed(changed(changed(old, "head.scale", 32.0), "data.workers", 7), "out", Path("elsewhere"))
    assert configuration.differences(configuration.to_json(old), configuration.to_json(new)) == [
        "head.scale: 64.0 -> 32.0"
    ]


def test_free_fields_exist():
    fields = dict(configuration.flat(configuration.to_json(RECIPES["orl-demo"]())))
    assert fields.keys() >= configuration.FREE_ON_RESUME
    assert not fields.keys() & configuration.REMOVED_FIELDS


@pytest.mark.parametrize("value", [False, True])
def test_a_run_with_a_field_that_was_removed_reads_and_resumes(value):
    recipe = RECIPES["lfw-small"]()
    saved = configuration.to_json(recipe)
    saved["optimiser"]["row_sparse"] = value
    assert configuration.from_json(saved) == recipe
    assert configuration.differences(saved, configuration.to_json(recipe)) == []


def test_a_run_saved_before_a_field_existed_gets_its_default():
    recipe = RECIPES["lfw-small"]()
    saved = configuration.to_json(recipe)
    del saved["head"]["form"], saved["angle_images"]
    assert configuration.from_json(saved) == dataclasses.replace(recipe, angle_images=0)
