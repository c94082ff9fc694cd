"""What Jittor's networks compute, as ONNX."""

from common.tests.backend_checks.export import *  # noqa: F403
