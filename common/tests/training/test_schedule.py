"""The learning rate as a table, and the steps of the published schedules."""

import pytest

from common.config import OptimiserConfig
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


def test_total_steps():
    assert total_steps(OptimiserConfig(epochs=3), 10) == 30
    assert total_steps(OptimiserConfig(epochs=3, max_steps=2), 10) == 2
    assert total_steps(OptimiserConfig(epochs=3, max_steps=99), 10) == 30
