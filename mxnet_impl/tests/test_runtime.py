"""Devices by name, and the repair that lets MXNet be imported beside a newer NumPy."""

import mxnet as mx
import numpy as np
import pytest

import mxnet_impl
from mxnet_impl import runtime


def test_numpy_is_repaired():
    assert np.bool is bool
    assert mxnet_impl.runtime is runtime


def test_devices():
    assert runtime.resolve_device("cpu") == mx.cpu()
    assert runtime.describe(mx.cpu())["version"] == mx.__version__
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        runtime.resolve_device("tpu")


@pytest.mark.skipif(mx.runtime.Features().is_enabled("CUDA"), reason="this MXNet has CUDA")
def test_a_device_that_is_not_there_says_how_to_get_it():
    assert runtime.resolve_device("auto") == mx.cpu()
    with pytest.raises(ValueError, match="pip install -r requirements/mxnet-cuda.txt"):
        runtime.resolve_device("cuda:0")
