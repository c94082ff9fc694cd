"""Weights and symbols as MXNet itself writes them, imported."""

import mxnet as mx
import numpy as np

from common.tests.backend_checks.imports import *  # noqa: F403
from common.tests.backend_checks.imports import embed, imported, pixels
from common.tests.foreign_files import fresnet, weights


def fresnet_symbol(momentum=0.9, widths=(32, 64, 128, 256), embedding_size=16) -> mx.sym.Symbol:
    """A network of the kind of insightface's r networks (input 1, unit 3, output E), one unit a stage.

    The last BatchNorm sees (N, D, 1, 1): on a CPU, MXNet 1.9.1 crashes on (N, D).
    """

    def conv(x, name, width, kernel, stride=1):
        pad = (kernel // 2,) * 2
        return mx.sym.Convolution(
            x, num_filter=width, kernel=(kernel,) * 2, stride=(stride,) * 2, pad=pad, no_bias=True, name=name
        )

    def norm(x, name, fix_gamma=False):
        return mx.sym.BatchNorm(x, fix_gamma=fix_gamma, eps=2e-5, momentum=momentum, name=name)

    def prelu(x, name):
        return mx.sym.LeakyReLU(x, act_type="prelu", name=name)

    x = (mx.sym.identity(mx.sym.Variable("data"), name="id") - 127.5) * 0.0078125
    x = prelu(norm(conv(x, "conv0", widths[0], 3), "bn0"), "relu0")
    for stage, width in enumerate(widths, 1):
        unit = f"stage{stage}_unit1"
        inner = conv(norm(x, f"{unit}_bn1"), f"{unit}_conv1", width, 3)
        inner = prelu(norm(inner, f"{unit}_bn2"), f"{unit}_relu1")
        inner = norm(conv(inner, f"{unit}_conv2", width, 3, stride=2), f"{unit}_bn3")
        x = inner + norm(conv(x, f"{unit}_conv1sc", width, 1, stride=2), f"{unit}_sc")
    x = mx.sym.Dropout(norm(x, "bn1"), p=0.4)
    x = mx.sym.FullyConnected(x, num_hidden=embedding_size, name="pre_fc1")
    return norm(mx.sym.reshape(x, (0, 0, 1, 1)), "fc1", fix_gamma=True)


def trained_elsewhere(data: mx.nd.NDArray) -> tuple[dict[str, mx.nd.NDArray], dict[str, mx.nd.NDArray]]:
    """Arguments and auxiliary states of such a network; the running statistics are those of a batch.

    Some variances are small, so that eps 2e-5 in place of 1e-5 shows; gamma is nowhere 1, not even where it is fixed,
    which MXNet itself would have put right in training.
    """
    random = np.random.default_rng(0)
    arrays = weights("iresnet_small", 16, 16)
    for name, array in arrays.items():
        if array.ndim > 1:
            size = 0.01 if name.endswith("0.conv1.weight") else 1
            arrays[name] = size * random.standard_normal(array.shape, np.float32) / np.sqrt(np.float32(array[0].size))
    named = {name: mx.nd.array(array) for name, array in fresnet(arrays).items()}
    arguments, states = (
        {name.removeprefix(kind): array for name, array in named.items() if name.startswith(kind)}
        for kind in ("arg:", "aux:")
    )
    inputs = {**arguments, "data": data}
    gradients = {name: mx.nd.zeros_like(array) for name, array in inputs.items()}
    executor = fresnet_symbol(momentum=0.0).bind(mx.cpu(), inputs, gradients, aux_states=states)
    output = executor.forward(is_train=True)[0]
    executor.backward(mx.nd.ones_like(output))  # which is when MXNet stores the statistics
    arguments["fc1_gamma"][:] = 3
    return arguments, states


def test_what_mxnet_saves(backend, tmp_path):
    """The symbol run by MXNet, against the imported weights in our network; measured 2.5e-6."""
    symbol = fresnet_symbol()
    images = pixels(count=16)
    data = mx.nd.array(images.astype(np.float32))
    arguments, states = trained_elsewhere(data)
    mx.model.save_checkpoint(str(tmp_path / "r"), 1, symbol, arguments, states)
    executor = symbol.bind(mx.cpu(), {**arguments, "data": data}, aux_states=states, grad_req="null")
    expected = executor.forward(is_train=False)[0].asnumpy()[:, :, 0, 0]

    options = ("--backbone", "iresnet_small", "--image-size", "16")
    found = embed(backend, imported(backend, tmp_path / "r-0001.params", tmp_path / "out", *options), images)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.corrcoef(expected)[0, 1] < 0.9, "the network must tell the pictures apart"
