"""What is measured in Jittor."""

from jittor_impl import runtime as runtime  # before anything here imports jittor
