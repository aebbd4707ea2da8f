# SPDX-License-Identifier: Apache-2.0
"""How the parts of a run are put together, and what happens between its steps: on faked devices and contexts."""

from types import SimpleNamespace

import mindspore
import numpy as np
import pytest

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from src import build
from src.training import build_run
from src.training.hooks import (
    METRICS,
    DivergenceError,
    EvaluateWhileTraining,
    InputBoundHint,
    MetricsLog,
    PlateauWarning,
    Progress,
    check_loss,
)
from src.training.saving import Saver
from src.training.state import Conductor, Handler, TrainState
from src.utils.logging import set_up_logging

CPU, GPU, ASCEND = (Rank(0, 1, 1, target) for target in ("CPU", "GPU", "Ascend"))
RATES = np.linspace(0.1, 0.01, 20, dtype=np.float32)


def config(*flags: str):
    return get_config(["--network=vgg11", "--width=0.125", "--image_size=32", "--device_target=CPU", *flags])


def solver(*flags: str, rank: Rank = CPU) -> build.Solver:
    set_up_device(config())
    settings = config(*flags)
    return build.build_solver(settings, build.build_network(settings, CPU), RATES, rank)


# Optimizer, loss scale, precision


def test_weight_decay_is_on_convolution_and_dense_weights_alone():
    optimizer = solver("--weight_decay=0.25", "--has_bias=True").optimizer
    decays = {parameter.name: float(decay.asnumpy())
              for parameter, decay in zip(optimizer.parameters, optimizer.weight_decay, strict=True)}
    assert {name for name, decay in decays.items() if decay} \
        == {name for name in decays if name.endswith(".weight")} != set()
    assert set(decays.values()) == {0.0, 0.25}
    assert {name.rsplit(".", 1)[1] for name in decays} == {"weight", "bias", "gamma", "beta"}


@pytest.mark.parametrize(("flags", "nesterov", "momentum"), [((), False, 0.9), (("--use_nesterov",), True, 0.9),
                                                             (("--momentum=0.5",), False, 0.5)])
def test_momentum_and_nesterov_reach_the_optimizer(flags, nesterov, momentum):
    optimizer = solver(*flags).optimizer
    assert optimizer.use_nesterov is nesterov
    assert float(optimizer.momentum.asnumpy()) == pytest.approx(momentum)


def test_the_optimizer_has_one_learning_rate_per_step():
    optimizer = solver().optimizer
    assert np.array_equal(optimizer.learning_rate.learning_rate.asnumpy(), RATES)


@pytest.mark.parametrize("rank", [CPU, GPU, ASCEND])
def test_optimizer_and_loss_scale_manager_agree_on_a_fixed_scale(rank):
    made = solver("--loss_scale=1024", rank=rank)
    assert isinstance(made.loss_scale_manager, mindspore.FixedLossScaleManager)
    assert made.loss_scale_manager.get_loss_scale() == made.optimizer.loss_scale == 1024
    assert not made.loss_scale_manager.get_drop_overflow_update()  # the only kind that the CPU takes


@pytest.mark.parametrize("rank", [GPU, ASCEND])
def test_a_dynamic_loss_scale_has_its_manager_and_leaves_the_optimizer_unscaled(rank):
    made = solver("--loss_scale=dynamic", rank=rank)
    assert isinstance(made.loss_scale_manager, mindspore.DynamicLossScaleManager)
    assert made.optimizer.loss_scale == 1


def test_a_dynamic_loss_scale_on_cpu_is_refused():
    with pytest.raises(UserError, match="loss_scale: dynamic .*Ascend and GPU"):
        solver("--loss_scale=dynamic")


@pytest.mark.parametrize(("flag", "rank", "level"), [
    ("--amp_level=auto", CPU, "O0"), ("--amp_level=auto", GPU, "O2"), ("--amp_level=auto", ASCEND, "O2"),
    ("--amp_level=O2", CPU, "O2"), ("--amp_level=O0", ASCEND, "O0")])
def test_half_precision_is_taken_where_it_is_faster(flag, rank, level):
    assert solver(flag, rank=rank).amp_level == level


@pytest.mark.parametrize(("flags", "rank", "size"), [
    (("--dataset_sink_mode=auto",), CPU, 0), (("--dataset_sink_mode=True",), CPU, 0),
    (("--dataset_sink_mode=False",), GPU, 0), (("--dataset_sink_mode=auto",), ASCEND, 12),
    (("--dataset_sink_mode=True", "--sink_size=4"), GPU, 4), (("--sink_size=5",), GPU, 4),
    (("--sink_size=99",), GPU, 12), (("--log_interval=3",), GPU, 3), (("--log_interval=5",), ASCEND, 6)])
def test_data_is_sunk_where_the_device_can(flags, rank, size):
    assert build.sink_size(config(*flags), rank, 12) == size


def test_an_epoch_without_a_divisor_near_log_interval_is_not_sunk_unless_asked_for():
    for flags, sizes in (((), [78, 0, 0]), (("--dataset_sink_mode=True",), [78, 5003, 4])):  # 5003, 10009 are primes
        assert [build.sink_size(config(*flags), ASCEND, steps) for steps in (390, 5003, 40036)] == sizes
    assert build.sink_size(config("--graph_mode=False"), GPU, 390) == 0  # a sink there cannot be left after a signal


def formula(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
    """Cross entropy in which the label gets 1 - smoothing and the other classes share the rest."""
    target = np.full(logits.shape, smoothing / (logits.shape[1] - 1))
    target[np.arange(len(labels)), labels] = 1 - smoothing
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-(target * log_softmax).sum(axis=1).mean())


@pytest.mark.parametrize(("flags", "smoothing"), [
    (("--label_smooth=1", "--label_smooth_factor=0.2"), 0.2), (("--label_smooth=0", "--label_smooth_factor=0.2"), 0.0),
    (("--label_smoothing=0.1",), 0.1)])
def test_label_smoothing_reaches_the_loss(flags, smoothing):
    set_up_device(config())
    logits = np.random.RandomState(0).standard_normal((6, 10)).astype(np.float32)
    labels = np.array([0, 3, 9, 9, 1, 5], np.int32)
    loss = build.build_loss(config(*flags))(mindspore.Tensor(logits), mindspore.Tensor(labels))
    assert float(loss.asnumpy()) == pytest.approx(formula(logits, labels, smoothing), rel=1e-5)
    assert formula(logits, labels, 0.2) != pytest.approx(formula(logits, labels, 0.0), rel=1e-3)


@pytest.mark.parametrize(("flags", "first", "peak"), [
    (("--lr_scheduler=step", "--lr_init=0.02", "--lr_max=0.3"), 0.02, 0.3),
    (("--lr_scheduler=exponential", "--lr=0.4", "--lr_epochs=2"), 0.04, 0.4),
    (("--lr_scheduler=multi_step", "--lr=0.4", "--lr_epochs=2"), 0.04, 0.4),
    (("--lr_scheduler=cosine_annealing", "--lr=0.4"), 0.04, 0.4)])
def test_every_scheduler_has_its_schedule(flags, first, peak):
    rates = build.build_learning_rates(config(*flags, "--max_epoch=3", "--warmup_epochs=1"), 10)
    assert len(rates) == 30 and rates[0] == pytest.approx(first) and rates.max() == pytest.approx(peak, rel=0.1)


def test_a_warm_up_longer_than_the_run_is_said():
    settings = config("--dataset=synthetic", "--synthetic_train_images=20", "--batch_size=5", "--warmup_epochs=9",
                      "--max_epoch=2")
    data, network = build.build_train_data(settings, CPU), build.build_network(settings, CPU)
    assert any("warm-up of 9 epochs is longer than the run of 2" in line
               for line in build_run.describe(settings, CPU, data, network))


# Between the steps


class Recorder(Handler):
    """Notes when it is called."""

    def __init__(self) -> None:
        self.steps, self.epochs = [], []

    def on_step(self, state: TrainState) -> None:
        self.steps.append(state.step)

    def on_epoch(self, state: TrainState) -> None:
        self.epochs.append((state.epoch, state.step, list(state.losses)))


def drive(losses: list[float], *, per_call: int, steps_per_epoch: int, read_every: int = 1, handlers=(),
          before_call=lambda: None, during_call=lambda: None) -> TrainState:
    """What MindSpore does with the callback when it reports every `per_call` steps with the last one's loss."""
    state = TrainState(steps_per_epoch, np.linspace(0.1, 0.01, len(losses) * per_call, dtype=np.float32), 8)
    conductor = Conductor(state, handlers, check=check_loss, read_every=read_every)
    params = SimpleNamespace(cur_step_num=0, net_outputs=None)
    context = SimpleNamespace(original_args=lambda: params, request_stop=lambda: None)
    conductor.on_train_begin(context)
    for loss in losses:
        before_call()
        conductor.on_train_step_begin(context)
        during_call()
        params.cur_step_num += per_call
        params.net_outputs = mindspore.Tensor(loss, mindspore.float32)
        conductor.on_train_step_end(context)
    conductor.on_train_end(context)
    return state


def test_every_step_is_counted_when_each_is_reported():
    recorder = Recorder()
    state = drive([4, 3, 2, 1], per_call=1, steps_per_epoch=2, handlers=[recorder])
    assert recorder.steps == [1, 2, 3, 4]
    assert recorder.epochs == [(1, 2, [4, 3]), (2, 4, [2, 1])]
    assert state.epoch_losses == [3.5, 1.5]


def test_every_step_is_counted_when_sunk_steps_are_reported_together():
    recorder = Recorder()
    state = drive([4, 3, 2, 1], per_call=5, steps_per_epoch=10, handlers=[recorder])
    assert recorder.steps == [5, 10, 15, 20]
    assert recorder.epochs == [(1, 10, [4, 3]), (2, 20, [2, 1])]
    assert state.step == 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_divergence_names_the_step_and_its_rate(bad):
    with pytest.raises(DivergenceError, match=rf"{bad} in step 3 of the run, at learning rate 0\.04 *\. ") as error:
        drive([2, 2, bad, 2], per_call=1, steps_per_epoch=4)
    assert error.value.exit_status == 1


def test_divergence_in_sunk_steps_names_the_range():
    with pytest.raises(DivergenceError, match="in steps 6 to 10 of the run"):
        drive([2, float("nan"), 2], per_call=5, steps_per_epoch=20, read_every=100)


def test_divergence_is_found_when_the_losses_are_read():
    """On a device that runs ahead, losses are read now and then; the step named is still the one it happened in."""
    with pytest.raises(DivergenceError, match="in step 2 of the run"):
        drive([2, float("nan"), 2, 2, 2, 2], per_call=1, steps_per_epoch=6, read_every=4)


def test_a_finite_loss_passes():
    assert check_loss(2.3, 1, 1, 0.1) is None


def test_the_advice_names_three_causes():
    with pytest.raises(DivergenceError) as error:
        check_loss(float("nan"), 7, 7, 0.125)
    text = str(error.value)
    assert "learning rate 0.125" in text
    assert text.count("\n  ") == 3 and all(flag in text for flag in ("--lr", "--warmup_epochs", "--loss_scale"))


class LossLines(Progress):
    """The lines of the steps, without those of the epochs."""

    def on_epoch(self, state: TrainState) -> None:
        pass


def printed(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("read_every", [1, 2])
def test_a_loss_line_shows_the_loss_of_its_own_step(capsys, read_every):
    set_up_logging()
    drive([1, 2, 3, 4, 5, 6], per_call=1, steps_per_epoch=3, read_every=read_every,
          handlers=[LossLines(2, show_bar=False)])
    assert printed(capsys) == ["epoch: 1 step: 2, loss is 2.000000", "epoch: 1 step: 3, loss is 3.000000",
                               "epoch: 2 step: 2, loss is 5.000000", "epoch: 2 step: 3, loss is 6.000000"]


def test_sunk_steps_print_a_line_when_the_interval_was_passed(capsys):
    set_up_logging()
    drive([1, 2, 3, 4], per_call=3, steps_per_epoch=12, read_every=100, handlers=[LossLines(4, show_bar=False)])
    assert printed(capsys) == ["epoch: 1 step: 6, loss is 2.000000", "epoch: 1 step: 9, loss is 3.000000",
                               "epoch: 1 step: 12, loss is 4.000000"]


@pytest.mark.parametrize(("losses", "steps_per_epoch", "warnings"), [
    ([2.5] * 9 + [2.303] * 10, 19, 1), ([2.303, 2.302] * 12, 12, 1), ([9.0] * 12, 12, 1),
    ([2.303] * 9 + [1.9] * 3, 12, 0), ([2.303] * 11, 12, 0), ([2.303] * 2, 2, 0)])  # the last: cut short; few steps
def test_a_loss_that_stays_at_guessing_or_above_warns_once(capsys, losses, steps_per_epoch, warnings):
    set_up_logging()
    drive(losses, per_call=1, steps_per_epoch=steps_per_epoch, handlers=[PlateauWarning(10)])
    lines = printed(capsys)
    assert len(lines) == warnings
    for line in lines:
        assert line.startswith("warning: ") and "2.303" in line and "epoch 1 " in line and "loss is" not in line
        assert all(advice in line for advice in ("--lr", "--warmup_epochs", "--batch_norm=True"))


def test_an_epoch_that_goes_on_later_has_one_row(tmp_path):
    """Two runs into the same file, the first of which ended in the middle of its second epoch."""
    saver = Saver(tmp_path, on_error="stop", needed_bytes=0)
    for losses in ([3, 3, 2], [3, 3, 1, 1]):
        drive(losses, per_call=1, steps_per_epoch=2,
              handlers=[MetricsLog(tmp_path, saver, first_step=3, done_epochs=1)])
    rows = [row.split(",")[:3] for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows == [["epoch", "step", "loss"], ["1", "2", "3"], ["2", "4", "1"]]


@pytest.mark.parametrize("damage", ["", "epoch,step\n", "\x00" * 40, ",".join(METRICS) + "\n1,2"])
def test_a_metrics_file_that_a_power_failure_cut_short_is_begun_anew(tmp_path, damage):
    (tmp_path / "metrics.csv").write_text(damage)
    saver = Saver(tmp_path, on_error="stop", needed_bytes=0)
    drive([3, 3], per_call=1, steps_per_epoch=2, handlers=[MetricsLog(tmp_path, saver, first_step=9)])
    rows = [row.split(",")[:3] for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows == [["epoch", "step", "loss"], ["1", "2", "3"]]


def test_a_best_checkpoint_that_could_not_be_saved_does_not_keep_out_the_next():
    accuracies, written, saved = iter((0.9, 0.5, 0.4)), iter((False, True)), []
    counts = SimpleNamespace(top1=lambda: next(accuracies), topk=lambda: 1.0)

    def save() -> bool:
        saved.append(next(written))
        return saved[-1]

    evaluate = EvaluateWhileTraining(lambda: SimpleNamespace(counts=counts), every=1, save_best=save)
    drive([3, 2, 1], per_call=1, steps_per_epoch=1, handlers=[evaluate])
    assert saved == [False, True]


@pytest.mark.parametrize(("waiting_s", "share"), [(0.1, None), (0.2, None), (0.25, 20), (1.0, 50), (9.0, 90)])
@pytest.mark.parametrize("read_every", [1, 3])
def test_waiting_for_data_is_said_when_it_is_a_good_part_of_the_step(monkeypatch, capsys, waiting_s, share, read_every):
    clock = SimpleNamespace(now_s=100.0, perf_counter=lambda: clock.now_s)

    def spend(seconds: float):
        return lambda: setattr(clock, "now_s", clock.now_s + seconds)

    monkeypatch.setattr("src.training.state.time", clock)
    set_up_logging()
    drive([2.0] * 7, per_call=1, steps_per_epoch=7, read_every=read_every, handlers=[InputBoundHint(3)],
          before_call=spend(waiting_s), during_call=spend(1.0))
    lines = printed(capsys)
    assert [line.split(":")[0] for line in lines] == ["input-bound"] * (share is not None)
    assert all(f"{share} % of the step" in line and "now 3" in line for line in lines)
