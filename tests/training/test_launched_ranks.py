# SPDX-License-Identifier: Apache-2.0
"""Jobs of two real ranks on this machine, behind a launcher: killed, stopped and resumed."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import ROOT, TINY, only_folder, write_class_folders
from launches import BIN, SCRIPTS, children, is_running, make_table, started, wait_until

from scripts.launch import free_port

STEPS = 40
JOB = ("synthetic", *TINY, "--num_parallel_workers=1", "--batch_size=4", f"--synthetic_train_images={8 * STEPS}",
       "--max_epoch=1", "--warmup_epochs=0", "--log_interval=1", "--ckpt_path=runs")
STEP = re.compile(r"^epoch: 1 step: (\d+), loss is", re.MULTILINE)


@contextmanager
def two_ranks(folder: Path, *flags: str, **settings: str) -> Iterator[subprocess.Popen]:
    """The rank table launcher, typed as `sh script`, rehearsing a table of two devices in `folder`."""
    table = make_table(folder, 2)
    with started(["sh", SCRIPTS / "run_distribute_train.sh", table, "data", *JOB, *flags], cwd=folder,
                 DEVICE_TARGET="CPU", **settings) as launcher:
        yield launcher


def wait_for_steps(folder: Path) -> None:
    """Until rank 1 trains."""
    log = folder / "train_parallel1/log"
    wait_until(lambda: log.exists() and STEP.search(log.read_text()), timeout_s=120, what="the first step")


def test_a_killed_rank_ends_the_job(tmp_path):
    with two_ranks(tmp_path) as launcher:
        wait_for_steps(tmp_path)
        processes = children(launcher.pid)
        victim = next(pid for pid in processes if b"MS_NODE_ID=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(victim, signal.SIGKILL)
        output, _ = launcher.communicate(timeout=30)
        assert len(processes) == 5 and not any(map(is_running, processes))  # msrun, scheduler, two ranks, tail
    assert launcher.returncode == 128 + signal.SIGKILL
    end = output.partition("rank 1 failed with status 137; the end of train_parallel1/log:\n")[2].splitlines()
    assert end and all(line.startswith("  ") for line in end)
    assert STEP.match(end[-1].strip())


def test_a_job_is_stopped_resumed_and_ends(tmp_path):
    with two_ranks(tmp_path, BIND_CORES="0") as launcher:
        wait_for_steps(tmp_path)
        processes = children(launcher.pid)
        launcher.terminate()
        output, _ = launcher.communicate(timeout=60)
        assert len(processes) == 5 and not any(map(is_running, processes))
    assert launcher.returncode == 128 + signal.SIGTERM
    run = only_folder(tmp_path / "runs")
    assert re.search(rf"\n  .*msrun'? --worker_num=2 .*train\.py'? --config_path=.*{run.name}", output)
    stopped_after = int(max((run / "resume").glob("step-*.state")).name.removeprefix("step-").split(".")[0])
    assert 0 < stopped_after < STEPS

    with two_ranks(tmp_path, "--resume=newest", BIND_CORES="0") as launcher:
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert only_folder(tmp_path / "runs") == run and (run / f"ckpt_0/0-1_{STEPS}.ckpt").is_file()
    logs = [(tmp_path / f"train_parallel{rank}/log").read_text() for rank in (0, 1)]
    assert [STEP.findall(log) for log in logs] == [[str(step) for step in range(stopped_after + 1, STEPS + 1)]] * 2
    losses = [[line for line in log.splitlines() if "loss is" in line] for log in logs]
    assert losses[0] != losses[1]  # each of its own images
    assert [line for line in output.splitlines() if "loss is" in line] == losses[0]  # rank 0 alone
    assert "[WARNING]" not in output and "[INFO]" not in output


@pytest.mark.slow
def test_the_ranks_save_and_end_with_their_msrun(tmp_path):
    flags = [f"--dataset={JOB[0]}", *JOB[1:], "--max_epoch=20", "--is_distributed=1"]
    command = [BIN / "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", "--log_dir=log",
               f"--master_port={free_port()}", ROOT / "train.py", *flags]
    with started(command, cwd=tmp_path) as msrun:
        log = tmp_path / "log/worker_1.log"
        wait_until(lambda: log.exists() and STEP.search(log.read_text()), timeout_s=120, what="the first step")
        ranks = [pid for pid in children(msrun.pid) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        msrun.terminate()
        wait_until(lambda: not any(map(is_running, ranks)), timeout_s=60, what="the end of the ranks")
        for pid in children(1):  # its two `tail -f`, which it leaves behind
            with suppress(OSError):  # not ours to look at, or just ended
                if str(tmp_path) in os.readlink(f"/proc/{pid}/cwd"):
                    os.kill(pid, signal.SIGKILL)
    assert len(ranks) == 3 and list((only_folder(tmp_path / "runs") / "resume").glob("step-*.rank1.state"))


def test_a_broken_test_image_ends_every_rank_once_the_state_is_saved(tmp_path):
    write_class_folders(tmp_path / "data", each=8)
    broken = sorted((tmp_path / "data" / "val").rglob("*.png"))[0]
    broken.write_bytes(b"")
    flags = ("imagenet2012", *TINY, "--num_classes=3", "--num_parallel_workers=1", "--batch_size=4", "--max_epoch=2",
             "--warmup_epochs=0", "--ckpt_interval=5", "--mode=train_and_evaluate", "--ckpt_path=runs")
    with started(["sh", SCRIPTS / "run_distribute_train.sh", make_table(tmp_path, 2), "data", *flags], cwd=tmp_path,
                 DEVICE_TARGET="CPU") as launcher:
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 2, output
    logs = [(tmp_path / f"train_parallel{rank}/log").read_text() for rank in (0, 1)]
    assert sum(f"{broken.name}: is empty" in log for log in logs) == 1
    assert sum("another rank found a image" in log for log in logs) == 1
    states = (only_folder(tmp_path / "runs") / "resume").iterdir()
    assert sorted(path.name for path in states) == ["step-00000003.rank1.state", "step-00000003.state"]
