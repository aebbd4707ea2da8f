# SPDX-License-Identifier: Apache-2.0
"""The network: sizes, names, gradients, learning, and what it refuses. Narrow networks compile fast."""

from collections.abc import Iterator

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.crossentropy import CrossEntropy
from src.utils.var_init import initial_values
from src.vgg import CONFIGURATIONS, VGG, vgg11, vgg13, vgg16, vgg19

SMALL = {"image_size": (32, 32), "width": 0.125}


@pytest.fixture(autouse=True, scope="module")
def graph_mode() -> Iterator[None]:
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    yield
    mindspore.set_context(mode=before)


def images(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    return Tensor(np.random.RandomState(0).standard_normal((count, 3, *size)).astype(np.float32))


def gradients(network: VGG, images: Tensor) -> dict[str, np.ndarray]:
    """One forward and backward pass in training, through the graph that training compiles."""
    weights = network.trainable_params()
    labels = Tensor(np.arange(len(images)) % 10, mindspore.int32)
    with_loss = nn.WithLossCell(network, CrossEntropy(0.0, 10)).set_train()
    found = ops.GradOperation(get_by_list=True)(with_loss, mindspore.ParameterTuple(weights))(images, labels)
    return {weight.name: gradient.asnumpy() for weight, gradient in zip(weights, found, strict=True)}


def without_gradient(network: VGG) -> list[str]:
    found = gradients(network, images(16))
    assert all(np.isfinite(gradient).all() for gradient in found.values())
    return [name for name, gradient in found.items() if not gradient.any()]


def parameter_shapes(**changes: object) -> dict[str, tuple[int, ...]]:
    network = vgg11(10, **(SMALL | changes))
    return {parameter.name: parameter.shape for parameter in network.get_parameters()}


@pytest.mark.parametrize("pad_mode", ["same", "pad"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_parameter_of_vgg11_gets_a_gradient(batch_norm: bool, has_bias: bool, pad_mode: str) -> None:
    initialize_mode = "XavierUniform" if batch_norm else "KaimingNormal"
    mindspore.set_seed(1)
    network = vgg11(
        10,
        batch_norm=batch_norm,
        has_bias=has_bias,
        pad_mode=pad_mode,
        padding=1,
        initialize_mode=initialize_mode,
        dropout_rate=0.0,
        **SMALL,
    )
    assert without_gradient(network) == []


@pytest.mark.parametrize("make", [vgg13, vgg16, vgg19])
def test_every_parameter_of_the_deeper_networks_gets_a_gradient(make) -> None:
    mindspore.set_seed(1)
    assert without_gradient(make(10, **SMALL)) == []


def test_sixteen_images_are_learnt_by_heart() -> None:
    mindspore.set_seed(1)
    network = vgg11(10, dropout_rate=0.0, **SMALL)
    labels = Tensor(np.arange(16) % 10, mindspore.int32)
    optimizer = nn.Momentum(network.trainable_params(), 0.02, 0.9)
    step = nn.TrainOneStepCell(nn.WithLossCell(network, CrossEntropy(0.0, 10)), optimizer).set_train()
    losses = [float(step(images(16), labels).asnumpy()) for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(10), abs=0.5)
    assert min(losses[-5:]) < 0.05


def test_parameter_count_of_the_paper() -> None:
    network = VGG("vgg16", 1000, batch_norm=False, has_bias=True, pad_mode="pad", padding=1)
    assert sum(parameter.size for parameter in network.get_parameters()) == 138_357_544
    assert network.classifier[0].weight.shape == (4096, 512 * 7 * 7)


@pytest.mark.parametrize(
    ("network", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)]
)
def test_depths(network: str, convolutions: int) -> None:
    channels = [item for item in CONFIGURATIONS[network] if item]
    assert len(channels) == convolutions and len(CONFIGURATIONS[network]) - convolutions == 5
    assert channels == sorted(channels) and channels[-1] == 512


def test_parameter_names_of_the_model_zoo() -> None:
    plain = parameter_shapes(batch_norm=False, has_bias=True)
    weights = [name for name in plain if name.startswith("layers") and name.endswith("weight")]
    assert weights == [f"layers.{index}.weight" for index in (0, 3, 6, 8, 11, 13, 16, 18)]
    assert [name for name in plain if name.startswith("classifier")] == [
        f"classifier.{index}.{part}" for index in (0, 3, 6) for part in ("weight", "bias")
    ]
    with_norm = parameter_shapes()
    assert [name for name in with_norm if name.startswith("layers")][:6] == [
        "layers.0.weight",
        *(f"layers.1.{part}" for part in ("moving_mean", "moving_variance", "gamma", "beta")),
        "layers.4.weight",
    ]
    assert with_norm["layers.4.weight"] == (16, 8, 3, 3)
    assert "layers.0.bias" not in with_norm


def test_dropout_layers_carry_no_names_away() -> None:
    assert parameter_shapes(dropout_rate=0.0) == parameter_shapes(dropout_rate=0.5)
    made = []
    network = vgg11(10, dropout_rate=0.3, dropout=lambda rate: made.append(rate) or nn.Identity(), **SMALL)
    assert made == [0.3, 0.3]
    assert isinstance(network.classifier[2], nn.Identity) and isinstance(network.classifier[5], nn.Identity)
    assert isinstance(vgg11(10, **SMALL).classifier[5], nn.Dropout)


def test_rectangles_and_no_top() -> None:
    network = vgg11(10, image_size=(64, 96), width=0.125)
    assert network.classifier[0].weight.shape == (512, 64 * 2 * 3)
    network.set_train(False)
    assert network(images(2, (64, 96))).shape == (2, 10)
    trunk = vgg11(10, include_top=False, **SMALL)
    assert not any(parameter.name.startswith("classifier") for parameter in trunk.get_parameters())
    trunk.set_train(False)
    assert trunk(images(2)).shape == (2, 64, 1, 1)


def test_width_scales_channels_and_classifier_down_to_eight() -> None:
    shapes = parameter_shapes(width=0.01)
    assert shapes["layers.0.weight"] == (8, 3, 3, 3)
    assert shapes["classifier.0.weight"] == (41, 8) and shapes["classifier.6.weight"] == (10, 41)


def test_pad_mode_same_is_a_padding_of_one() -> None:
    """VGG computes "same" as padding 1: the results are those of a convolution told "same"."""
    weight = Tensor(np.random.RandomState(1).standard_normal((8, 3, 3, 3)).astype(np.float32))
    ours = vgg11(10, padding=0, **SMALL).layers[0]
    ours.weight.set_data(weight)
    same = nn.Conv2d(3, 8, 3, pad_mode="same", weight_init=weight)
    np.testing.assert_allclose(ours(images(2)).asnumpy(), same(images(2)).asnumpy(), atol=1e-5)


def test_other_paddings_change_the_maps_and_the_first_dense_layer_follows() -> None:
    network = vgg11(10, pad_mode="pad", padding=2, **SMALL)
    network.set_train(False)
    assert network.classifier[0].weight.shape == (512, 64 * 4 * 4)  # 34 17 19 9 13 6 10 5 9 4
    assert network(images(2)).shape == (2, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vg16"}, "allowed: vgg11, vgg13, vgg16, vgg19; did you mean vgg16"),
        ({"initialize_mode": "KaimingNormale"}, "did you mean KaimingNormal"),
        ({"pad_mode": "valid"}, "allowed: same, pad"),
        ({"image_size": (32, 48)}, "side of 48: both must be multiples of 32"),
        ({"image_size": (0, 32)}, "side of 0"),
        ({"pad_mode": "pad", "padding": 0}, "leaves nothing"),
    ],
)
def test_bad_values_raise(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGG(**({"network": "vgg11", "num_classes": 10} | SMALL | changes))


def test_signal_keeps_its_size_in_a_plain_network() -> None:
    """What KaimingNormal promises, for every layer and not for the last one only."""
    mindspore.set_seed(1)
    initial = initial_values("KaimingNormal")
    layers = [nn.Conv2d(64, 64, 3, pad_mode="pad", padding=1, weight_init=initial.conv) for _ in range(8)]
    stack = nn.SequentialCell([cell for layer in layers for cell in (layer, nn.ReLU())])
    x = Tensor(np.random.RandomState(0).standard_normal((4, 64, 16, 16)).astype(np.float32))
    assert 0.3 < stack(x).asnumpy().std() < 3
