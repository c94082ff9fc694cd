"""Weights as PyTorch itself writes them, imported."""

import numpy as np
import pytest
import torch
from torch import nn

from common.commands.main import main
from common.tests.backend_checks.imports import *  # noqa: F403
from common.tests.backend_checks.imports import embed, imported, pixels
from common.weights.checkpoint import load_checkpoint
from pytorch_impl.backbones import create_backbone

SFACE_SCALE = 0.078125  # of zhongyy/SFace


def trained_elsewhere(name: str) -> torch.nn.Module:
    """A network on SFace's pixel scale, whose running statistics are those of a batch."""
    network = create_backbone(name, 16, 16)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network(on_their_scale(pixels(count=16)))
    return network.eval()


def on_their_scale(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).float() - 127.5) * SFACE_SCALE


@pytest.mark.parametrize(("name", "legacy"), [("iresnet_small", False), ("mobilefacenet", True)])
def test_what_torch_saves(backend, tmp_path, name, legacy):
    """Wrapped, in half precision, in another memory format, beside an optimiser; its pixels on SFace's scale.

    Measured 0: half-precision weights times 10 are exact in single precision.
    """
    network = trained_elsewhere(name).half().float().to(memory_format=torch.channels_last)
    state = {f"module.{key}": t.half() if t.is_floating_point() else t for key, t in network.state_dict().items()}
    path = tmp_path / "weights.pth"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).state_dict()
    value = {"epoch": 3, "state_dict": state, "optimizer": optimizer}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)

    options = ("--backbone", name, "--pixel-scale", str(SFACE_SCALE), "--image-size", "16")
    found = embed(backend, imported(backend, path, tmp_path / "out", *options), pixels())
    with torch.inference_mode():
        expected = network(on_their_scale(pixels())).numpy()
    assert np.corrcoef(expected)[0, 1] < 0.9, "the network must tell the pictures apart"
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_and_other_precisions(backend, tmp_path, dtype):
    network = trained_elsewhere("iresnet_small").to(dtype)
    path = tmp_path / "weights.pth"
    torch.save(dict(network.named_parameters()) | dict(network.named_buffers()), path)
    options = ("--backbone", "iresnet_small", "--pixel-scale", "1/128", "--image-size", "16")
    arrays = load_checkpoint(imported(backend, path, tmp_path / "out", *options)).arrays
    for key, tensor in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert np.array_equal(arrays[f"backbone.{key}"], tensor.float().numpy()), key


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_network_is_refused(backend, tmp_path, capsys, legacy):
    path = tmp_path / "network.pth"
    torch.save(create_backbone("iresnet_small", 16, 16), path, _use_new_zipfile_serialization=not legacy)
    options = ["--backbone", "iresnet_small", "--pixel-scale", "1/128", "--out", str(tmp_path / "out")]
    assert main(backend, ["import", str(path), *options]) == 2
    errors = capsys.readouterr().err
    assert "nothing in it was executed" in errors
    assert "save the state_dict() of the network alone" in errors
