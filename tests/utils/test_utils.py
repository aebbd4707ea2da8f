# SPDX-License-Identifier: Apache-2.0
"""Shards, parameter groups, files that are whole or not there, and the log of a run."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from model_utils.errors import UserError, run_command
from src.utils.files import remove_unfinished, replaced_when_whole, write_atomically
from src.utils.sampler import epoch_order, eval_shard, train_shard
from src.utils.util import get_param_groups
from src.vgg import vgg11

# --- which rank reads which image


def test_the_order_is_a_permutation_that_follows_from_seed_and_epoch():
    order = epoch_order(101, seed=3, epoch=7)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(101))
    np.random.seed(0)  # what others do with NumPy's global generator does not matter
    assert np.array_equal(order, epoch_order(101, seed=3, epoch=7))
    assert not np.array_equal(order, epoch_order(101, seed=3, epoch=8))
    assert not np.array_equal(order, epoch_order(101, seed=7, epoch=3))
    assert epoch_order(8, seed=1, epoch=0).tolist() == [1, 6, 0, 3, 7, 4, 2, 5]  # in every version


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size):
    count, global_batch = 100, 12
    batch_size = global_batch // world_size
    shards = [train_shard(count, rank=rank, world_size=world_size, batch_size=batch_size, seed=5, epoch=1)
              for rank in range(world_size)]
    assert {len(shard) for shard in shards} == {96 // world_size}
    assert len(train_shard(3, rank=0, world_size=2, batch_size=2, seed=0, epoch=0)) == 0  # not one whole batch
    batches = np.stack([shard.reshape(8, batch_size) for shard in shards], axis=2).reshape(8, global_batch)
    assert np.array_equal(batches.ravel(), epoch_order(count, seed=5, epoch=1)[:96])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_image_is_evaluated_on_exactly_one_rank(world_size):
    for count in (0, 1, 5, 6, 7):
        shards = [eval_shard(count, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(np.concatenate(shards).tolist()) == list(range(count))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


# --- parameter groups


def names(group: dict) -> list[str]:
    return [parameter.name for parameter in group["params"]]


def test_only_weights_of_convolutions_and_dense_layers_decay():
    network = vgg11(10, image_size=(32, 32), width=0.125, has_bias=True)
    decayed, kept = get_param_groups(network, 5e-4)
    assert decayed["weight_decay"] == 5e-4 and kept["weight_decay"] == 0.0
    assert len(names(decayed)) == 8 + 3 and all(name.endswith(".weight") for name in names(decayed))
    assert {name.rpartition(".")[2] for name in names(kept)} == {"bias", "gamma", "beta"}
    assert {*names(decayed), *names(kept)} == {parameter.name for parameter in network.trainable_params()}
    assert "weight_decay" not in get_param_groups(network)[0]  # the optimizer decides


# --- files and logs


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "latest.txt").symlink_to("real.txt")
    with pytest.raises(KeyError), replaced_when_whole(tmp_path / "real.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert (tmp_path / "real.txt").read_text() == "old"
    write_atomically(tmp_path / "latest.txt", "new")
    assert (tmp_path / "real.txt").read_text() == "new" and (tmp_path / "latest.txt").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".real.txt.4711.vgg.tmp").touch()
    (tmp_path / ".notes.4711.tmp").touch()
    (tmp_path / ".folder.1.vgg.tmp").mkdir()
    assert remove_unfinished(tmp_path) == 1 and len(list(tmp_path.iterdir())) == 4


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "best.ckpt").symlink_to("pipe")
    with pytest.raises(UserError, match="not a regular file"), replaced_when_whole(tmp_path / "best.ckpt") as temporary:
        temporary.touch()
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path, capsys):
    def write() -> None:
        with replaced_when_whole(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert run_command(write, "infer.py") == 2
    assert str(tmp_path / "a.json") in capsys.readouterr().err


PROGRAM = """
import sys, time
from pathlib import Path
from src.utils.logging import set_up_logging
log = set_up_logging(file=Path(sys.argv[1]))
log.info("caf\\udce9")
for number in range(50):
    log.info("line %d", number)
    time.sleep(0.01)
"""


def test_a_reader_that_leaves_early_does_not_disturb_the_run(tmp_path):
    """As with `python train.py | head -1`: no complaints, and the file has every line. Names may not be UTF-8."""
    log, env = tmp_path / "train.log", os.environ | {"PYTHONIOENCODING": "utf-8:backslashreplace"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, log], cwd=ROOT, stdout=subprocess.PIPE, env=env,
                          stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "caf\\udce9\n"
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 0
    lines = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert lines == ["caf\\udce9", *(f"line {number}" for number in range(50))]
