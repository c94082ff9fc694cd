"""What is measured in MXNet."""

from mxnet_impl import runtime as runtime  # before anything here imports mxnet
