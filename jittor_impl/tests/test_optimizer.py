"""The one SGD rule against its definition in NumPy, and what weight decay applies to."""

import jittor as jt
import numpy as np
import pytest

from jittor_impl.backbones import create_backbone
from jittor_impl.checkpoint import named_tensors
from jittor_impl.losses.margin_heads import SoftmaxHead
from jittor_impl.losses.sface import SFaceHead
from jittor_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate


def test_the_rule_across_a_drop_of_the_rate():
    """v = m v + (g + wd w), w = w - lr v; with the rate inside v, the steps after the drop would differ by a tenth."""
    random = np.random.default_rng(0)
    w = random.standard_normal((3, 4))
    head = SFaceHead(4, 3)
    head.class_weight = jt.array(w, "float64")
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
    v = np.zeros_like(w)
    for rate in (0.1, 0.1, 0.01, 0.01):
        g = random.standard_normal(w.shape)
        v = 0.9 * v + (g + 5e-4 * w)
        w = w - rate * v
        set_learning_rate(optimizer, rate)
        optimizer.backward((head.class_weight * jt.array(g, "float64")).sum())
        optimizer.step()
        assert head.class_weight.numpy() == pytest.approx(w, rel=1e-14)
        assert momentum_buffer(optimizer, head.class_weight).numpy() == pytest.approx(v, rel=1e-14)


def test_weight_decay_spares_batch_norm_and_biases():
    backbone, head = create_backbone("iresnet_small", 16, 32), SoftmaxHead(16, 5)
    optimizer = create_optimizer([backbone, head], momentum=0.9, weight_decay=5e-4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = named_tensors(backbone) | named_tensors(head)
    expected = {id(p) for name, p in named.items() if ".running_" not in name and name != "features.weight"}
    assert decay.keys() == expected
    for name in ("conv1.weight", "prelu.weight", "layer1.0.downsample.0.weight", "fc.weight", "class_weight"):
        assert decay[id(named[name])] == 5e-4, name
    for name in ("bn1.weight", "bn1.bias", "layer1.0.downsample.1.weight", "fc.bias", "features.bias", "bias"):
        assert decay[id(named[name])] == 0, name


def test_a_buffer_starts_at_zero_and_can_be_written():
    head = SFaceHead(4, 3)
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=0.0)
    buffer = momentum_buffer(optimizer, head.class_weight)
    assert (buffer.numpy() == 0).all()
    buffer.update(buffer + 1)
    set_learning_rate(optimizer, 1.0)
    before = head.class_weight.numpy().copy()
    optimizer.backward((head.class_weight * 0).sum())
    optimizer.step()
    assert before - head.class_weight.numpy() == pytest.approx(np.full_like(before, 0.9), abs=1e-6)
    with pytest.raises(ValueError, match="not a parameter of this optimizer"):
        momentum_buffer(optimizer, jt.zeros(3))
