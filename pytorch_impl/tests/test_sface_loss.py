"""SFace against the golden results of the published code, the float64 oracle, and its own properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tests.backend_checks.sface_loss import *  # noqa: F403
from common.tests.backend_checks.sface_loss import FORMS, GOLDEN, LOSSES, METRICS, PARAMETERS, TOLERANCE, error
from parity_tests.cases.inputs import planted
from parity_tests.truth import sface as oracle
from pytorch_impl.losses import HEADS, skipping
from pytorch_impl.losses.sface import Rescaling, SFaceHead, sface_loss


def run(embeddings, class_weight, labels, dtype="float64", form="plain", block_size=7, factor=1.0, **parameters):
    x, w = (torch.tensor(a, dtype=getattr(torch, dtype), requires_grad=True) for a in (embeddings, class_weight))
    options = {name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in parameters.items()}
    result = sface_loss(x, w, torch.as_tensor(labels), form=form, block_size=block_size, **options)
    (torch.as_tensor(factor) * result.loss).sum().backward()
    return result._make(None if v is None else v.detach().numpy()[()] for v in result), x.grad.numpy(), w.grad.numpy()


def assert_close(found, expected, tolerance, what):
    assert error(found, expected) <= tolerance, what


def assert_matches_oracle(case, dtype, form, **parameters):
    result, grad_embeddings, grad_class_weight = run(*case, dtype, form, **parameters)
    inputs = [array.astype(dtype) for array in case[:2]]  # the oracle sees the rounded input
    truth = oracle.sface(*inputs, case[2], **parameters)
    for name in LOSSES:
        scale = max(abs(truth.intra_loss), abs(truth.inter_loss))
        assert abs(getattr(result, name) - getattr(truth, name)) <= TOLERANCE[dtype] * scale, name
    for name in METRICS:
        assert getattr(result, name) == pytest.approx(getattr(truth, name), abs=1e-5), name
    assert_close(grad_embeddings, truth.grad_embeddings, TOLERANCE[dtype], "grad_embeddings")
    assert_close(grad_class_weight, truth.grad_class_weight, TOLERANCE[dtype], "grad_class_weight")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_oracle_matches_the_golden_results(path):
    golden = np.load(path, allow_pickle=False)
    truth = oracle.sface(
        golden["embeddings"], golden["class_weight"], golden["labels"], **{n: float(golden[n]) for n in PARAMETERS}
    )
    for name in (*LOSSES, "grad_embeddings", "grad_class_weight"):
        assert_close(getattr(truth, name), golden[name], 1e-12, name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("a", "b"), [(0.87, 1.20), (0.88, 1.25), (0.90, 1.20)])
def test_on_the_knees(a, b, dtype, form):
    case = planted(intra_center=a, inter_center=b)
    truth = oracle.sface(*case, intra_center=a, inter_center=b)
    on_knee = (truth.intra_weight > 0.05 * 64) & (truth.intra_weight < 0.95 * 64)
    assert on_knee.mean() >= 0.2, "the case must test the sigmoid"
    assert_matches_oracle(case, dtype, form, intra_center=a, inter_center=b)


def test_weights_match_the_oracle():
    case = planted()
    truth = oracle.sface(*case)
    unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in case[:2])
    theta = torch.acos(torch.from_numpy(unit_x @ unit_w.T))
    targets = theta[torch.arange(len(case.labels)), torch.from_numpy(case.labels)]
    rescaling = Rescaling(64, 80, 80, 0.87, 1.2)
    assert_close(rescaling.pull(targets), truth.intra_weight, 1e-10, "r_intra")
    found = rescaling.push(theta).numpy()
    found[np.arange(len(case.labels)), case.labels] = 0
    assert_close(found, truth.inter_weight, 1e-10, "r_inter")


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_frozen_weights(form):
    """Central differences match when r is frozen, and do not when it moves: that is the method, not a mistake."""
    case = planted(6, 9, 5)
    truth = oracle.sface(*case)
    _, grad_embeddings, _ = run(*case, form=form)

    def loss_with(r_intra, r_inter, embeddings):
        unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (embeddings, case.class_weight))
        cosines = unit_x @ unit_w.T
        targets = cosines[np.arange(len(cosines)), case.labels]
        return np.mean(-r_intra * targets) + np.mean((r_inter * cosines).sum(1))

    step = 1e-6
    frozen, moving = np.zeros_like(grad_embeddings), np.zeros_like(grad_embeddings)
    for index in np.ndindex(grad_embeddings.shape):
        ends = []
        for sign in (1, -1):
            moved = case.embeddings.copy()
            moved[index] += sign * step
            ends.append((loss_with(truth.intra_weight, truth.inter_weight, moved), oracle.sface(moved, *case[1:]).loss))
        (frozen[index], moving[index]) = (np.array(ends[0]) - np.array(ends[1])) / (2 * step)
    # central differences with step 1e-6 of a loss near 10 keep about 8 digits; measured 2e-9
    assert_close(grad_embeddings, frozen, 1e-6, "frozen r")
    with pytest.raises(AssertionError):
        assert_close(grad_embeddings, moving, 0.1, "moving r")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sign", [1, -1], ids=["parallel", "antiparallel"])
def test_embedding_on_its_prototype(sign, dtype, form):
    """arccos has an infinite slope at both ends: no NaN may come of it."""
    case = planted(8, 12, 10)
    embeddings = case.embeddings.copy()
    embeddings[0] = sign * case.class_weight[case.labels[0]]
    embeddings[1] = sign * 3 * case.class_weight[(case.labels[1] + 1) % 12]
    assert_matches_oracle(case._replace(embeddings=embeddings), dtype, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_tie_counts_as_correct(form):
    embeddings, prototype = np.eye(2, 4), np.eye(1, 4)
    result, *_ = run(embeddings, np.concatenate([prototype, prototype, np.eye(4)[3:]]), [1, 2], form=form)
    assert result.accuracy == 1.0  # the first has a tie of two ones, the second of three zeros


@pytest.mark.parametrize("form", FORMS)
def test_smallest_problem(form):
    case = planted(1, 2, 3)
    assert_matches_oracle(case, "float64", form)


@pytest.mark.parametrize("form", FORMS)
def test_first_and_last_class(form):
    case = planted(4, 15, 8)  # blocks of 7: the last one has a single class
    assert_matches_oracle(case._replace(labels=np.array([0, 14, 14, 0])), "float64", form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_zero_embedding(dtype, form):
    case = planted(5, 9, 8)
    embeddings = case.embeddings.copy()
    embeddings[2] = 0
    result, grad_embeddings, grad_class_weight = run(embeddings, *case[1:], dtype, form)
    truth = oracle.sface(embeddings, *case[1:])
    assert result.loss == pytest.approx(truth.loss, rel=1e-4)
    assert_close(np.delete(grad_embeddings, 2, 0), np.delete(truth.grad_embeddings, 2, 0), TOLERANCE[dtype], "others")
    assert_close(grad_embeddings[2], truth.grad_embeddings[2], TOLERANCE[dtype], "the zero embedding")
    assert np.isfinite(grad_class_weight).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("factor", [1e-13, 1e-10, 1e10, 1e17])
def test_huge_and_tiny_norms(factor, dtype, form):
    """From below the floor of the norm to what float32 can square."""
    case = planted(5, 9, 8)
    assert_matches_oracle(case._replace(embeddings=case.embeddings * factor), dtype, form)


@pytest.mark.parametrize("form", FORMS)
@given(
    seed=st.integers(0, 10**6),
    batch_size=st.integers(1, 9),
    num_classes=st.integers(2, 20),
    embedding_size=st.integers(3, 12),
    factor=st.floats(1e-3, 1e3),
)
@settings(max_examples=40, deadline=None)
def test_properties(form, seed, batch_size, num_classes, embedding_size, factor):
    case = planted(batch_size, num_classes, embedding_size, seed=seed)
    result, grad_embeddings, grad_class_weight = run(*case, form=form)
    scale = abs(result.intra_loss) + abs(result.inter_loss)

    # the gradient of a direction has no radial part
    radial = np.abs((grad_embeddings * case.embeddings).sum(1))
    assert (radial <= 1e-12 * scale * num_classes + 1e-12).all()

    # the length of an embedding does not matter, and its gradient goes with 1 / length
    scaled, scaled_grad, _ = run(case.embeddings * factor, *case[1:], form=form)
    assert scaled.loss == pytest.approx(result.loss, abs=1e-9 * scale)
    assert_close(scaled_grad * factor, grad_embeddings, 1e-8, "scale of x")

    # nor does the order of the classes, nor that of the batch
    random = np.random.default_rng(seed)
    classes, rows = random.permutation(num_classes), random.permutation(batch_size)
    shuffled, shuffled_grad_x, shuffled_grad_w = run(
        case.embeddings[rows], case.class_weight[classes], np.argsort(classes)[case.labels[rows]], form=form
    )
    assert shuffled.loss == pytest.approx(result.loss, abs=1e-9 * scale)
    assert_close(shuffled_grad_x, grad_embeddings[rows], 1e-8, "order of the batch")
    assert_close(shuffled_grad_w, grad_class_weight[classes], 1e-8, "order of the classes")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_angles_stay_in_float32_under_autocast(dtype, form):
    case = planted()
    head = SFaceHead(24, 30, form=form)
    head.class_weight.data = torch.tensor(case.class_weight, dtype=torch.float32)
    embeddings = torch.tensor(case.embeddings).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        result = head(embeddings, torch.tensor(case.labels))
    truth = oracle.sface(embeddings.double().numpy(), head.class_weight.detach().numpy(), case.labels)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(truth.loss, rel=2e-5)


def test_streamed_form_holds_no_matrix_of_all_classes():
    """The largest tensor that the forward pass keeps or makes is a block, the embeddings or the gradient."""
    batch_size, num_classes, embedding_size, block_size = 8, 4000, 4, 50
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    x, w = torch.randn(batch_size, embedding_size), torch.randn(num_classes, embedding_size)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    with Watch():
        sface_loss(x, w, labels, block_size=block_size)
        assert largest < num_classes * embedding_size, "without gradients it holds no (C, D) either"
        sface_loss(x, w.requires_grad_(), labels, block_size=block_size)
    assert largest == num_classes * embedding_size < batch_size * num_classes


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="at least 1 sample and 2 classes, got 0"):
        SFaceHead(4, 30)(torch.randn(0, 4), torch.zeros(0, dtype=torch.int64))


def test_labels_of_numpy_are_refused():
    with pytest.raises(ValueError, match="labels: expected a tensor, got ndarray; torch.as_tensor makes one"):
        sface_loss(torch.ones(2, 3), torch.ones(4, 3), np.zeros(2, np.int64))


@pytest.mark.parametrize("form", FORMS)
def test_modules_of_half_precision(form):
    """As `model.bfloat16()` makes them: 8 bits of an angle would decide r."""
    case = planted()
    head = SFaceHead(24, 30, form=form)
    head.class_weight.data = torch.tensor(case.class_weight)
    head.bfloat16()
    embeddings = torch.tensor(case.embeddings).bfloat16()
    result = head(embeddings, torch.tensor(case.labels))
    result.loss.backward()
    truth = oracle.sface(embeddings.double().numpy(), head.class_weight.detach().double().numpy(), case.labels)
    assert result.loss.item() == pytest.approx(truth.loss, rel=2e-5)
    assert_close(head.class_weight.grad.double(), truth.grad_class_weight, 2**-8, "class_weight")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", ["sface", "cosface"])
def test_products_are_full_whatever_is_set_elsewhere(head, form):
    """TF32 and bfloat16 products are 1e-3 off. Forward and backward, and the setting stays."""
    case, seen = planted(), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                seen.append(torch.backends.cuda.matmul.fp32_precision)
            return func(*args, **(kwargs or {}))

    module = HEADS[head](24, 30, **({"form": form} if head == "sface" else {}))
    torch.set_float32_matmul_precision("high")
    try:
        with Watch():
            x = torch.tensor(case.embeddings).float().requires_grad_()
            module(x, torch.tensor(case.labels)).loss.backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"ieee"}
    assert len(seen) >= 3


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative(form):
    """That of the plain form is right; the streamed form refuses instead of giving zeros."""
    case = planted(4, 6, 5)
    x, w = (torch.tensor(array, requires_grad=True) for array in case[:2])
    labels = torch.tensor(case.labels)
    loss = sface_loss(x, w, labels, form=form).loss
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    penalised = loss + gradient.square().sum()
    if form == "streamed":
        with pytest.raises(RuntimeError, match='differentiated once; form="plain" twice'):
            penalised.backward()
        return
    (found,) = torch.autograd.grad(gradient.square().sum(), x)
    unit, weights = F.normalize(w.detach()), oracle.sface(*case)
    g = torch.tensor(weights.inter_weight)
    g[torch.arange(4), labels] = -torch.tensor(weights.intra_weight)

    def with_frozen_weights(x):
        return (g / 4 * (F.normalize(x) @ unit.T)).sum()

    expected = torch.autograd.grad(torch.func.grad(with_frozen_weights)(x).square().sum(), x)[0]
    assert_close(found, expected.numpy(), 1e-10, "of the penalty")


@pytest.mark.parametrize("form", FORMS)
def test_functional_gradients(form):
    case = planted(5, 9, 8)
    x, w, labels = (torch.tensor(array) for array in case)

    def loss(x, w, labels):
        return sface_loss(x, w, labels, form=form).loss

    found = torch.func.grad(loss, (0, 1))(x, w, labels)
    truth = oracle.sface(*case)
    assert_close(found[0], truth.grad_embeddings, 1e-12, "embeddings")
    assert_close(found[1], truth.grad_class_weight, 1e-12, "class_weight")

    each = torch.func.vmap(torch.func.grad(lambda row, label: loss(row[None], w, label[None])))
    if form == "streamed":
        with pytest.raises(RuntimeError, match='does not work under vmap; form="plain" does'):
            each(x, labels)
    else:
        assert_close(each(x, labels) / 5, truth.grad_embeddings, 1e-12, "each sample's")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_another_default_device(monkeypatch, reduction):
    case = planted()
    monkeypatch.setattr(skipping, "can_screen", lambda _: True)
    results = []
    for device in ("cpu", "meta"):
        x, w = (torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in case[:2])
        labels = torch.tensor(case.labels)
        torch.set_default_device(device)
        try:
            sface_loss(x, w, labels, block_size=7, reduction=reduction).loss.sum().backward()
        finally:
            torch.set_default_device(None)
        results.append((x.grad, w.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_compiled_model_trains_and_its_numbers_may_change():
    """With the real compiler; a center that moves is no reason to compile again."""
    torch.manual_seed(0)
    x, labels = torch.randn(8, 6), torch.arange(8)
    losses = {}
    for name in ("eager", "compiled"):
        torch.manual_seed(1)
        model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(6, 5), "head": SFaceHead(5, 8, epsilon=0.0)})
        model["head"].compiled = name == "compiled"
        forward = lambda model, x: model["head"](model["backbone"](x), labels).loss  # noqa: E731
        step = torch.compile(forward) if name == "compiled" else forward
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses[name] = []
        for count in range(6):
            model["head"].rescale(intra_center=0.8 + 0.02 * count, inter_center=1.2 + 0.01 * count)
            if count == 2:
                compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            optimizer.zero_grad()
            step(model, x).backward()
            optimizer.step()
            losses[name].append(step(model, x).item())
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert losses["eager"][-1] < losses["eager"][0]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_cuda_matches_the_oracle(form):
    case = planted()
    x, w = (torch.tensor(array, device="cuda", requires_grad=True) for array in case[:2])
    sface_loss(x, w, torch.tensor(case.labels, device="cuda"), form=form, block_size=7).loss.backward()
    truth = oracle.sface(*case)
    assert_close(x.grad.cpu(), truth.grad_embeddings, TOLERANCE["float64"], "grad_embeddings")
    assert_close(w.grad.cpu(), truth.grad_class_weight, TOLERANCE["float64"], "grad_class_weight")
