"""`python -m common`: its commands, its usage, and how it ends."""

import pytest

from common.__main__ import COMMANDS, main


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["nonsense"], 2), (["--help"], 0), (["-h"], 0)])
def test_usage(arguments, status, capsys):
    assert main(arguments) == status
    printed = capsys.readouterr()
    text, other = (printed.err, printed.out) if status else (printed.out, printed.err)
    assert other == ""
    assert ("error: expected a command, got" in text) == bool(status)
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_one_line_and_status_2(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "absent")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {tmp_path / 'absent'}: expected a run folder, found none\n"
