# SPDX-License-Identifier: Apache-2.0
"""What a Config says arrives where it counts: in the rates, the initial values, the optimizer, the files."""

from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from helpers import run_main, write_cifar10

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import GROUPS, Config
from src import build
from src.deploy.model_card import find_card
from src.training import saving
from src.training.cpu_layers import RepeatableDropout
from src.training.resume import FIXED_KEYS, FORCEABLE_KEYS, Identity, ResumePoint, check_differences
from src.training.saving import SaveCheckpoints, SaveStates
from src.utils.signals import StopSignals
from src.weights.checkpoint import find_checkpoints, save_checkpoint
from src.weights.model_info import ModelInfo

CPU = Rank(0, 1, 1, "CPU")


def config(*flags: str) -> Config:
    return get_config(["--network=vgg11", "--width=0.125", "--image_size=32", "--device_target=CPU", *flags])


# Rates, initial values, precision


def test_linear_rates_are_multiplied():
    plain, linear = (build.build_learning_rates(config("--batch_size=16", *flags), 4, 3)
                     for flags in ((), ("--lr_scale=linear", "--lr_base_batch=8")))
    np.testing.assert_allclose(linear, 6 * plain, rtol=1e-6)


@pytest.mark.parametrize(("flags", "last"), [
    (("--lr_scheduler=exponential", "--lr=0.4", "--lr_epochs=2", "--lr_gamma=0.5"), 0.2),
    (("--lr_scheduler=exponential", "--lr=0.4", "--lr_epochs=1,2", "--lr_gamma=0.1"), 0.004),
    (("--lr_scheduler=cosine_annealing", "--lr=0.4", "--eta_min=0.1", "--T_max=2"), 0.1),
    (("--lr_scheduler=step", "--lr_max=0.3", "--lr_init=0.3", "--max_train_steps=1"), 0.3)])
def test_the_keys_of_a_schedule_are_its_end(flags, last):
    rates = build.build_learning_rates(config("--max_epoch=3", "--warmup_epochs=0", *flags), 10)
    assert rates[-1] == pytest.approx(last, rel=1e-5)


def test_initialize_mode_is_how_weights_begin():
    set_up_device(config())
    first = {}
    for mode in ("XavierUniform", "KaimingNormal", "Dirac"):
        mindspore.set_seed(1)
        parameters = build.build_network(config(f"--initialize_mode={mode}"), CPU).parameters_dict()
        first[mode] = parameters["layers.4.weight"].asnumpy()
    assert all(not np.allclose(first[one], first[other]) for one, other in (
        ("XavierUniform", "KaimingNormal"), ("KaimingNormal", "Dirac"), ("Dirac", "XavierUniform")))
    limit = np.sqrt(6 / (9 * (8 + 16)))
    assert 0.9 * limit < np.abs(first["XavierUniform"]).max() <= limit < np.abs(first["KaimingNormal"]).max()
    assert (first["Dirac"][range(8), range(8), 1, 1] == 1).all()


def test_precision_and_loss_scale_reach_the_model(monkeypatch):
    set_up_device(config())
    asked = {}
    monkeypatch.setattr(mindspore, "Model", lambda *args, **options: asked.update(options))
    settings = config("--amp_level=O2", "--loss_scale=1024")
    build.build_model(settings, build.build_network(settings, CPU), np.ones(4, np.float32), CPU)
    assert asked["amp_level"] == "O2" and asked["loss_scale_manager"].get_loss_scale() == 1024


# Ranks


def test_ranks_drop_and_crop_differently(tmp_path):
    set_up_device(config())
    networks = [build.build_network(config(), Rank(rank, 2, 1, "CPU")) for rank in (0, 1)]
    seeds = [[int(cell.seed.asnumpy()) for _, cell in network.cells_and_names() if isinstance(cell, RepeatableDropout)]
             for network in networks]
    assert len(set(sum(seeds, []))) == 4  # two layers on each of two ranks
    written = write_cifar10(tmp_path)
    image = np.random.RandomState(1).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    settings = config(f"--data_dir={written.folder}", "--batch_size=16")
    crops = []
    for rank in (0, 1):
        data = build.build_train_data(settings, Rank(rank, 2, 1, "CPU"))
        data.reader.images[:] = image
        crops.append(next(iter(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True)))[0])
    assert not np.array_equal(*crops)


# Files


def test_a_checkpoint_brings_its_own_normalisation(tmp_path):
    set_up_device(config())
    theirs = config("--image_mean=0.1,0.2,0.3", "--image_std=0.4,0.5,0.6")
    path = tmp_path / "own.ckpt"
    save_checkpoint(path, build.build_network(theirs, CPU), ModelInfo.of(theirs, tuple("0123456789")))
    found = build.ModelLoader(config(), CPU).load(path).config
    assert found.preset[1:3] == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    done = run_main("export", f"--ckpt_file={path}", f"--file_name={tmp_path / 'own'}", "--device_target=CPU",
                    "--parity_check=False")
    assert done.status == 0, done.err
    assert find_card(tmp_path / "own.mindir").info.preset[1:3] == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_folders_that_a_pattern_names_are_searched(tmp_path):
    for name in ("a.ckpt", "run1/ckpt_0/0-1_5.ckpt", "run2/best.ckpt", "run2/curves.png", "other/best.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(path.relative_to(tmp_path)) for path in find_checkpoints(f"{tmp_path}/[ar]*")}
    assert found == {"a.ckpt", "run1/ckpt_0/0-1_5.ckpt", "run2/best.ckpt"}
    assert len(find_checkpoints(f"{tmp_path}/**/*.ckpt")) == 4


def test_the_oldest_checkpoint_is_that_of_the_first_epoch(tmp_path):
    handler = SaveCheckpoints(tmp_path / "c", lambda path: path.touch(), lambda name, write: not write(), rank=0,
                              interval=1, keep=2)
    own_copies = ["0-3_5 of the paper.ckpt", "0-best.ckpt", "1-3_5.ckpt"]
    for name in own_copies:
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / name).touch()
    for epoch in (*range(8, 12), 10):  # in the end taken back
        handler.on_epoch(SimpleNamespace(epoch=epoch, step=5 * epoch, is_over=False, step_in_epoch=5 - epoch // 11))
        assert (tmp_path / "c" / f"0-{epoch}_{5 - epoch // 11}.ckpt").exists()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["0-10_5.ckpt", "0-11_4.ckpt", *own_copies]


@pytest.mark.parametrize("saved_everywhere", [True, False])
def test_minutes_are_minutes_and_old_states_go_when_all_ranks_have_the_new_one(tmp_path, monkeypatch, saved_everywhere):
    clock, written, removed = SimpleNamespace(s=0.0), [], []
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: clock.s))
    monkeypatch.setattr(saving, "sum_integers", lambda values, size: np.asarray(values) * size if saved_everywhere
                        else np.asarray(values))
    monkeypatch.setattr(saving, "remove_old_states", lambda folder, step: removed.append(step))
    state = SimpleNamespace(epoch_ends=False, is_over=False, unsaved=[], read_losses=lambda: None, stop_signal=0,
                            problem=None)
    handler = SaveStates(lambda: written.append(clock.s), lambda name, write: not write(), StopSignals(),
                         folder=tmp_path, rank=0, world_size=2, interval_epochs=1, interval_steps=None,
                         interval_minutes=1, agree_every=1, first_step=0)
    for state.step, clock.s in enumerate((0, 59, 61, 62, 122), start=1):
        handler.after_step(state)
    assert written == [61, 122] and removed == ([3, 5] if saved_everywhere else [])


# Resuming

HARMLESS = {"mode", "log_interval", "training_step_per_epoch", "eval_step_per_epoch", "max_train_steps", "skip_steps",
            "epochs_between_evals", "log_name", "device_target", "device_id", "rank_size", "is_distributed",
            "graph_mode", "num_parallel_workers", "dataset_sink_mode", "sink_size", "data_dir", "dataset_format",
            "tfrecord_first_label", "batch_size", "per_batch_size", "buffer_size", "synthetic_train_images",
            "synthetic_test_images", "pre_trained_strict", "max_epoch", "ckpt_path", "ckpt_interval",
            "keep_checkpoint_max", "is_save_on_master", "ckpt_interval_steps", "ckpt_interval_minutes", "on_save_error",
            "initialize_mode", "resume", "resume_force"}  # or looked at by what they come to: batch, steps, epochs


def test_every_key_that_makes_another_run_is_compared(tmp_path):
    settings = config().model_dump(mode="json")
    training = {name for group in GROUPS[:7] for name in group.__annotations__}  # the others are of deployment
    assert training - HARMLESS == set(FIXED_KEYS) | set(FORCEABLE_KEYS)
    now = Identity(settings, 16, 5, 80, ["a"], {})
    for name in (*FIXED_KEYS, *FORCEABLE_KEYS):
        then = now._replace(settings=settings | {name: "another"})
        with pytest.raises(UserError, match=f"  {name}: another, now "):
            check_differences(ResumePoint(tmp_path, {"step": 1, **then._asdict()}, None, (), []), now, force=False)
