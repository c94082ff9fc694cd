"""`info` reads the requirements files as pip does, and says what is missing."""

import json

import pytest

from common.backend import Backend
from common.commands import info


def test_missing_and_other_versions(tmp_path, monkeypatch):
    (tmp_path / "common.txt").write_text("numpy==0.0.1  # too old\n\n# comment\n")
    (tmp_path / "mine.txt").write_text("no-such-package==1.0\n-r common.txt\n")
    monkeypatch.setattr(info, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(info, "how_to_install", "pip install {}".format)
    facts = info.describe(Backend("mine"))
    assert "framework" not in facts
    page = info.page(facts)
    assert "no-such-package          missing" in page
    assert "expected 0.0.1" in page
    assert "Install what is missing: pip install mine" in page


def test_build_tags_are_the_same_version():
    assert info.Package("torch", "2.13.0", "2.13.0+cpu").fits
    assert not info.Package("torch", "2.13.0", "2.13.1").fits
    assert not info.Package("torch", "2.13.0", None).fits


def test_a_line_it_cannot_read_is_named(tmp_path):
    (tmp_path / "odd.txt").write_text("numpy==1.26.4\nnumpy>=1\n")
    with pytest.raises(ValueError, match=r"odd.txt line 2: expected NAME==VERSION"):
        info.packages(tmp_path / "odd.txt")


@pytest.mark.parametrize("path", sorted(info.REQUIREMENTS.glob("*.txt")), ids=lambda path: path.name)
def test_every_requirements_file_is_pinned(path):
    assert info.packages(path)


def test_json_is_what_the_page_says(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("no-such-package==1.0\n")
    monkeypatch.setattr(info, "REQUIREMENTS", tmp_path)
    assert info.run(Backend("mine"), ["--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"] == {"no-such-package": {"expected": "1.0", "found": None}}
    assert info.run(Backend("mine"), []) == 1
    assert capsys.readouterr().out == info.page(facts) + "\n"


@pytest.mark.parametrize(("minor", "expected"), [(12, "1.26.4"), (13, "2.4.6")])
def test_python_decides_on_the_version(monkeypatch, minor, expected):
    monkeypatch.setattr(info.sys, "version_info", (3, minor))
    needed = [package.needed for package in info.packages(info.REQUIREMENTS / "common.txt") if package.name == "numpy"]
    assert needed == [expected]
