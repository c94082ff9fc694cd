"""All benchmarks on one page: what ran, what failed and why, bars with their targets. And the list of commands."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import all as everything
from benchmarks import results
from benchmarks.commands import COMMANDS, main
from benchmarks.results import Bar, Chart, Figure, Report

CHART = Chart(
    "A <title>", "ratio", [Bar("reached", Figure(1, 0.9, 1.1), 0.95), Bar("missed", Figure(0.5, 0.4, 2), 0.95)]
)


def write(out, name):
    report = Report("a table", [CHART], [], {f"{name}.svg": b"<svg/>"})
    results.write(out, name, report, "by measuring", {"cpus": 2})


def test_charts_come_back_as_they_were(tmp_path):
    write(tmp_path, "step")
    assert (tmp_path / "step.md").read_text() == "a table\n"
    assert (tmp_path / "step.svg").read_bytes() == b"<svg/>"
    assert results.read_charts(json.loads((tmp_path / "step.json").read_text())["charts"]) == [CHART]


@pytest.mark.parametrize("value", [{}, [{}], [{"title": "a", "unit": "b", "bars": [{}], "more_is_better": 1}], [1]])
def test_what_are_no_charts(value):
    if value == {}:
        assert results.read_charts(value) == []
    else:
        with pytest.raises(ValueError, match="charts: expected those of a benchmark"):
            results.read_charts(value)


def test_a_missed_target_stands_out():
    reached, missed = (everything.draw(Chart("t", "u", [bar])).decode() for bar in CHART.bars)
    assert "#d55e00" in missed.lower()
    assert "#d55e00" not in reached.lower()
    less = everything.draw(Chart("t", "u", CHART.bars[:1], more_is_better=False)).decode()
    assert "#d55e00" in less.lower()
    assert [row[-1] for row in everything.table(CHART).rows] == ["≥ 0.950", "≥ 0.950"]


def test_one_that_fails_keeps_no_other_from_running(monkeypatch, tmp_path, capsys):
    (tmp_path / "loader.json").write_text("{}")  # of an earlier run

    def run(arguments, check):
        name = arguments[3]
        assert arguments[1:3] == ["-m", "benchmarks"]
        assert arguments[4:6] == ["--out", str(tmp_path)]
        assert ("--turns" in arguments) == quick
        if name == "step":
            write(tmp_path, name)
        return SimpleNamespace(returncode=0 if name == "step" else 2)

    monkeypatch.setattr(everything.results, "git_revision", lambda: "abc")
    monkeypatch.setattr(everything, "subprocess", SimpleNamespace(run=run))  # platform.platform() runs programs too
    for quick in (True, False):
        options = ["--out", str(tmp_path), *(["--quick"] if quick else [])]
        assert main(["all", *options, "--only", "step", "loader"]) == 1
        said = capsys.readouterr()
        assert "loader: ended with status 2" in said.err
        assert "step:" not in said.err
        page = (tmp_path / "all.html").read_text()
        assert "A &lt;title&gt;" in page
        assert "by measuring" in page
        assert "ended with status 2" in page
        assert ("quick run" in page) == quick
        assert page.count("data:image/svg+xml") == 1
        found = json.loads((tmp_path / "all.json").read_text())
        assert found["benchmarks"]["step"]["method"] == "by measuring"
        assert "error" in found["benchmarks"]["loader"]
        assert {"processor", "cpus"} <= found["machine"].keys()


def test_the_page_has_every_benchmark_but_the_study():
    assert set(everything.TITLES) == set(COMMANDS) - {"noise", "all"}
    assert everything.chosen([]) == list(everything.TITLES)
    assert everything.chosen(["verify", "step"]) == ["step", "verify"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_one_line_in_the_list(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {name}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [name]]
    assert COMMANDS[name].help in line


@pytest.mark.parametrize("arguments", [["sped"], []])
def test_an_unknown_command_lists_the_commands(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err
