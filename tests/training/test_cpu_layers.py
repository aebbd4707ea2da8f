# SPDX-License-Identifier: Apache-2.0
"""What training on CPU does in its own way: dropout that repeats, convolutions of small maps."""

import mindspore
import numpy as np
import pytest
from helpers import ROOT, TINY, run_python
from mindspore import Parameter, Tensor, nn, ops

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from src.build import build_network
from src.training.cpu_layers import RepeatableDropout, TiledConv, use_cpu_layers
from src.vgg import vgg16

CPU, ASCEND = Rank(), Rank(device_target="Ascend")
ONES = Tensor(np.ones((64, 512), np.float32))
pytestmark = pytest.mark.usefixtures("graph_mode")


def masks(cell: RepeatableDropout, steps: int) -> list[np.ndarray]:
    return [cell(ONES).asnumpy() != 0 for _ in range(steps)]


@pytest.fixture(scope="module")
def half() -> list[np.ndarray]:
    """Eight masks of one layer that drops every second element."""
    return masks(RepeatableDropout(0.5, seed=1).set_train(), 8)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """In units of its own standard deviation for independent masks, so that more than 4.5 is no accident."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1] * np.sqrt(first.size))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_keep_rate_and_scale(p):
    cell = RepeatableDropout(p, seed=2).set_train()
    values = np.stack([cell(ONES).asnumpy() for _ in range(4)])
    kept = values != 0
    assert np.allclose(values[kept], 1 / (1 - p))
    assert abs(kept.mean() - (1 - p)) < 4.5 * np.sqrt(p * (1 - p) / kept.size)
    rows, columns = kept.mean(axis=(0, 2)), kept.mean(axis=(0, 1))
    assert np.abs(rows - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / (4 * 512))
    assert np.abs(columns - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / (4 * 64))


def test_steps_and_neighbours_are_independent(half):
    assert max(abs(correlation(half[i], half[j])) for i in range(8) for j in range(i)) < 4.5
    for shift in ((0, 1), (0, 2), (0, 16), (0, 256), (1, 0), (2, 0), (1, 1)):
        found = [correlation(mask, np.roll(mask, shift, axis=(0, 1))) for mask in half]
        assert max(map(abs, found)) < 4.5 and abs(np.mean(found)) * np.sqrt(8) < 4.5, shift


def test_layers_ranks_and_seeds_drop_other_units(half):
    def seeds(rank: int, seed: int = 7) -> list[int]:
        network = build_network(get_config([*TINY, f"--seed={seed}"]), Rank(rank, 2))
        return [int(network.classifier[index].seed.asnumpy()) for index in (2, 5)]

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1), *seeds(0, seed=8)}) == 6
    (other,) = masks(RepeatableDropout(0.5, seed=2).set_train(), 1)
    assert abs(correlation(half[0], other)) < 4.5


class Scaled(nn.Cell):
    """sum(dropout(x * w)): its gradient for w shows the mask that the backward pass used."""

    def __init__(self, dropout: nn.Cell) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((64, 512), np.float32)), name="weight")
        self.layers = nn.SequentialCell(dropout)

    def construct(self, x: Tensor) -> Tensor:
        return self.layers(x * self.weight).sum()


def test_each_training_step_takes_one_mask_for_both_passes(half):
    network = Scaled(RepeatableDropout(0.5, seed=1))
    step = nn.TrainOneStepCell(network, nn.SGD(network.trainable_params(), learning_rate=1.0)).set_train()
    for index in range(3):
        before = network.weight.asnumpy().copy()
        loss = float(step(ONES).asnumpy())
        gradient = before - network.weight.asnumpy()
        assert np.array_equal(gradient != 0, half[index])
        assert loss == pytest.approx((before * gradient).sum(dtype=np.float64), rel=1e-4, abs=1.0)
        assert int(network.layers[0].dropout_step.asnumpy()) == index + 1


def values_and_gradients(network: nn.Cell, images: np.ndarray, slope: np.ndarray) -> list[np.ndarray]:
    """The output, and the gradients of the images and of every parameter, for this gradient of the output."""
    weights = mindspore.ParameterTuple(network.trainable_params())
    gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(network, weights)
    (of_images,), of_weights = gradient(Tensor(images), Tensor(slope))
    return [item.asnumpy() for item in (network(Tensor(images)), of_images, *of_weights)]


@pytest.mark.parametrize(("side", "tile", "has_bias"), [
    (2, 2, False), (3, 2, True), (8, 2, False), (4, 4, True), (7, 4, False), (16, 4, True), (28, 4, False)])
def test_values_and_gradients_of_the_plain_convolution(side, tile, has_bias):
    random = np.random.RandomState(0)
    plain = nn.Conv2d(64, 48, 3, pad_mode="pad", padding=1, has_bias=has_bias, bias_init="normal")
    images, slope = (random.standard_normal((3, channels, side, side)).astype(np.float32) for channels in (64, 48))
    expected = values_and_gradients(plain, images, slope)
    tiled = TiledConv(plain, side, tile)
    for found, value in zip(values_and_gradients(tiled.set_train(), images, slope), expected, strict=True):
        assert np.abs(found - value).max() < 5e-6 * np.abs(value).max()
    assert np.array_equal(tiled.set_train(False)(Tensor(images)).asnumpy(), expected[0])


def test_the_exchanged_network_has_the_same_names_and_values():
    """Of VGG16's convolutions of a 32x32 image, only the first keeps MindSpore's own form in training."""
    networks = []
    for exchanges in (False, True):
        mindspore.set_seed(3)
        network = vgg16(10, image_size=(32, 32), width=0.125, has_bias=True)
        if exchanges:
            use_cpu_layers(network.layers, network.classifier, (32, 32), seed=1)
        networks.append(network.set_train(False))
    plain, tuned = networks
    assert sum(isinstance(cell, TiledConv) for _, cell in tuned.cells_and_names()) == 12
    counters = ["classifier.2.dropout_step", "classifier.5.dropout_step"]
    parameters = [item for item in tuned.get_parameters() if item.name not in counters]
    assert len(parameters) == len(list(tuned.get_parameters())) - 2
    for one, other in zip(plain.get_parameters(), parameters, strict=True):
        assert one.name == other.name and np.array_equal(one.asnumpy(), other.asnumpy())
    assert [item.name for item in tuned.trainable_params()] == [item.name for item in plain.trainable_params()]
    # Many images: normalised over few values, 13 layers amplify what is rounded.
    images = Tensor(np.random.RandomState(0).standard_normal((32, 3, 32, 32)).astype(np.float32))
    assert np.array_equal(tuned(images).asnumpy(), plain(images).asnumpy())
    of_features = [network.layers.set_train()(images).asnumpy() for network in networks]  # the classifier has dropout
    assert np.abs(of_features[0] - of_features[1]).max() <= 1e-5 * np.abs(of_features[0]).max()


def test_export_and_other_devices_keep_plain_operations():
    config = get_config([*TINY, "--network=vgg16"])
    for options, expected in (((CPU,), True), ((ASCEND,), False)):
        found = {type(cell).__name__ for _, cell in build_network(config, *options).cells_and_names()}
        assert ("TiledConv" in found) == ("RepeatableDropout" in found) == expected
    exported = build_network(config, CPU, for_export=True)
    assert not any(isinstance(cell, (TiledConv, RepeatableDropout)) for _, cell in exported.cells_and_names())


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_half_precision_which_rewrites_the_network_still_trains(tmp_path, level):
    """In a process of its own: O1 writes a rewritten network into the current folder and imports it."""
    printed = run_python(ROOT / "train.py", *TINY, "--dataset=synthetic", "--synthetic_train_images=16",
                         "--batch_size=8", f"--amp_level={level}", "--max_epoch=1", f"--ckpt_path={tmp_path}",
                         cwd=tmp_path).printed()
    assert "loss is" in printed
