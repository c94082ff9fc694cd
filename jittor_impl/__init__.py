"""SFace in Jittor: loss, baseline heads, backbones and trainer. `python -m jittor_impl --help` lists the commands."""

from common.backend import check_framework

if check_framework("jittor"):
    from jittor_impl import cache

    with cache.in_one_line():
        from jittor_impl import runtime as runtime  # before anything here imports jittor
