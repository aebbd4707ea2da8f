# SPDX-License-Identifier: Apache-2.0
"""The processes of a job, played by small shell scripts: they end together, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from launches import children, is_running, started, wait_until

from scripts import job
from scripts.job import Job, Process

WAITS = "echo $$ > pid; sleep 60 & wait"  # ends as soon as a signal comes
HEEDS = "trap 'echo saved; exit 143' TERM INT; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done"
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from scripts.job import Job, Process
ranks = [Process(f"rank {{rank}}", ["sh", "-c", script], {{}}, Path(f"train_parallel{{rank}}/log"))
         for rank, script in enumerate(sys.argv[2:])]
sys.exit(Job(ranks, grace_s=float(sys.argv[1])).run())
"""


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def process(rank: int, script: str, **more: bool) -> Process:
    return Process(f"rank {rank}", ["sh", "-c", script], {"RANK_ID": str(rank)}, log(rank), **more)


def run(*scripts: str, grace_s: float = 5) -> int:
    processes = [process(rank, script) for rank, script in enumerate(scripts)]
    return Job(processes, grace_s=grace_s, show="rank 0").run()


def log(rank: int) -> Path:
    return Path(f"train_parallel{rank}/log")


# --- ends


def test_ranks_go_on_when_nobody_reads_their_output(tmp_path):
    script = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.1; done; touch done.$RANK_ID"
    driver = DRIVER.replace("grace_s=float(sys.argv[1])", "grace_s=5, show='rank 0'").replace(
        "{}", "{'RANK_ID': str(rank)}")
    done = subprocess.run(f"{sys.executable} -c \"$DRIVER\" 5 \"$RANK\" \"$RANK\" | head -n 1; echo ${{PIPESTATUS[0]}}",
                          shell=True, executable="bash", env=os.environ | {"DRIVER": driver, "RANK": script},
                          capture_output=True, text=True, timeout=50)
    assert done.stdout == "line 1\n0\n" and not done.stderr
    assert sorted(path.name for path in tmp_path.glob("done.*")) == ["done.0", "done.1"]


def test_all_end_well(capfd):
    assert run("echo I am $RANK_ID", "echo I am $RANK_ID; echo aside >&2") == 0
    assert log(1).read_text() == "I am 1\naside\n"
    assert capfd.readouterr() == ("I am 0\n", "")


def test_the_console_shows_whole_lines_and_leaves_those_of_the_framework_in_the_log(capfd):
    assert run("echo '[WARNING] DISTRIBUTED(1,2)'; printf '[WARN'; sleep 0.3; echo 'ING] x'; echo 'my [WARNING] '") == 0
    assert capfd.readouterr().out == "my [WARNING] \n"
    assert "DISTRIBUTED" in log(0).read_text()


@pytest.mark.parametrize("scripts", [("exit 3",), ("exit 3", "exit 0"), ("exit 0", "sleep 0.2; exit 3")])
def test_the_last_to_end_may_be_the_one_that_fails(scripts):
    assert run(*scripts) == 3


@pytest.mark.parametrize("fails", [0, 1])
def test_one_that_fails_ends_the_others_with_its_status(capfd, fails):
    scripts = [WAITS, WAITS]
    scripts[fails] = "sleep 0.3; for i in $(seq 30); do echo line $i; done; echo '[WARNING] noise'; exit 3"
    begin = time.monotonic()
    assert run(*scripts) == 3
    assert time.monotonic() - begin < 4
    assert not is_running(Path("pid").read_text().strip())
    error = capfd.readouterr().err.strip().splitlines()
    assert error == [f"rank {fails} failed with status 3; the end of {log(fails)}:",
                     *(f"  line {number}" for number in range(11, 31))]


def test_a_killed_one_has_the_status_of_its_signal_and_deaf_ones_do_not_hang_the_job(capfd, monkeypatch):
    monkeypatch.setattr(job, "FAILURE_GRACE_S", 0.3)
    assert run(DEAF, "sleep 0.3; kill -9 $$", grace_s=60) == 128 + signal.SIGKILL
    error = capfd.readouterr().err
    assert "rank 0 did not end within 0.3 s of SIGTERM; it is killed" in error
    assert "rank 1 failed with status 137" in error


def test_a_helper_goes_when_the_others_have_ended():
    begin = time.monotonic()
    assert Job([process(0, WAITS, is_helper=True), process(1, "sleep 0.3")], grace_s=5).run() == 0
    assert time.monotonic() - begin < 4
    assert not is_running(Path("pid").read_text().strip())


def test_a_helper_that_fails_ends_the_job():
    assert Job([process(0, "exit 4", is_helper=True), process(1, WAITS)], grace_s=5).run() == 4


# --- signals


def start_ready(*scripts: str, grace_s: float = 5, before: tuple[str, ...] = ()):
    """The job in a process of its own, and what it has started; entered when every rank is ready."""
    return started([*before, sys.executable, "-c", DRIVER, grace_s, *scripts], cwd=Path.cwd())


def wait_for_ranks(count: int) -> None:
    wait_until(lambda: all(log(rank).exists() and "ready" in log(rank).read_text() for rank in range(count)),
               timeout_s=20, what="ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_ranks_may_save(number):
    with start_ready(HEEDS, HEEDS) as launcher:
        wait_for_ranks(2)
        ranks = children(launcher.pid)
        launcher.send_signal(number)
        assert launcher.wait(20) == 128 + number
        assert len(ranks) == 2 and not any(map(is_running, ranks))
    assert all(log(rank).read_text().endswith("saved\n") for rank in (0, 1))


def test_deaf_ranks_are_killed_when_their_time_is_over():
    with start_ready(HEEDS, DEAF, grace_s=0.5) as launcher:
        wait_for_ranks(2)
        launcher.terminate()
        output, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert "rank 1 did not end within 0.5 s of SIGTERM; it is killed" in output


def test_a_second_signal_does_not_wait():
    with start_ready(DEAF, grace_s=60) as launcher:
        wait_for_ranks(1)
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.5)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(20) == 128 + signal.SIGINT


def test_the_ranks_do_not_outlive_a_killed_launcher():
    with start_ready(DEAF, DEAF) as launcher:
        wait_for_ranks(2)
        ranks = children(launcher.pid)
        launcher.kill()
        wait_until(lambda: not any(map(is_running, ranks)), timeout_s=10, what="the end of the ranks")


@pytest.mark.parametrize(("name", "number"), [("HUP", signal.SIGHUP), ("INT", signal.SIGINT)])
def test_what_was_ignored_does_not_end_a_job(name, number):
    """As under nohup, or in the background of a script."""
    with start_ready("echo ready; sleep 1", before=("sh", "-c", f"trap '' {name}; exec \"$@\"", "sh")) as launcher:
        wait_for_ranks(1)
        launcher.send_signal(number)
        assert launcher.wait(20) == 0
