"""python -m jittor_impl as a user types it."""

from common.tests.backend_checks.command_line import *  # noqa: F403
