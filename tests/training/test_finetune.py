# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: what is frozen stands still and costs no gradient, the head may move faster, and the log says so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
import pytest
from foreign_files import make, torchvision, write_pth
from helpers import Outcome, only_folder, run_main, run_python, write_class_folders
from mindspore import nn

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from model_utils.errors import UserError
from src import build
from src.training.optimizer import freeze, moving_statistics, speed_up_head
from src.utils.util import get_param_groups
from src.vgg import VGG
from src.weights.load import read_weights

CLASSES = ("ant", "bee", "cow")
TEN_STEPS = "--batch_size=4"  # of 14 images each of three classes
CLASSIFIER = {f"classifier.{index}.{part}" for index in (0, 3, 6) for part in ("weight", "bias")}


@pytest.fixture(autouse=True, scope="module")
def mode() -> Iterator[None]:
    """The mode of the other modules, when this one is done."""
    before = mindspore.get_context("mode")
    yield
    mindspore.set_context(mode=before)


class Bench(NamedTuple):
    """A foreign file of seven classes, images of three, and the flags that train the one on the other."""

    file: Path
    flags: tuple[str, ...]

    def train(self, runs: Path, *flags: str) -> Outcome:
        return run_main("train", *self.flags, f"--ckpt_path={runs}", *flags)

    def refused(self, runs: Path, *flags: str) -> str:
        outcome = self.train(runs, *flags)
        assert outcome.status == 2 and "Traceback" not in outcome.err and not runs.exists(), outcome
        return outcome.err


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    write_class_folders(folder / "data", classes=CLASSES, each=14)
    file = write_pth(folder / "vgg11_bn.pth", torchvision(make("vgg11", batch_norm=True)))
    return Bench(file, (
        "--dataset=imagenet2012", f"--data_dir={folder / 'data'}", "--num_classes=3", "--image_size=64", "--lr=0.01",
        "--batch_size=14", "--max_epoch=1", "--device_target=CPU", "--graph_mode=False", f"--pre_trained={file}"))


def last_weights(runs: Path) -> dict[str, np.ndarray]:
    folder = only_folder(runs)
    paths = sorted(folder.glob("ckpt_0/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return read_weights(paths[-1]).arrays


def moved(file: Path, runs: Path) -> set[str]:
    """The parameters and statistics that are no longer those of the file, bit for bit."""
    before, after = read_weights(file).arrays, last_weights(runs)
    return {name for name in after if before[name].tobytes() != after[name].tobytes()}


def movable(file: Path) -> set[str]:
    """All but the biases of convolutions: what they add, batch normalisation takes away, so their gradient is 0."""
    return {name for name in read_weights(file).arrays if not re.fullmatch(r"layers\.\d+\.bias", name)}


# What stands still


@pytest.mark.parametrize("graph_mode", [True, False])
def test_frozen_features_are_bit_identical_after_training_and_evaluating(bench, tmp_path, graph_mode):
    outcome = bench.train(tmp_path / "runs", "--freeze=features", "--mode=train_and_evaluate", "--max_epoch=2",
                          f"--graph_mode={graph_mode}", TEN_STEPS)
    assert outcome.status == 0, outcome
    assert outcome.out.count("after allreduce eval: top1") == 2  # between the epochs, too, the network changed its mode
    assert "epoch: 2 step: 10, loss is" in outcome.out
    assert moved(bench.file, tmp_path / "runs") == CLASSIFIER
    assert "vgg11, 395,779 trainable parameters of 541,027 (frozen: features), 3 classes" in outcome.out


def test_without_freezing_everything_moves(bench, tmp_path):
    assert bench.train(tmp_path / "runs", TEN_STEPS).status == 0
    assert moved(bench.file, tmp_path / "runs") >= movable(bench.file)


def test_a_frozen_classifier_keeps_its_head_and_moves_the_rest(bench, tmp_path):
    file = write_pth(tmp_path / "three.pth", torchvision(make("vgg11", batch_norm=True, classes=3)))
    outcome = bench.train(tmp_path / "runs", f"--pre_trained={file}", "--freeze=classifier")
    assert outcome.status == 0, outcome
    changed = moved(file, tmp_path / "runs")
    assert not changed & CLASSIFIER and changed >= movable(file) - CLASSIFIER


def backward_operations(folder: Path) -> dict[str, int]:
    """How often the compiled training step has the gradient of a convolution, by its weights and by its input."""
    dumps = [path for path in folder.rglob("*_validate_*.ir") if "Momentum" in path.read_text(errors="replace")]
    if not dumps:
        pytest.skip("this MindSpore writes no graphs")
    text = "\n".join(path.read_text(errors="replace") for path in dumps)
    return {name: len(re.findall(rf"\) = {name}\(", text)) for name in
            ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput", "PrimFunc_BatchNormGrad")}


@pytest.mark.parametrize(("frozen", "trained"), [
    ("layers.?.*", 5), pytest.param("features", 0, marks=pytest.mark.slow)])
def test_no_gradient_is_computed_below_the_frozen_line(bench, tmp_path, monkeypatch, frozen, trained):
    """layers.0 to layers.9 hold three of the eight convolutions; the lowest trained one needs no gradient for below."""
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS", "1")
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS_PATH", str(tmp_path / "graphs"))
    outcome = run_python("train.py", *bench.flags, f"--ckpt_path={tmp_path / 'runs'}", "--graph_mode=True",
                         f"--freeze={frozen}")
    assert outcome.status == 0, outcome
    assert backward_operations(tmp_path / "graphs") == {
        "Conv2D": 8, "Conv2DBackpropFilter": trained, "Conv2DBackpropInput": max(0, trained - 1),
        "PrimFunc_BatchNormGrad": trained}


# What is named


def small_network(**changes: object) -> VGG:
    return VGG("vgg11", 10, image_size=(32, 32), width=0.02, **changes)


def test_patterns_name_parameters_and_statistics():
    network = small_network()
    assert freeze(network, None) == [] and len(moving_statistics(network)) == 16
    frozen = freeze(network, "layers.0.*, layers.1.*,classifier.3.bias")
    assert frozen == ["layers.0.weight", "layers.1.moving_mean", "layers.1.moving_variance", "layers.1.gamma",
                      "layers.1.beta", "classifier.3.bias"]
    groups = get_param_groups(network, 1e-4)
    trained = {parameter.name for group in groups for parameter in group["params"]}
    assert not trained & set(frozen) and "layers.4.weight" in trained and "classifier.3.weight" in trained
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    assert [norm.use_batch_statistics for norm in norms] == [False] + [None] * 7
    assert len(moving_statistics(network)) == 14


@pytest.mark.parametrize(("pattern", "message"), [
    ("featurs", "'featurs' names no parameter"), ("layers.99.*", "allowed are features, classifier, none"),
    ("features,classifier", "leaves nothing to train"), ("*", "leaves nothing to train")])
def test_patterns_that_make_no_sense_are_refused(pattern, message):
    with pytest.raises(UserError, match=re.escape(message)):
        freeze(small_network(), pattern)


def test_a_head_that_begins_anew_cannot_be_frozen(bench, tmp_path):
    text = bench.refused(tmp_path / "runs", "--freeze=classifier")
    assert "freezes classifier.6.bias, classifier.6.weight" in text and "would never learn" in text
    assert "names no parameter" in bench.refused(tmp_path / "runs", "--freeze=features,heads")


# The head


def test_the_head_moves_faster_by_the_multiplier(bench):
    """Two equal networks and one step: only the head has gone another way, ten times as far."""

    def change(multiplier: float) -> dict[str, np.ndarray]:
        config = get_config([*bench.flags, f"--head_lr_multiplier={multiplier}", "--network=vgg11", "--width=0.02",
                             "--weight_decay=0", "--dropout_rate=0"])
        rank = set_up_device(config)
        mindspore.set_seed(3)
        network = build.build_network(config, rank)
        before = {parameter.name: parameter.asnumpy().copy() for parameter in network.trainable_params()}
        solver = build.build_solver(config, network, np.full(4, 0.01, np.float32), rank)
        step = nn.TrainOneStepCell(nn.WithLossCell(network, build.build_loss(config)), solver.optimizer).set_train()
        images = np.random.RandomState(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
        step(mindspore.Tensor(images), mindspore.Tensor(np.arange(4) % 3, mindspore.int32))
        return {parameter.name: parameter.asnumpy() - before[parameter.name]
                for parameter in network.trainable_params()}

    plain, faster = change(1), change(10)
    for name, difference in plain.items():
        wanted = 10 * difference if name.startswith("classifier.6") else difference
        assert difference.any() or name.endswith("bias")
        np.testing.assert_allclose(faster[name], wanted, atol=1e-6, err_msg=name)


def test_every_parameter_is_in_one_group():
    network = small_network()
    groups = get_param_groups(network, 1e-4)
    assert speed_up_head(groups, np.ones(3, np.float32), 1) == groups
    parts = speed_up_head(groups, np.ones(3, np.float32), 5)
    names = [parameter.name for group in parts for parameter in group["params"]]
    assert sorted(names) == sorted(parameter.name for parameter in network.trainable_params())
    assert [(group["weight_decay"], "lr" in group) for group in parts] == [
        (1e-4, False), (1e-4, True), (0.0, False), (0.0, True)]
    assert all(np.array_equal(group["lr"].asnumpy(), np.full(3, 5)) for group in parts if "lr" in group)


def test_a_head_that_is_not_trained_cannot_be_sped_up():
    network = small_network()
    freeze(network, "classifier")
    with pytest.raises(UserError, match="head_lr_multiplier: is 5, but the head is not trained"):
        speed_up_head(get_param_groups(network, 1e-4), np.ones(3, np.float32), 5)


# Other images, and what remains of the run


def test_images_of_another_size_begin_with_a_new_classifier_or_are_pooled(bench, tmp_path):
    outcome = bench.train(tmp_path / "new", "--image_size=96")
    assert "the classifier of the file takes 256 features, images of this size have 576)" in outcome.out
    assert "loaded: 48 of the network's 54 tensors" in outcome.out and outcome.status == 0
    file = write_pth(tmp_path / "seven.pth", torchvision(make(
        "vgg11", batch_norm=True, map_side=7, channels=(8, 8, 8, 8, 8), hidden=64)))
    plain = bench.train(tmp_path / "plain", f"--pre_trained={file}")
    assert "images of this size have 32; --average_pool=True keeps it)" in plain.out and plain.status == 0
    pooled = bench.train(tmp_path / "pooled", f"--pre_trained={file}", "--average_pool", "--mode=train_and_evaluate")
    assert "loaded: 52 of the network's 54 tensors" in pooled.out and pooled.status == 0
    checkpoint = only_folder(tmp_path / "pooled") / "best.ckpt"
    assert read_weights(checkpoint).info.average_pool  # and so it evaluates without a flag
    data = [flag for flag in bench.flags if "data" in flag or "mode" in flag]
    again = run_main("eval", *data, f"--pre_trained={checkpoint}", f"--ckpt_path={tmp_path / 'evaluations'}")
    assert re.findall("top1_correct.*", again.out) == re.findall("top1_correct.*", pooled.out)[-1:]


def test_the_class_names_are_those_of_the_folders(bench, tmp_path):
    assert bench.train(tmp_path / "runs", "--mode=train_and_evaluate", "--freeze=features").status == 0
    checkpoint = only_folder(tmp_path / "runs") / "best.ckpt"
    assert read_weights(checkpoint).info.class_names == CLASSES
    data = [flag for flag in bench.flags if "data" in flag or "mode" in flag]
    assert run_main("eval", *data, f"--pre_trained={checkpoint}", f"--ckpt_path={tmp_path / 'evaluations'}").status == 0
    rows = next((tmp_path / "evaluations").rglob("per_class.csv")).read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == list(CLASSES)


def test_a_resumed_run_stays_frozen_and_must_not_thaw(bench, tmp_path):
    flags = ("--freeze=features", "--lr_scheduler=exponential", "--warmup_epochs=0")
    assert bench.train(tmp_path / "runs", *flags).status == 0
    again = bench.train(tmp_path / "runs", *flags, "--max_epoch=2", "--resume")
    assert again.status == 0 and "resuming" in again.out, again
    assert moved(bench.file, tmp_path / "runs") == CLASSIFIER
    thawed = bench.train(tmp_path / "runs", *flags[1:], "--max_epoch=3", "--resume")
    assert thawed.status == 2 and "freeze: features, now None" in thawed.err
