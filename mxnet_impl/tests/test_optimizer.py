"""The one SGD rule against its definition in NumPy, what weight decay applies to, and the running statistics."""

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from mxnet_impl.backbones import create_backbone
from mxnet_impl.checkpoint import named_parameters
from mxnet_impl.losses.margin_heads import SoftmaxHead
from mxnet_impl.losses.sface import SFaceHead
from mxnet_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate
from mxnet_impl.running_statistics import RunningStatistics


def step(w: np.ndarray, v: np.ndarray, g: np.ndarray, rate: float, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """v = m v + (g + wd w), w = w - lr v."""
    v = 0.9 * v + (g + decay * w)
    return w - rate * v, v


def test_the_rule_across_a_drop_of_the_rate():
    """With the rate inside v, the steps after the drop would differ by a tenth."""
    random = np.random.default_rng(0)
    w = random.standard_normal((3, 4))
    head = SFaceHead(4, 3)
    head.initialize()
    head.cast("float64")
    head.class_weight.set_data(nd.array(w, dtype="float64"))
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
    v = np.zeros_like(w)
    for rate in (0.1, 0.1, 0.01, 0.01):
        g = random.standard_normal(w.shape)
        w, v = step(w, v, g, rate, 5e-4)
        set_learning_rate(optimizer, rate)
        head.class_weight.grad()[:] = nd.array(g, dtype="float64")
        optimizer.step()
        assert head.class_weight.data().asnumpy() == pytest.approx(w, rel=1e-14)
        assert momentum_buffer(optimizer, head.class_weight).asnumpy() == pytest.approx(v, rel=1e-14)


def test_the_rule_in_float32_of_many_parameters():
    """More than one call takes, of all sizes; some without decay."""
    random = np.random.default_rng(1)
    network = nn.HybridSequential()
    for units in [1, 2, 3, 5, 9, 400, *[7] * 70]:
        network.add(nn.Dense(units, in_units=3))
    network.initialize()
    optimizer = create_optimizer([network], momentum=0.9, weight_decay=5e-4)
    parameters = list(network.collect_params().values())
    assert {id(p) for p in optimizer.weight_decay} == {id(p) for p in parameters}
    w = {p.name: random.standard_normal(p.shape) for p in parameters}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for parameter in parameters:
        parameter.set_data(nd.array(w[parameter.name]))
    for rate in (0.1, 0.01):
        set_learning_rate(optimizer, rate)
        for parameter in parameters:
            name, g, decay = parameter.name, random.standard_normal(parameter.shape), optimizer.weight_decay[parameter]
            parameter.grad()[:] = nd.array(g)
            w[name], v[name] = step(w[name], v[name], g, rate, decay)
        optimizer.step()
        for parameter in parameters:
            # measured: 4.1e-7, the rounding of sums of float32 numbers of up to 4.5
            assert parameter.data().asnumpy() == pytest.approx(w[parameter.name], abs=1e-6)
            assert momentum_buffer(optimizer, parameter).asnumpy() == pytest.approx(v[parameter.name], abs=1e-6)


def test_weight_decay_spares_batch_norm_and_biases():
    backbone, head = create_backbone("iresnet_small", 16, 32), SoftmaxHead(16, 5)
    backbone.initialize()
    head.initialize()
    optimizer = create_optimizer([backbone, head], momentum=0.9, weight_decay=5e-4)
    named = named_parameters(backbone) | named_parameters(head)
    decay = {name: optimizer.weight_decay[p] for name, p in named.items() if p in optimizer.weight_decay}
    assert decay.keys() == {name for name in named if ".running_" not in name and name != "features.weight"}
    for name in ("conv1.weight", "prelu.weight", "layer1.0.downsample.0.weight", "fc.weight", "class_weight"):
        assert decay[name] == 5e-4, name
    for name in ("bn1.weight", "bn1.bias", "layer1.0.downsample.1.weight", "fc.bias", "features.bias", "bias"):
        assert decay[name] == 0, name


def test_running_statistics_take_the_unbiased_variance():
    network = nn.HybridSequential()
    network.add(nn.BatchNorm(in_channels=2), nn.Conv2D(3, 1, in_channels=2), nn.BatchNorm(in_channels=3))
    network.initialize()
    network.cast("float64")
    x = nd.array(np.random.default_rng(0).standard_normal((3, 2, 4, 4)) * 3 + 1, dtype="float64")
    statistics = RunningStatistics(network, x)
    with statistics.follow(3):
        with autograd.record():
            between = network[1](network[0](x))
            y = network[2](between)
        y.backward()
    for layer, inputs in ((network[0], x), (network[2], between)):
        values = inputs.asnumpy()
        mean, variance = layer.running_mean.data().asnumpy(), layer.running_var.data().asnumpy()
        assert mean == pytest.approx(0.1 * values.mean((0, 2, 3)), rel=1e-12)
        assert variance == pytest.approx(0.9 + 0.1 * values.var((0, 2, 3), ddof=1), rel=1e-12)
