"""The angles in a report: drawn for SFace and for what was logged, and nothing of a damaged line."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest

from common import config as configuration
from common.config import HeadConfig
from common.recipes import RECIPES
from common.reports.angle_plot import angle_figure
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


def panels(svg: bytes | None) -> int:
    assert svg is not None
    root = ElementTree.fromstring(svg)
    return sum((element.get("id") or "").startswith("axes_") for element in root.iter())


@pytest.mark.parametrize(("steps", "expected"), [([], 2), ([5], 4), ([5, 10], 6), ([5, 7, 10], 6)])
def test_the_sigmoids_and_the_first_and_last_angles(steps, expected):
    assert panels(angle_figure(HeadConfig(), [record(step) for step in steps])) == expected


def test_another_head_has_angles_only():
    assert angle_figure(HeadConfig(name="arcface"), []) is None
    assert panels(angle_figure(HeadConfig(name="arcface"), [record(5)])) == 2


def test_the_figure_is_of_the_angles_and_of_a_and_b():
    drawn = angle_figure(HeadConfig(), [record(5)])
    assert drawn == angle_figure(HeadConfig(), [record(5)])
    assert drawn != angle_figure(HeadConfig(), [record(5, place=31)])
    assert drawn != angle_figure(HeadConfig(intra_center=0.8), [record(5)])


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
    assert angle_figure(HeadConfig(), [record(5), broken]) == angle_figure(HeadConfig(), [record(5)])


def test_the_report_shows_them(tmp_path):
    config = dataclasses.replace(RECIPES["lfw-small"](), name="angles")
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_json(config)))
    (tmp_path / "log.jsonl").write_text(json.dumps(record(5)) + "\n")
    page = write_report(tmp_path).read_text()
    assert "angles of training samples" in page
    (tmp_path / "config.json").write_text(json.dumps({"name": "of another version"}))
    assert "angles of training samples" not in write_report(tmp_path).read_text()
