"""Every parameter name of the published networks becomes its canonical name."""

import pytest

from common.tests.published_networks import fmobilefacenet_name, fresnet_name, published_shapes
from common.weights.foreign.names import COUNTER, from_mxnet, from_pytorch


@pytest.mark.parametrize(
    ("network", "published_name", "some"),
    [
        ("iresnet18", fresnet_name, {"stage1_unit1_conv1sc_weight", "stage2_unit2_relu1_gamma", "fc1_moving_var"}),
        ("mobilefacenet", fmobilefacenet_name, {"conv_1_conv2d_weight", "res_3_block0_conv_dw_relu_gamma"}),
        ("mobilenet_v1", fmobilefacenet_name, {"conv_14_dw_conv2d_weight", "bn1_gamma", "fc1_moving_var"}),
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
    assert from_mxnet(names, mobile=network.startswith("mobile")) == published


@pytest.mark.parametrize("network", ["iresnet18", "ir_se50", "mobilefacenet"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "net.", "features.module."])
def test_names_of_pytorch_and_jittor(network, prefix):
    """A head beside a prefixed network stays out; beside one without prefix, nobody knows what it is."""
    names = published_shapes(network)
    canonical = {name: prefix + name for name in names if not name.endswith(COUNTER)}
    published = [*(prefix + name for name in names), "head.kernel"]
    unknown = {} if prefix else {"head.kernel": "head.kernel"}
    assert from_pytorch(published, [*canonical]) == canonical | unknown


def test_two_networks_in_one_dict():
    names = [f"{prefix}.{name}" for prefix in ("student", "teacher") for name in ("fc.weight", "fc.bias")]
    with pytest.raises(ValueError, match=r"stands there 2 times, under .*(student|teacher)\.; save one of them alone"):
        from_pytorch(names, ["fc.weight", "fc.bias"])
    assert from_pytorch(names[1:], ["fc.weight", "fc.bias"])["fc.weight"] == "teacher.fc.weight", "half a network"
