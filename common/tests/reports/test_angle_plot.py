"""The angles in a report: drawn for SFace and for what was logged, and nothing of a damaged line."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest

from common import config as configuration
from common.config import HeadConfig
from common.recipes import RECIPES
from common.reports.angle_plot import angle_figures
from common.reports.run_report import write_report
from common.training.angles import BINS


def record(step: int, place: int = 30) -> dict:
    counts = [10 if i == place else 0 for i in range(BINS)]
    empty = [0] * BINS
    return {
        "kind": "angles",
        "step": step,
        "correct": {"own": counts, "others": counts},
        "wrong": {"own": counts, "others": counts, "true": empty},
    }


@pytest.mark.parametrize(("steps", "expected"), [([], 2), ([5], 4), ([5, 10], 6), ([5, 7, 10], 6)])
def test_the_sigmoids_and_the_first_and_last_angles(steps, expected):
    figures = angle_figures(HeadConfig(), [record(step) for step in steps])
    assert len(figures) == expected
    assert [ElementTree.fromstring(one.svg).tag.rpartition("}")[2] for one in figures] == ["svg"] * expected


def test_another_head_has_angles_only():
    assert angle_figures(HeadConfig(name="arcface"), []) == []
    titles = [one.description for one in angle_figures(HeadConfig(name="arcface"), [record(5)])]
    assert titles == [
        "Angle to the own prototype, step 5, of training samples",
        "Angles to the others, step 5, of training samples",
    ]


def test_the_figure_is_of_the_angles_and_of_a_and_b():
    drawn = angle_figures(HeadConfig(), [record(5)])
    assert drawn == angle_figures(HeadConfig(), [record(5)])
    assert drawn != angle_figures(HeadConfig(), [record(5, place=31)])
    assert drawn != angle_figures(HeadConfig(intra_center=0.8), [record(5)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("wrong"),
        lambda r: r["correct"].pop("own"),
        lambda r: r["correct"].update(own=[0] * 7),
        lambda r: r["correct"].update(own=["x"] * BINS),
        lambda r: r["correct"].update(own=[1e999] * BINS),
        lambda r: r.update(wrong=3),
    ],
)
def test_a_damaged_line_is_passed_over(damage):
    broken = record(7)
    damage(broken)
    (own, others) = angle_figures(HeadConfig(name="arcface"), [record(5), broken])
    assert "step 5," in own.description
    assert "step 5," in others.description


def test_the_report_shows_them(tmp_path):
    config = dataclasses.replace(RECIPES["lfw-small"](), name="angles")
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_json(config)))
    (tmp_path / "log.jsonl").write_text(json.dumps(record(5)) + "\n")
    page = write_report(tmp_path).read_text()
    assert "Angle to the own prototype, step 5, of SFace" in page
    (tmp_path / "config.json").write_text(json.dumps({"name": "of another version"}))
    assert "Angle to the own prototype" not in write_report(tmp_path).read_text()
