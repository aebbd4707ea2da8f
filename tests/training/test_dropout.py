# SPDX-License-Identifier: Apache-2.0
"""The repeatable dropout: its statistics, that it repeats and can be placed, and its steps in training."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.training.cpu_layers import RepeatableDropout, repeatable_dropout
from src.weights.checkpoint import is_counter

ROOT = Path(__file__).resolve().parent.parent
ONES = Tensor(np.ones((64, 512), np.float32))
COUNT = ONES.size


@pytest.fixture(autouse=True, scope="module")
def graph_mode() -> Iterator[None]:
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    yield
    mindspore.set_context(mode=before)


def masks(cell: RepeatableDropout, steps: int) -> list[np.ndarray]:
    return [cell(ONES).asnumpy() != 0 for _ in range(steps)]


@pytest.fixture(scope="module")
def half() -> list[np.ndarray]:
    """Eight masks of one layer that drops every second element."""
    return masks(RepeatableDropout(0.5, seed=1).set_train(), 8)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """In units of its own standard deviation for independent masks, so that beyond 4.5 is no accident."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1] * np.sqrt(first.size))


def expected_mask(scrambled_seed: int, step: int, keep_below: int) -> np.ndarray:
    """The definition, in Python's own integers."""

    def mixed(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        return (x ^ (x >> 15)) * 0x846CA68B % 2**32

    key = mixed((scrambled_seed + step * 0x9E3779B1) % 2**32)
    return np.array([mixed((position + key) % 2**32) < keep_below for position in range(COUNT)])


def test_masks_are_those_of_the_definition(half: list[np.ndarray]) -> None:
    seed = int(np.random.SeedSequence((1,)).generate_state(1)[0])
    for step in (0, 7):
        assert np.array_equal(half[step].ravel(), expected_mask(seed, step, 2**31))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_keep_rate_and_scale(p: float) -> None:
    cell = RepeatableDropout(p, seed=2).set_train()
    values = np.stack([cell(ONES).asnumpy() for _ in range(4)])
    kept = values != 0
    assert np.allclose(values[kept], 1 / (1 - p))
    deviation = np.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 4.5 * deviation
    rows, columns = kept.mean(axis=(0, 2)), kept.mean(axis=(0, 1))
    assert np.abs(rows - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / (4 * 512))
    assert np.abs(columns - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / (4 * 64))


def test_steps_differ_and_are_independent(half: list[np.ndarray]) -> None:
    pairs = [(i, j) for i in range(8) for j in range(i)]
    assert max(abs(correlation(half[i], half[j])) for i, j in pairs) < 4.5


@pytest.mark.parametrize("shift", [(0, 1), (0, 2), (0, 16), (0, 256), (1, 0), (2, 0), (1, 1)])
def test_neighbours_are_independent(half: list[np.ndarray], shift: tuple[int, int]) -> None:
    found = [correlation(mask, np.roll(mask, shift, axis=(0, 1))) for mask in half]
    assert max(map(abs, found)) < 4.5
    assert abs(np.mean(found)) * np.sqrt(8) < 4.5


def test_layers_of_one_factory_differ_and_repeat() -> None:
    make, again, other = repeatable_dropout(7), repeatable_dropout(7), repeatable_dropout(8)
    first, second, first_again, foreign = (
        masks(factory(0.5).set_train(), 1)[0] for factory in (make, make, again, other)
    )
    assert np.array_equal(first, first_again)
    assert abs(correlation(first, second)) < 4.5 and abs(correlation(first, foreign)) < 4.5


def test_a_placed_counter_continues_the_masks(half: list[np.ndarray]) -> None:
    cell = RepeatableDropout(0.5, seed=1).set_train()
    cell.dropout_step.set_data(Tensor(5, mindspore.int32))
    assert np.array_equal(masks(cell, 2), half[5:7])
    assert int(cell.dropout_step.asnumpy()) == 7


def test_evaluation_is_the_identity_and_takes_no_step() -> None:
    cell = RepeatableDropout(0.5, seed=1).set_train(False)
    assert np.array_equal(cell(ONES).asnumpy(), ONES.asnumpy())
    assert int(cell.dropout_step.asnumpy()) == 0


def test_counters_are_told_from_weights(tmp_path: Path) -> None:
    network = nn.SequentialCell(nn.Dense(2, 2), RepeatableDropout(0.5, seed=1))
    names = [parameter.name for parameter in network.get_parameters()]
    assert [name for name in names if is_counter(name)] == ["1.dropout_step"]
    assert is_counter("dropout_step") and not is_counter("layers.0.dropout_step.weight")
    assert "1.dropout_step" not in [parameter.name for parameter in network.trainable_params()]
    network[1].dropout_step.set_data(Tensor(9, mindspore.int32))
    mindspore.save_checkpoint(network, str(tmp_path / "state.ckpt"))
    assert int(mindspore.load_checkpoint(str(tmp_path / "state.ckpt"))["1.dropout_step"].asnumpy()) == 9


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_bad_rates_raise(p: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        RepeatableDropout(p, seed=0)


class Scaled(nn.Cell):
    """sum(dropout(x * w)): its gradient for w shows the mask that the backward pass used."""

    def __init__(self, dropout: nn.Cell) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((64, 512), np.float32)), name="weight")
        self.layers = nn.SequentialCell(dropout)

    def construct(self, x: Tensor) -> Tensor:
        return self.layers(x * self.weight).sum()


def test_training_takes_one_step_each_and_both_passes_share_the_mask(half: list[np.ndarray]) -> None:
    network = Scaled(RepeatableDropout(0.5, seed=1))
    step = nn.TrainOneStepCell(network, nn.SGD(network.trainable_params(), learning_rate=1.0)).set_train()
    for index in range(3):
        before = network.weight.asnumpy().copy()
        loss = float(step(ONES).asnumpy())
        gradient = before - network.weight.asnumpy()
        assert np.array_equal(gradient != 0, half[index])
        assert loss == pytest.approx((before * gradient).sum(dtype=np.float64), rel=1e-4, abs=1.0)
        assert int(network.layers[0].dropout_step.asnumpy()) == index + 1


TRAIN = """
import sys
import mindspore, numpy as np
from mindspore import Tensor, nn
from src.crossentropy import CrossEntropy
from src.training.cpu_layers import repeatable_dropout

mindspore.set_context(mode=mindspore.GRAPH_MODE)
mindspore.set_device("CPU")
mindspore.set_seed(1)
drop = repeatable_dropout(1)
first, second, head = nn.Dense(32, 256), nn.Dense(256, 256), nn.Dense(256, 10)
network = nn.SequentialCell(first, nn.ReLU(), drop(0.5), second, drop(0.5), head)
random = np.random.RandomState(0)
images = random.standard_normal((64, 32)).astype(np.float32)
labels = np.arange(64, dtype=np.int32) % 10
images = mindspore.dataset.NumpySlicesDataset((images, labels), shuffle=False).batch(16)
optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
model = mindspore.Model(network, CrossEntropy(0.0, 10), optimizer)
model.train(3, images, dataset_sink_mode=False)
print([int(p.asnumpy()) for p in network.get_parameters() if is_counter(p.name)])
print(head.weight.asnumpy().tobytes().hex())
"""


def test_two_processes_train_alike_for_twelve_steps() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", TRAIN], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0].splitlines()[0] == "[12, 12]"
    assert runs[0] == runs[1]
