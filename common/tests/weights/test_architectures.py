"""The layers of every backbone, against the published names and shapes."""

import pytest

from common.tests.published_networks import DEPTHS, published_shapes
from common.weights.architectures import BACKBONES, layout


@pytest.mark.parametrize("name", [*DEPTHS, "mobilefacenet", "mobilenet_v1"])
def test_names_and_shapes_are_the_published_ones(name):
    expected = {key: shape for key, shape in published_shapes(name).items() if "num_batches" not in key}
    assert layout(name).shapes == expected


def test_every_backbone_is_covered():
    assert BACKBONES.keys() == {*DEPTHS, "mobilefacenet", "mobilenet_v1", "iresnet_small"}


@pytest.mark.parametrize(("image_size", "cells"), [(16, 1), (17, 4), (56, 16), (112, 49)])
def test_the_last_map_covers_what_four_strides_leave(image_size, cells):
    for name, linear, width in (
        ("iresnet_small", "fc", 256),
        ("ir50", "output_layer.3", 512),
        ("mobilenet_v1", "pre_fc1", 1024),
    ):
        assert layout(name, 8, image_size).shapes[f"{linear}.weight"] == (8, width * cells)
    kernel = layout("mobilefacenet", 8, image_size).shapes["conv_6dw7_7.conv2d.weight"][2:]
    assert kernel[0] * kernel[1] == cells


@pytest.mark.parametrize("numbers", [(0, 112), (512, 15)])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ValueError, match=r"at least 1 and images of at least 16 pixels, got \d+ and \d+"):
        layout("mobilefacenet", *numbers)
