"""The learning rate as a table, and the steps of the published schedules."""

import pytest

from common.config import OptimiserConfig
from common.recipes import RECIPES
from common.training.schedule import learning_rate, milestone_steps, total_steps


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.025), (1, 0.05), (3, 0.1), (4, 0.1), (9, 0.1), (10, 0.01), (19, 0.01), (20, 0.001), (10**9, 0.001)],
)
def test_learning_rate(step, expected):
    assert learning_rate(step, 0.1, [10, 20], warmup=4) == pytest.approx(expected, rel=1e-15)


def test_no_milestones_no_warmup():
    assert learning_rate(12345, 0.1, []) == 0.1


def test_bad_milestones():
    with pytest.raises(ValueError, match=r"increase, got \[20, 20\]"):
        learning_rate(0, 0.1, [20, 20])
    with pytest.raises(ValueError, match=r"optimiser.milestones: .* \(optimiser.warmup_steps 50\), got step 20"):
        learning_rate(0, 0.1, [20, 60], warmup=50)


def test_milestones_in_epochs_and_in_steps():
    assert milestone_steps(OptimiserConfig(milestones=(1.5, 4)), 10) == [15, 40]
    assert milestone_steps(OptimiserConfig(milestones=(100, 200), milestone_unit="steps"), 10) == [100, 200]


@pytest.mark.parametrize(("recipe", "images"), [("orl-finetune", 300), ("lfw-finetune", 3758)])
def test_a_recipe_that_starts_with_the_head_alone_then_trains_the_backbone(recipe, images):
    """At a thousandth of the first rate; the head alone learns for four epochs."""
    config = RECIPES[recipe]()
    steps = images // config.optimiser.batch_size
    frozen = config.model.freeze_backbone_steps
    assert (frozen, total_steps(config.optimiser, steps)) == (4 * steps, 7 * steps)
    milestones = milestone_steps(config.optimiser, steps)
    rates = [learning_rate(step, config.optimiser.learning_rate, milestones) for step in (0, frozen)]
    assert rates == pytest.approx([0.1, 0.0001])


def test_total_steps():
    assert total_steps(OptimiserConfig(epochs=3), 10) == 30
    assert total_steps(OptimiserConfig(epochs=3, max_steps=2), 10) == 2
    assert total_steps(OptimiserConfig(epochs=3, max_steps=99), 10) == 30
