"""The baseline heads against their formulas, central differences, and what each paper promises."""

import math

import numpy as np
import pytest
import torch

from parity_tests.cases.inputs import planted
from pytorch_impl.losses import ArcFaceHead, CosFaceHead, MarginHead, NormalisedSoftmaxHead, SoftmaxHead, SphereFaceHead

HEADS = (SoftmaxHead, NormalisedSoftmaxHead, CosFaceHead, ArcFaceHead, SphereFaceHead)


def head_with(kind, case, **options) -> MarginHead:
    head = kind(case.class_weight.shape[1], len(case.class_weight), **options).double()
    head.class_weight.data = torch.tensor(case.class_weight)
    return head


def expected_loss(kind, case, step=0):
    """The definition, sample by sample, in NumPy; angles by arccos."""
    losses = []
    for x, label in zip(case.embeddings, case.labels, strict=True):
        norm = np.linalg.norm(x)
        cosines = case.class_weight @ x / (np.linalg.norm(case.class_weight, axis=1) * norm)
        theta = math.acos(cosines[label])
        if kind is SoftmaxHead:
            logits = case.class_weight @ x
        elif kind is SphereFaceHead:
            logits = norm * cosines
            k = min(int(4 * theta / math.pi), 3)
            psi = (-1) ** k * math.cos(4 * theta) - 2 * k
            annealing = max(5, 1000 / (1 + 0.12 * step))
            logits[label] = norm * (psi + annealing * cosines[label]) / (1 + annealing)
        else:
            logits = 64 * cosines
            if kind is CosFaceHead:
                logits[label] -= 64 * 0.35
            if kind is ArcFaceHead:
                above = theta + 0.5 > math.pi
                logits[label] = 64 * (cosines[label] - 0.5 * math.sin(0.5) if above else math.cos(theta + 0.5))
        shifted = logits - logits.max()
        losses.append(math.log(np.exp(shifted).sum()) - shifted[label])
    return np.mean(losses)


def wide_angles():
    """Targets at angles all over 0..pi, so that every branch of psi and of ArcFace is met."""
    case = planted(12, 9, 16)
    random = np.random.default_rng(5)
    embeddings = []
    for label, theta in zip(case.labels, np.linspace(0.05, 3.1, 12), strict=True):
        own = case.class_weight[label] / np.linalg.norm(case.class_weight[label])
        side = random.standard_normal(16)
        side -= side @ own * own
        embeddings.append(2 * (math.cos(theta) * own + math.sin(theta) * side / np.linalg.norm(side)))
    return case._replace(embeddings=np.array(embeddings))


@pytest.mark.parametrize("make_case", [planted, wide_angles])
@pytest.mark.parametrize("kind", HEADS)
def test_loss_is_its_definition(kind, make_case):
    case = make_case()
    result = head_with(kind, case)(torch.tensor(case.embeddings), torch.tensor(case.labels))
    assert result.loss.item() == pytest.approx(expected_loss(kind, case), rel=1e-12)


def test_sphereface_anneals_with_the_step():
    case = wide_angles()
    head = head_with(SphereFaceHead, case)
    for step in (0, 100, 10_000, 100_000):
        head.step = step
        loss = head(torch.tensor(case.embeddings), torch.tensor(case.labels)).loss
        assert loss.item() == pytest.approx(expected_loss(SphereFaceHead, case, step), rel=1e-12)


@pytest.mark.parametrize("make_case", [planted, wide_angles])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_flow_through_the_margin(kind, make_case):
    """Central differences in float64; editing the logits outside autograd would give CosFace's gradient to ArcFace."""
    case = make_case()
    head = head_with(kind, case)
    x = torch.tensor(case.embeddings, requires_grad=True)
    w = head.class_weight

    def loss(embeddings, class_weight):
        return torch.func.functional_call(
            head, {"class_weight": class_weight}, (embeddings, torch.tensor(case.labels))
        ).loss

    assert torch.autograd.gradcheck(loss, (x, w.detach().requires_grad_()), eps=1e-6, rtol=1e-5, atol=1e-6)


def test_arcface_pulls_harder_than_cosface_at_small_angles():
    """d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta): above 1, where a logit edited by hand has 1."""
    theta, margin = 0.8, 0.5
    cosine = torch.tensor([[math.cos(theta)]], dtype=torch.float64, requires_grad=True)
    head = ArcFaceHead(2, 2, scale=1.0, margin=margin)
    head.logits(cosine, cosine, torch.tensor([[True]])).sum().backward()
    assert cosine.grad.item() == pytest.approx(math.sin(theta + margin) / math.sin(theta), rel=1e-12)
    assert cosine.grad.item() > 1.3


@pytest.mark.parametrize("sign", [1, -1], ids=["parallel", "antiparallel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", HEADS)
def test_embedding_on_its_prototype(kind, dtype, sign):
    case = planted(6, 9, 8)
    embeddings = case.embeddings.copy()
    embeddings[0] = sign * case.class_weight[case.labels[0]]
    head = head_with(kind, case).to(dtype)
    x = torch.tensor(embeddings, dtype=dtype, requires_grad=True)
    result = head(x, torch.tensor(case.labels))
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(head.class_weight.grad).all()


@pytest.mark.parametrize("kind", HEADS)
def test_metrics(kind):
    case = planted()
    result = head_with(kind, case)(torch.tensor(case.embeddings), torch.tensor(case.labels))
    unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in case[:2])
    cosines = unit_x @ unit_w.T
    is_target = np.eye(30, dtype=bool)[case.labels]
    assert result.target_cosine.item() == pytest.approx(cosines[is_target].mean(), rel=1e-12)
    assert result.other_cosine.item() == pytest.approx(cosines[~is_target].mean(), rel=1e-10)
    assert result.accuracy.item() == (cosines.argmax(1) == case.labels).mean()


@pytest.mark.parametrize("kind", HEADS)
def test_bad_input(kind):
    head = kind(4, 10)
    with pytest.raises(ValueError, match=r"labels: expected 0\.\.9, got 10 at row 1"):
        head(torch.randn(2, 4), torch.tensor([0, 10]))
    with pytest.raises(ValueError, match=r"same D.*\(2, 5\) and \(10, 4\)"):
        head(torch.randn(2, 5), torch.tensor([0, 1]))


def test_a_step_that_samples_classes_sees_its_own_and_others():
    """Partial FC: rows drawn have a gradient, those of the batch among them; all do at rate 1 and in evaluation."""
    torch.manual_seed(0)
    head = NormalisedSoftmaxHead(4, 40)
    x, labels = torch.randn(6, 4), torch.tensor([3, 3, 39, 0, 7, 20])
    whole = head(x, labels).loss
    head.sample_rate = 0.25
    seen = set()
    for _ in range(20):
        head.class_weight.grad = None
        sampled = head(x, labels)
        sampled.loss.backward()
        rows = set((head.class_weight.grad != 0).any(1).nonzero()[:, 0].tolist())
        assert len(rows) == 10
        assert rows >= set(labels.tolist())
        assert sampled.loss < whole
        seen |= rows
    assert len(seen) > 30
    assert head.eval()(x, labels).loss == whole
