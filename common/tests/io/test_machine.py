"""The machine and the checkout."""

from pathlib import Path

import pytest

from common.io.machine import git_revision, processor


def test_git_revision_names_this_checkout():
    if not (Path(__file__).parents[3] / ".git").exists():
        pytest.skip("not a git checkout")
    revision = git_revision()
    assert revision is not None
    assert len(revision.removesuffix("-dirty")) == 40


def test_outside_a_checkout_there_is_no_revision(tmp_path):
    assert git_revision(tmp_path) is None


def test_a_processor_has_a_name():
    assert processor().strip()
