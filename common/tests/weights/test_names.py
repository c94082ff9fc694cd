"""Every parameter name of the published networks becomes its canonical name."""

import pytest

from common.tests.published_networks import fmobilefacenet_name, fresnet_name, published_shapes
from common.weights.foreign.names import COUNTER, from_mxnet, from_pytorch


@pytest.mark.parametrize(
    ("network", "published_name", "some"),
    [
        ("iresnet18", fresnet_name, {"stage1_unit1_conv1sc_weight", "stage2_unit2_relu1_gamma", "fc1_moving_var"}),
        ("mobilefacenet", fmobilefacenet_name, {"conv_1_conv2d_weight", "res_3_block0_conv_dw_relu_gamma"}),
    ],
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_names_of_mxnet(network, published_name, some, prefixed):
    def prefix(name: str) -> str:
        return "" if not prefixed else "aux:" if "running" in name else "arg:"

    canonical = [name for name in published_shapes(network) if not name.endswith(COUNTER)]
    published = {name: prefix(name) + published_name(name) for name in canonical}
    assert some <= {published_name(name) for name in canonical}
    names = [*published.values(), ("arg:" if prefixed else "") + "fc7_weight"]
    assert from_mxnet(names, mobilefacenet=network == "mobilefacenet") == published


@pytest.mark.parametrize("network", ["iresnet18", "ir_se50", "mobilefacenet"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_pytorch_and_jittor(network, prefix):
    names = published_shapes(network)
    canonical = {name: prefix + name for name in names if not name.endswith(COUNTER)}
    assert from_pytorch(prefix + name for name in names) == canonical
