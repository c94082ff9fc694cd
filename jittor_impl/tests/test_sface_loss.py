"""SFace in Jittor against what every backend's must compute, its head, and its results on a CUDA device."""

import jittor as jt
import numpy as np
import pytest

from common.tests.backend_checks.sface_loss import *  # noqa: F403
from common.tests.backend_checks.sface_loss import FORMS, TOLERANCE, assert_gradients
from jittor_impl.losses.sface import SFaceHead, sface_loss
from parity_tests.cases.inputs import planted
from parity_tests.truth import sface as oracle


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w = jt.array(embeddings, dtype), jt.array(class_weight, dtype)
    result = sface_loss(x, w, jt.array(np.asarray(labels)), form=form, block_size=block_size, **parameters)
    gradients = jt.grad(jt.array(factor, dtype) * result.loss, [x, w])  # 4 * loss would round in float32
    return result._make(value.numpy().ravel()[0] for value in result), *[
        gradient.numpy().copy() for gradient in gradients
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_head_learns(form):
    """Prototypes move to fixed embeddings until the angles are below the center of the pull."""
    head = SFaceHead(64, 30, form=form)
    optimizer = jt.optim.SGD(head.parameters(), 0.05)
    x, labels = jt.array(np.random.default_rng(0).standard_normal((16, 64)), "float32"), jt.array(np.arange(16))
    for _ in range(100):
        result = head(x, labels)
        optimizer.step(result.loss)
    assert tuple(head.class_weight.shape) == (30, 64)
    assert result.accuracy.item() == 1
    assert result.target_cosine.item() > np.cos(0.87)


@pytest.mark.cuda
@pytest.mark.skipif(not jt.has_cuda, reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_cuda_matches_the_oracle(form):
    """In float32: products of float64 matrices fail on a CUDA device (Jittor asks cuBLAS for sums in float32)."""
    case = planted()
    truth = oracle.sface(*case)
    with jt.flag_scope(use_cuda=1):
        _, *gradients = run(*case, "float32", form)
    assert_gradients(gradients, truth, TOLERANCE["float32"])
