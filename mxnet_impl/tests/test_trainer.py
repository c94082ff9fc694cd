"""The trainer against its contract."""

from common.tests.backend_checks.trainer import *  # noqa: F403
