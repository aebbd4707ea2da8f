# SPDX-License-Identifier: Apache-2.0
"""Shards, files that are whole or not there, and the log of a run."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from model_utils.errors import UserError, run_command
from src.utils.files import remove_unfinished, replaced_when_whole, write_atomically
from src.utils.sampler import train_shard


def test_the_order_is_a_permutation_and_the_same_in_every_version():
    np.random.seed(0)  # what others do with NumPy's global generator does not matter
    shard = train_shard(8, rank=0, world_size=1, batch_size=1, seed=1, epoch=0)
    assert shard.tolist() == [1, 6, 0, 3, 7, 4, 2, 5]
    assert len(train_shard(3, rank=0, world_size=2, batch_size=2, seed=0, epoch=0)) == 0  # not one whole batch


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
