"""SFace in MXNet: loss, baseline heads, backbones and trainer. `python -m mxnet_impl --help` lists the commands."""

from mxnet_impl import runtime as runtime  # before anything here imports mxnet
