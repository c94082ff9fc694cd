"""SFace in PyTorch: loss, baseline heads, backbones and trainer. `python -m pytorch_impl --help` lists the commands."""

from common.backend import check_framework

check_framework("pytorch")
