"""SFace in MXNet: loss, baseline heads, backbones and trainer. `python -m mxnet_impl --help` lists the commands."""

from common.backend import check_framework

if check_framework("mxnet"):
    from mxnet_impl import runtime as runtime  # before anything here imports mxnet
