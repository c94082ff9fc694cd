"""SFace in MXNet: loss and baseline heads."""

from mxnet_impl import runtime as runtime  # before anything here imports mxnet
