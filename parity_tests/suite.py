"""The suite: it hands cases to the backends and compares their answers with the truth."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.cases.backbones import backbone_cases
from parity_tests.cases.data import data_cases
from parity_tests.cases.heads import head_cases
from parity_tests.cases.trajectories import QUICK_STEPS, STEPS, step_cases, trajectory_cases
from parity_tests.comparison import ERROR, Arrays, Case, Row, why_missing
from parity_tests.diagnosis import usual_causes
from parity_tests.processes import ROOT, ask
from parity_tests.relay import checkpoint_rows
from parity_tests.setting import DEFAULT, DTYPES, REDUCED, Setting
from parity_tests.tolerances import TOLERANCES

START = 0  # the level of a backend that cannot start
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)
NOT_REDUCED = {
    6: ("initial state, trajectory", "weights start in float32, and rounding this coarse may end anywhere in 50 steps"),
    7: ("checkpoint", "weights are kept in float32, so the rows of fp32 hold"),
    8: ("data, evaluation", "no backbone computes, so the rows of fp32 hold"),
}
BACKBONES = (
    "iresnet_small",
    *(f"iresnet{depth}" for depth in (18, 34, 50, 100, 152, 200)),
    *(f"{family}{depth}" for family in ("ir", "ir_se") for depth in (50, 101, 152)),
    "mobilefacenet",
    "mobilenet_v1",
)


def start(
    backends: Sequence[str], root: Path = ROOT, setting: Setting = DEFAULT
) -> tuple[dict[str, dict[str, Any]], list[Row]]:
    """What each backend says of itself, by name, and a row for each that cannot start, or not there."""
    described, rows = {}, []
    for backend in backends:
        case = {"kind": np.array("describe"), **setting.given("float32")}
        answer = ask(backend, {"describe": case}, root)["describe"]
        if "json" in answer:
            described[backend] = dict(json.loads(str(answer["json"])))
            continue
        what = "start of its process" if ERROR in answer else "every row"
        rows.append(Row(START, what, "", backend, np.inf, np.nan, "describe", **why_missing(answer, "")))
    return described, rows


def run(
    backends: Sequence[str],
    levels: Iterable[int] = LEVELS,
    backbones: Sequence[str] = BACKBONES,
    *,
    quick: bool = False,
    root: Path = ROOT,
    setting: Setting = DEFAULT,
) -> list[Row]:
    """All rows of the table.

    Args:
        backends: names, or names of modules, of those that `start` describes.
        levels: of `LEVELS`.
        backbones: those of level 4.
        quick: one case of each kind, and short runs; for the tests of the suite itself.
        root: folder of the backends' packages.
        setting: where the backends compute, and in which precision.
    """
    wanted = frozenset(levels)
    rows: list[Row] = []
    if not backends:
        return rows
    if setting.precision in REDUCED:
        rows += [
            Row(level, what, "float32", backend, np.inf, np.nan, "", f"in {setting.precision}: {why}", "not provided")
            for level, (what, why) in NOT_REDUCED.items()
            if level in wanted
            for backend in backends
        ]
        wanted -= NOT_REDUCED.keys()
    for group in _groups(wanted, backbones, quick, setting.precision):
        cases = [case.at(setting) for case in group if case.dtype in setting.dtypes]
        for backend in backends:
            answers = ask(backend, {case.name: case.inputs for case in cases}, root)
            rows += _compare(backend, cases, answers, wanted)
    if 7 in wanted:
        rows += _worst(checkpoint_rows(backends, root, DTYPES[:1] if quick else DTYPES, setting))
    return sorted(rows, key=lambda row: (row.level, row.quantity, row.dtype != "float64", backends.index(row.backend)))


def _compare(backend: str, cases: list[Case], answers: dict[str, Arrays], levels: frozenset[int]) -> list[Row]:
    rows = []
    for case in cases:
        answer = answers[case.name]
        for check in case.checks:
            tolerance = TOLERANCES[check.tolerance]
            if tolerance.level in levels:
                answered = check.output in answer and not check.impossible
                error = check.error(answer[check.output]) if answered else np.inf
                why = {} if answered else why_missing(answer, check.output)
                if check.impossible:
                    why = {"note": check.impossible, "verdict": "not provided"}
                place = tolerance.level, check.quantity, case.dtype, backend
                rows.append(Row(*place, error, case.tolerance(check), case.name, **why))
    return _explained(_worst(rows), cases, answers)


def _explained(rows: list[Row], cases: list[Case], answers: dict[str, Arrays]) -> list[Row]:
    """The rows, failed ones with what usually causes that."""
    notes: dict[tuple[str, str], str] = {}
    for case in cases:
        failed = [row.quantity for row in rows if row.case == case.name and row.status == "failed" and not row.note]
        if failed:
            causes = usual_causes(case, failed, answers[case.name])
            notes |= {(case.name, quantity): cause for quantity, cause in causes.items()}
    return [row._replace(note=notes.get((row.case, row.quantity), row.note)) for row in rows]


def _groups(levels: frozenset[int], backbones: Sequence[str], quick: bool, precision: str) -> Iterable[list[Case]]:
    """Cases by the process that answers them. Each backbone has its own process, as deep ones fill the memory."""
    if levels & {1, 2, 3}:
        cases = head_cases(quick)
        yield [case for case in cases if any(TOLERANCES[check.tolerance].level in levels for check in case.checks)]
    if 4 in levels:
        yield from (backbone_cases(backbone, precision=precision) for backbone in backbones)
    if 5 in levels:
        yield step_cases(precision)
    if 6 in levels:
        yield trajectory_cases(*(QUICK_STEPS if quick else STEPS))
    if 8 in levels:
        yield data_cases()


def _worst(rows: list[Row]) -> list[Row]:
    """Of the rows of one quantity, dtype and backend: the failed one with the largest error, which may be NaN.

    Where none failed, one that is not provided goes before those that passed: not all of the quantity was seen.
    """
    worst: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row.quantity, row.dtype, row.backend
        if key not in worst or _severity(row) > _severity(worst[key]):
            worst[key] = row
    return list(worst.values())


def _severity(row: Row) -> tuple[int, float]:
    order = ("passed", "not provided", "failed")
    return order.index(row.status), float("inf") if np.isnan(row.error) else row.error
