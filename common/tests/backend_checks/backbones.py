"""What every backend's `create_backbone` promises: published names and shapes, dropout, and what it refuses.

A test file that imports this defines `zeros(shape)`, an array of the framework, and `dropout_rates(backbone)`.
"""

import pytest

from common.tests.published_networks import DEPTHS, published_shapes


@pytest.fixture
def create(backend):
    return backend.module("backbones").create_backbone


def test_the_published_networks_are_there(backend):
    assert set(backend.module("backbones").BACKBONES) == {"iresnet_small", *DEPTHS, "mobilefacenet", "mobilenet_v1"}


@pytest.mark.parametrize("name", [*DEPTHS, "mobilefacenet", "mobilenet_v1"])
def test_names_and_shapes_are_the_published_ones(backend, create, name):
    shapes = {key: spec.shape for key, spec in backend.module("checkpoint").parameter_specs(create(name)).items()}
    assert shapes == {key: shape for key, shape in published_shapes(name).items() if "num_batches" not in key}


@pytest.mark.parametrize("name", ["iresnet_small", "ir50", "mobilefacenet", "mobilenet_v1"])
@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 1, 48, 48), (3, 48, 48), (2, 48, 48, 3)])
def test_images_of_another_shape_are_refused(request, create, name, shape):
    with pytest.raises(ValueError, match=r"images: expected \(N, 3, 48, 48\), got \(.*48"):
        create(name, 16, 48)(request.module.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "backbone: expected one of iresnet_small, iresnet18, .*mobilenet_v1, got 'resnet50'"),
        (("iresnet50", 0), "embedding_size: expected at least 1, got 0"),
        (("iresnet50", 16, 112, 1.0), "dropout: expected at least 0 and below 1, got 1.0"),
        (("iresnet50", 16, 15), "image_size: expected at least 16, got 15"),
        (("ir50", 16, 0), "image_size: expected at least 16, got 0"),
        (("mobilefacenet", 16, -16), "image_size: expected at least 16, got -16"),
        (("mobilenet_v1", 16, 15), "image_size: expected at least 16, got 15"),
    ],
)
def test_bad_arguments_are_refused(create, arguments, message):
    with pytest.raises(ValueError, match=message):
        create(*arguments)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        *(("iresnet18", 0.4), ("iresnet_small", 0.4), ("ir50", 0.5), ("ir_se50", 0.5)),
        *(("mobilefacenet", 0), ("mobilenet_v1", 0.4)),
    ],
)
def test_dropout(request, create, name, default):
    rates = request.module.dropout_rates
    assert rates(create(name, 16, 32)) == [default]
    assert rates(create(name, 16, 32, dropout=0.25)) == [0.25]
    assert rates(create(name, 16, 32, dropout=0.0)) == [0.0]  # none asked for is not the same as nothing said
