"""What every backend's package must do, tested through the contracts of `common`, without its framework.

A package's tests take one of these modules whole (`from common.tests.backend_checks.trainer import *`) and provide the
fixture `backend`, a `common.commands.main.Backend`.
"""

import pytest

NAMES = ("backbones", "checkpoint", "command_line", "export", "imports", "lost_ranks", "sface_loss", "trainer")
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in NAMES))
