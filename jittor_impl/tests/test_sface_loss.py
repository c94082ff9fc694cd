"""SFace in Jittor against what every backend's must compute, its head, and its results on a CUDA device."""

import jittor as jt
import numpy as np
import pytest

from common.tests.backend_checks.sface_loss import *  # noqa: F403
from common.tests.backend_checks.sface_loss import FORMS, TOLERANCE, assert_gradients
from jittor_impl.losses import streamed
from jittor_impl.losses.sface import Rescaling, SFaceHead, sface_loss  # noqa: F401
from parity_tests.cases.inputs import planted
from parity_tests.truth import sface as oracle


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w = jt.array(embeddings, dtype), jt.array(class_weight, dtype)
    options = {name: jt.array(v, str(v.dtype)) if isinstance(v, np.ndarray) else v for name, v in parameters.items()}
    result = sface_loss(x, w, jt.array(np.asarray(labels)), form=form, block_size=block_size, **options)
    upstream = jt.array(factor, result.loss.dtype)  # 4 * loss would round in float32
    gradients = [gradient.numpy().copy() for gradient in jt.grad((upstream * result.loss).sum(), [x, w])]
    return result._make(None if v is None else v.numpy().squeeze()[()] for v in result), *gradients


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


def test_labels_of_numpy_are_refused():
    with pytest.raises(ValueError, match="labels: expected a Var, got ndarray; jt.array makes one"):
        sface_loss(jt.ones((2, 3)), jt.ones((4, 3)), np.zeros(2, np.int64))


@pytest.mark.parametrize("form", FORMS)
def test_numbers_may_change_and_nothing_is_compiled_anew(form):
    """Jittor takes 0, 1 and 2 for constants of an operator; so a schedule of a center might stop there to compile."""
    head = SFaceHead(4, 6, form=form)
    x, labels = jt.randn(5, 4), jt.arange(5)

    def operators(**numbers):
        head.rescale(**numbers)
        jt.sync_all()
        with jt.profile_scope() as report:
            jt.grad(head(x, labels).loss, head.class_weight).sync()
        return {row[1] for row in report[1:]}

    expected = operators()
    assert len(expected) > 3
    for value in (0.7, 0, 0.8 + 10 * 0.02, 2.0, 1 - 2.0**-26):
        found = operators(intra_center=value, inter_center=value, scale=value + 1, inter_slope=value + 1)
        assert found <= expected, value


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative(form):
    """That of the plain form is right; the streamed form refuses instead of giving zeros."""
    case = planted(4, 6, 5)
    x, w = (jt.array(array, "float64") for array in case[:2])
    loss = sface_loss(x, w, jt.array(case.labels), form=form).loss
    gradient = jt.grad(loss, x)
    penalised = loss + (gradient * gradient).sum()
    if form == "streamed":
        with pytest.raises(RuntimeError, match='differentiated once; form="plain" twice'):
            jt.grad(penalised, x)
        return
    found = jt.grad((gradient * gradient).sum(), x).numpy()
    unit = case.class_weight / np.linalg.norm(case.class_weight, axis=1, keepdims=True)
    weights = oracle.sface(*case)
    g = weights.inter_weight.copy()
    g[np.arange(4), case.labels] = -weights.intra_weight

    def penalty(x):  # its weights are constants
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        u = g / 4 @ unit
        return (((u - (u * x).sum(1, keepdims=True) * x / norms**2) / norms) ** 2).sum()

    for index in np.ndindex(*case.embeddings.shape):
        step = np.zeros(case.embeddings.shape)
        step[index] = 1e-6
        expected = (penalty(case.embeddings + step) - penalty(case.embeddings - step)) / 2e-6
        assert found[index] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_products_of_the_streamed_form_are_full_whatever_is_set_elsewhere(monkeypatch):
    """On a CUDA device TF32 products are 1e-3 off. Execution is lazy, so they must run before the setting is back."""
    seen = []
    run_now = jt.sync
    monkeypatch.setattr(streamed, "_on_gpu", lambda: True)
    monkeypatch.setattr(jt, "sync", lambda *args: (seen.append(jt.flags.use_tensorcore), run_now(*args)))
    with jt.flag_scope(use_tensorcore=1):
        run(*planted(), "float32", "streamed")
        assert jt.flags.use_tensorcore == 1
    assert seen == [0] * 5, "30 classes in blocks of 7"


@pytest.mark.parametrize("form", FORMS)
def test_mixed_precision_stays_out(form):
    """Jittor itself adds up the gradients of the plain form in float16 then."""
    x, w, labels = jt.array(planted().embeddings, "float32"), jt.array(planted().class_weight, "float32"), planted()[2]
    with jt.flag_scope(auto_mixed_precision_level=6):
        loss = sface_loss(x, w, jt.array(labels), form=form).loss
        gradients = [gradient.numpy() for gradient in jt.grad(loss, [x, w])]
    truth = oracle.sface(*planted())
    assert loss.item() == pytest.approx(truth.loss, rel=TOLERANCE["float32"])
    assert_gradients(gradients, truth, 2**-10 if form == "plain" else TOLERANCE["float32"])


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
