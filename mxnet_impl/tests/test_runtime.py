"""Devices by name, and the repair that lets MXNet be imported beside a newer NumPy."""

import os
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest

import mxnet_impl
from mxnet_impl import runtime


def test_numpy_is_repaired():
    assert np.bool is bool
    assert mxnet_impl.runtime is runtime


@pytest.mark.parametrize("chosen", [None, "3"])
def test_all_processors_are_used_unless_the_user_says_otherwise(chosen):
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {} if chosen is None else {"OMP_NUM_THREADS": chosen}
    code = "from mxnet_impl import runtime; print(runtime.describe(runtime.mx.cpu())['threads'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(chosen or len(os.sched_getaffinity(0)))


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
