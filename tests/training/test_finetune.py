# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: what is frozen does not change and costs no gradient."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
import pytest
from foreign_files import make, torchvision, write_safetensors
from helpers import CLASSES, TINY, Outcome, only_folder, run_main, write_class_folders
from mindspore import nn

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from src.build import build_loss, build_model, build_network
from src.training.optimizer import freeze, get_param_groups, moving_statistics
from src.vgg import vgg11
from src.weights.load import read_weights

pytestmark = pytest.mark.usefixtures("graph_mode")
CLASSIFIER = {f"classifier.{index}.{part}" for index in (0, 3, 6) for part in ("weight", "bias")}


class Bench(NamedTuple):
    """A torchvision file of seven classes, images of three, and the flags that train the one on the other."""

    file: Path
    flags: tuple[str, ...]

    def train(self, runs: Path, *flags: str) -> Outcome:
        return run_main("train", *self.flags, f"--ckpt_path={runs}", *flags)

    def evaluate(self, runs: Path, checkpoint: Path) -> Outcome:
        data = [flag for flag in self.flags if "data" in flag or "mode" in flag]
        return run_main("eval", *data, f"--pre_trained={checkpoint}", f"--ckpt_path={runs}", "--device_target=CPU")


def write_torchvision(path: Path, **options: Any) -> Path:
    """A narrow vgg11_bn with random weights, under the names of torchvision."""
    return write_safetensors(path, torchvision(make("vgg11", batch_norm=True, **options)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    write_class_folders(folder / "data", classes=CLASSES, each=14)
    file = write_torchvision(folder / "vgg11_bn.safetensors")
    return Bench(file, (
        "--dataset=imagenet2012", f"--data_dir={folder / 'data'}", "--num_classes=3", "--image_size=64", "--lr=0.01",
        "--batch_size=14", "--max_epoch=1", "--device_target=CPU", "--graph_mode=False", f"--pre_trained={file}"))


def moved(file: Path, runs: Path) -> set[str]:
    """The parameters and statistics that are no longer those of the file, bit for bit."""
    newest = max(only_folder(runs).glob("ckpt_0/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    before, after = read_weights(file).arrays, read_weights(newest).arrays
    return {name for name in after if before[name].tobytes() != after[name].tobytes()}


def movable(file: Path) -> set[str]:
    """All but the biases of convolutions: what they add, batch normalisation takes away, so their gradient is 0."""
    return {name for name in read_weights(file).arrays if not re.fullmatch(r"layers\.\d+\.bias", name)}


@pytest.mark.parametrize("graph_mode", [True, False])
def test_frozen_features_keep_their_bits_while_training_and_evaluating(bench, tmp_path, graph_mode):
    printed = bench.train(tmp_path / "runs", "--freeze=features", "--mode=train_and_evaluate", "--max_epoch=2",
                          f"--graph_mode={graph_mode}").printed()
    assert printed.count("after allreduce eval: top1") == 2  # between the epochs, too, the network changed its mode
    assert "epoch: 2 step: 3, loss is" in printed
    assert moved(bench.file, tmp_path / "runs") == CLASSIFIER
    assert "vgg11, 395,779 trainable parameters of 541,027 (frozen: features), 3 classes" in printed
    assert read_weights(only_folder(tmp_path / "runs") / "best.ckpt").info.class_names == CLASSES
    if graph_mode:
        return
    again = bench.train(tmp_path / "runs", "--freeze=features", "--max_epoch=3", "--resume")
    assert again.status == 0 and "resuming" in again.out and "epoch: 3 step: 3, loss is" in again.out, again
    assert moved(bench.file, tmp_path / "runs") == CLASSIFIER


def test_a_frozen_classifier_keeps_its_head_and_nothing_frozen_moves_all(bench, tmp_path):
    assert bench.train(tmp_path / "all").status == 0
    assert moved(bench.file, tmp_path / "all") >= movable(bench.file)
    file = write_torchvision(tmp_path / "three.safetensors", classes=3)
    bench.train(tmp_path / "runs", f"--pre_trained={file}", "--freeze=classifier").printed()
    changed = moved(file, tmp_path / "runs")
    assert not changed & CLASSIFIER and changed >= movable(file) - CLASSIFIER


def test_patterns_name_parameters_and_statistics():
    network = vgg11(10, image_size=(32, 32), width=0.02)
    assert freeze(network, None) == [] and len(moving_statistics(network)) == 16
    frozen = freeze(network, "layers.0.*, layers.1.*,classifier.3.bias")
    assert frozen == ["layers.0.weight", "layers.1.moving_mean", "layers.1.moving_variance", "layers.1.gamma",
                      "layers.1.beta", "classifier.3.bias"]
    trained = {parameter.name for group in get_param_groups(network, 1e-4) for parameter in group["params"]}
    assert not trained & set(frozen) and "layers.4.weight" in trained and "classifier.3.weight" in trained
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    assert [norm.use_batch_statistics for norm in norms] == [False] + [None] * 7
    assert len(moving_statistics(network)) == 14


def test_the_head_learns_faster_by_the_multiplier(bench, tmp_path):
    """Two equal networks and one step: only the head has gone another way, ten times as far."""

    def change(multiplier: float) -> dict[str, np.ndarray]:
        config = get_config([*TINY, f"--head_lr_multiplier={multiplier}", "--weight_decay=0", "--dropout_rate=0"])
        mindspore.set_seed(3)
        network = build_network(config, Rank())
        before = {parameter.name: parameter.asnumpy().copy() for parameter in network.trainable_params()}
        optimizer = build_model(config, Rank(), network, build_loss(config), np.full(4, 0.01, np.float32))._optimizer
        assert sorted(item.name for item in optimizer.parameters) == sorted(before)  # each in one group
        step = nn.TrainOneStepCell(nn.WithLossCell(network, build_loss(config)), optimizer).set_train()
        images = np.random.RandomState(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
        step(mindspore.Tensor(images), mindspore.Tensor(np.arange(4) % 3, mindspore.int32))
        return {parameter.name: parameter.asnumpy() - before[parameter.name]
                for parameter in network.trainable_params()}

    plain, faster = change(1), change(10)
    for name, difference in plain.items():
        wanted = 10 * difference if name.startswith("classifier.6") else difference
        assert difference.any() or name.endswith("bias")
        np.testing.assert_allclose(faster[name], wanted, atol=1e-6, err_msg=name)
    file = write_torchvision(tmp_path / "three.safetensors", classes=3)
    outcome = bench.train(tmp_path / "runs", "--head_lr_multiplier=5", "--freeze=classifier", f"--pre_trained={file}")
    assert outcome.status == 2 and "head_lr_multiplier: is 5" in outcome.err and not (tmp_path / "runs").exists()


def test_images_of_another_size_get_a_new_classifier_or_are_pooled(bench, tmp_path):
    assert "loaded: 48 of the network's 54 tensors" in bench.train(tmp_path / "new", "--image_size=96").printed()
    file = write_torchvision(tmp_path / "seven.safetensors", map_side=7, channels=(8, 8, 8, 8, 8), hidden=64)
    assert "--average_pool=True keeps it" in bench.train(tmp_path / "plain", f"--pre_trained={file}").printed()
    pooled = bench.train(tmp_path / "pooled", f"--pre_trained={file}", "--average_pool", "--mode=train_and_evaluate")
    assert "loaded: 52 of the network's 54 tensors" in pooled.out and pooled.status == 0, pooled
    checkpoint = only_folder(tmp_path / "pooled") / "best.ckpt"
    assert read_weights(checkpoint).info.average_pool  # and so it evaluates without a flag
    again = bench.evaluate(tmp_path / "evaluations", checkpoint)
    assert re.findall("top1_correct.*", again.out) == re.findall("top1_correct.*", pooled.out)[-1:]
