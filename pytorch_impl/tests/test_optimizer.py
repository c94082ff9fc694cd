"""The one SGD rule against its definition in NumPy, and what weight decay applies to."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pytorch_impl.backbones import create_backbone
from pytorch_impl.losses.margin_heads import SoftmaxHead
from pytorch_impl.losses.sface import SFaceHead
from pytorch_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate


def test_the_rule_across_a_drop_of_the_rate():
    """v = m v + (g + wd w), w = w - lr v; with the rate inside v, the steps after the drop would differ by a tenth."""
    random = np.random.default_rng(0)
    w = random.standard_normal((3, 4))
    head = SFaceHead(4, 3).double()
    head.class_weight.data = torch.tensor(w)
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
    v = np.zeros_like(w)
    for rate in (0.1, 0.1, 0.01, 0.01):
        g = random.standard_normal(w.shape)
        v = 0.9 * v + (g + 5e-4 * w)
        w = w - rate * v
        set_learning_rate(optimizer, rate)
        head.class_weight.grad = torch.tensor(g)
        optimizer.step()
        assert head.class_weight.detach().numpy() == pytest.approx(w, rel=1e-14)
        assert momentum_buffer(optimizer, head.class_weight).numpy() == pytest.approx(v, rel=1e-14)


def test_a_step_does_not_load_the_compiler():
    program = """if True:
        import sys, torch
        from pytorch_impl.optimizer import create_optimizer
        layer = torch.nn.Linear(2, 1)
        optimizer = create_optimizer([layer], momentum=0.9, weight_decay=0.1)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        sys.exit("torch._dynamo" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_weight_decay_spares_batch_norm_and_biases():
    backbone, head = create_backbone("iresnet_small", 16, 32), SoftmaxHead(16, 5)
    optimizer = create_optimizer([backbone, head], momentum=0.9, weight_decay=5e-4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(backbone.named_parameters()) | dict(head.named_parameters())
    assert decay.keys() == {id(p) for name, p in named.items() if name != "features.weight"}
    for name in ("conv1.weight", "prelu.weight", "layer1.0.downsample.0.weight", "fc.weight", "class_weight"):
        assert decay[id(named[name])] == 5e-4, name
    for name in ("bn1.weight", "bn1.bias", "layer1.0.downsample.1.weight", "fc.bias", "features.bias", "bias"):
        assert decay[id(named[name])] == 0, name


def test_a_buffer_starts_at_zero_and_can_be_written():
    head = SFaceHead(4, 3)
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=0.0)
    buffer = momentum_buffer(optimizer, head.class_weight)
    assert (buffer == 0).all()
    buffer += 1
    set_learning_rate(optimizer, 1.0)
    before = head.class_weight.detach().clone()
    head.class_weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(before - head.class_weight, torch.full_like(before, 0.9))
