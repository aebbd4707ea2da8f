# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: the commands they would start, rank tables, and jobs whose ranks are small shell scripts."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import split

import pytest
from helpers import ROOT, program, run_main
from launches import SERVERS, children, environment, is_running, make_table, started, wait_until

from model_utils.errors import UserError
from scripts import hccl_tools
from scripts.hccl_tools import check_rank_table, read_rank_table
from scripts.launch import this_server, visible_cards

FIXED = {"BIND_CORES": "0", "MASTER_PORT": "8118", "DRY_RUN": "1"}


@pytest.fixture
def place(tmp_path) -> Path:
    """The scripts in a folder with a space in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for item in ("scripts", "model_utils", "src", "train.py", "eval.py", "configs"):
        (folder / item).symlink_to(ROOT / item)
    return folder


def launch(place: Path, script: str, *args: object, cwd: Path | None = None,
           **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", place / "scripts" / script, *map(str, args)], cwd=cwd or place,
                          env=environment(**settings), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("args, settings, flags", [
    (("data", "imagenet2012", "--amp", "--device=cuda"), {"CUDA_VISIBLE_DEVICES": "0,2"},
     "--data_dir=data --is_distributed=1 --device_target=GPU --dataset=imagenet2012 --amp"),
    (("a b", "--device_target", "cpu", "--seed=2"), {"DEVICE_NUM": "2"},
     "'--data_dir=a b' --is_distributed=1 --device_target=CPU --seed=2")])
def test_the_msrun_command_line(place, args, settings, flags):
    done = launch(place, "run_distribute_train_gpu.sh", *args, **FIXED, **settings)
    assert done.returncode == 0, done.stderr
    kind, program, *command = split(done.stdout)
    assert kind == "msrun:" and program.endswith("msrun") and command == split(
        "--worker_num=2 --local_worker_num=2 --join=True --bind_core=False --cluster_time_out=600 --master_port=8118 "
        f"--log_dir=train_parallel --tail_worker_log=0 python -u '{ROOT}/train.py' {flags} > train_parallel/msrun.log "
        "2>&1")


def test_a_rank_on_each_device_of_the_table(place):
    table = make_table(place, 2, servers=2)
    done = launch(place, "run_distribute_train.sh", table, "data", "cifar10", "--max_epoch=2", **FIXED)
    lines = [split(line.partition(": ")[2]) for line in done.stdout.splitlines()]
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [
        f"{server}, rank {rank}" for server, rank in zip(sorted(SERVERS * 2), range(4), strict=True)]
    assert lines == [[f"RANK_TABLE_FILE={table}", f"RANK_ID={rank}", "RANK_SIZE=4", "LOCAL_RANK_SIZE=2",
                      f"DEVICE_ID={rank % 2}", "HCCL_CONNECT_TIMEOUT=600", sys.executable, "-u", f"{ROOT}/train.py",
                      "--data_dir=data", "--is_distributed=1", "--device_target=Ascend", "--dataset=cifar10",
                      "--max_epoch=2", ">", f"train_parallel{rank}/log", "2>&1"] for rank in range(4)]
    bound = launch(place, "run_distribute_train.sh", table, "data", DRY_RUN="1").stdout
    assert bound.count("taskset -c ") == 4
    rehearsed = launch(place, "run_distribute_train.sh", table, "data", DEVICE_TARGET="CPU", **FIXED).stdout
    assert rehearsed.startswith("msrun: ") and "--worker_num=4 " in rehearsed and "--device_target=CPU" in rehearsed


def test_which_server_and_which_cards(monkeypatch):
    for name in ("SERVER_ID", "DEVICE_NUM"):
        monkeypatch.delenv(name, raising=False)
    assert this_server(["a"]) == "a"
    assert this_server([*SERVERS, "127.0.0.1"]) == "127.0.0.1"  # an address of this host
    with pytest.raises(UserError, match="SERVER_ID"):
        this_server(SERVERS)
    monkeypatch.setenv("SERVER_ID", SERVERS[1])
    assert this_server(SERVERS) == SERVERS[1]
    for text, count in (("0,1", 2), ("3", 1), ("0,1,-1,2", 2), ("GPU-8,GPU-1", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert visible_cards("GPU") == count


def test_a_python_without_mindspore_starts_no_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DEVICE_NUM", "2")
    assert f"{tmp_path}/python has no msrun" in run_main("scripts.launch", "cards", "data").refusal()


@pytest.mark.parametrize("script, args, settings, flags", [
    ("run_standalone_train.sh", ("a b", "imagenet2012", "--lr=1"), {"DEVICE_TARGET": "GPU"},
     "train.py|--data_dir=a b|--dataset=imagenet2012|--device_target=GPU|--lr=1"),
    ("run_eval.sh", ("data", "cifar10", "CPU", "a b/*.ckpt", "--seed=1"), {},
     "eval.py|--data_dir=data|--dataset=cifar10|--device_target=CPU|--pre_trained=a b/*.ckpt|--seed=1"),
    ("run_1p.sh", ("--lr=1",), {"DEVICE_TARGET": "CPU", "DATA_DIR": "a b"},
     "train.py|--config_path={place}/configs/vgg/vgg19_batch256.yaml|--data_dir=a b|--device_target=CPU|--lr=1")])
def test_scripts_of_one_process_become_it(place, script, args, settings, flags):
    python = program(place / "my python", "#!/bin/sh\necho $$\nprintf '%s\\n' \"$@\"\nexit 7\n")
    expected = ["-u", *f"{place}/{flags.format(place=place)}".split("|")]
    with started(["sh", place / "scripts" / script, *args], cwd=place, PYTHON=str(python), **settings) as process:
        pid, *got = process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == 7 and got == expected
    assert pid == str(process.pid)  # one process: a signal to the script reaches the Python
    dry = launch(place, script, *args, PYTHON=str(python), DRY_RUN="1", **settings)
    assert dry.returncode == 0 and split(dry.stdout) == [str(python), *expected]


def test_a_table_is_written_as_hccl_wants_it_and_read(tmp_path):
    path = tmp_path / "table.json"
    assert hccl_tools.main(["--server_ip=10.0.0.1", "--device_num=[0,2)", "--device_ips=192.1.27.6,192.2.27.6",
                            f"--output={path}"]) == 0
    assert json.loads(path.read_text()) == {
        "version": "1.0", "server_count": "1", "status": "completed",
        "server_list": [{"server_id": "10.0.0.1", "host_nic_ip": "reserve", "device": [
            {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"},
            {"device_id": "1", "device_ip": "192.2.27.6", "rank_id": "1"}]}]}
    [server] = read_rank_table(path).server_list
    assert [(device.rank_id, device.device_id) for device in server.device] == [(0, 0), (1, 1)]
    assert run_main("scripts.hccl_tools", "--check", path).out == f"{path}: is correct: 2 rank(s) on 1 server(s)\n"


@pytest.mark.parametrize("has_tool", [True, False])
def test_addresses_are_asked_for_on_the_host(tmp_path, monkeypatch, has_tool):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(hccl_tools, "HCCN_CONF", tmp_path / "hccn.conf")
    monkeypatch.setattr(hccl_tools, "host_address", lambda: "10.0.0.9")
    if has_tool:
        program(tmp_path / "hccn_tool", "#!/bin/sh\necho ipaddr:192.168.$2.1\necho netmask:255.255.0.0\n")
    else:
        lines = (f"address_{n}=192.168.{n}.1\nnetmask_{n}=255.0.0.0\n" for n in range(8))
        hccl_tools.HCCN_CONF.write_text("".join(lines))
    for flags, ids in (["--device_num=[0,8)"], range(8)), (["--device_num=[0,2)", "--visible_devices=4,5,6,7"], (4, 5)):
        assert hccl_tools.main([*flags, "--output=table.json"]) == 0
        [server] = read_rank_table(Path("table.json")).server_list
        assert server.server_id == "10.0.0.9"
        assert [(item.device_id, item.device_ip) for item in server.device] == [(n, f"192.168.{n}.1") for n in ids]


def test_ranks_follow_the_servers_as_text_and_tables_are_merged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for server, address in (("10.0.0.2", "192.1.0.1"), ("10.0.0.10", "192.1.0.2")):
        assert hccl_tools.main([f"--server_ip={server}", "--device_num=1", f"--device_ips={address}",
                                f"--output={server}.json"]) == 0
    assert hccl_tools.main(["10.0.0.2.json", "10.0.0.10.json"]) == 0
    text = Path("hccl_2p.json").read_text()
    assert [(server.server_id, server.device[0].rank_id) for server in read_rank_table(Path("hccl_2p.json")).server_list
            ] == [("10.0.0.10", 0), ("10.0.0.2", 1)]
    turned = text.replace("10.0.0.10", "10.0.0.3")  # comes after 10.0.0.2
    Path("turned.json").write_text(turned)
    assert "rank_id: must ascend with server_id" in run_main("scripts.hccl_tools", "--check=turned.json").refusal()
    assert hccl_tools.main(["turned.json", "--output=right.json"]) == 0 == hccl_tools.main(["--check=right.json"])


@pytest.mark.parametrize("place, value", [
    (("server_count",), "3"), (("status",), "initializing"), (("server_list",), []),
    (("server_list", 1, "server_id"), SERVERS[0]), (("server_list", 1, "device"), []),
    (("server_list", 1, "device", 0, "rank_id"), "1"), (("server_list", 1, "device", 1, "rank_id"), "7"),
    (("server_list", 0, "device", 0, "rank_id"), "-1"), (("server_list", 0, "device", 0, "rank_id"), "²"),
    (("server_list", 0, "device", 1, "device_id"), None), (("server_list", 0, "device", 1, "device_id"), "0"),
    (("server_list", 1, "device", 0, "device_ip"), "192.1.0.0"), (("server_list", 1, "device", 0, "device_ip"), "")])
def test_a_wrong_table_is_refused_by_its_field(tmp_path, place, value):
    table = json.loads(make_table(tmp_path, 2, servers=2).read_text())
    check_rank_table(json.dumps(table), Path("good.json"))
    entry = table
    for step in place[:-1]:
        entry = entry[step]
    entry[place[-1]] = value
    with pytest.raises(UserError, match=rf"^bad\.json: .*{place[-1]}"):
        check_rank_table(json.dumps(table), Path("bad.json"))


SAVES = "trap 'echo saved; exit 143' TERM INT; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done"
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.launch import Job, Process, rank_log
ranks = [Process(f"rank {{rank}}", ["sh", "-c", script], {{}}, rank_log(rank))
         for rank, script in enumerate(sys.argv[2:])]
sys.exit(Job(ranks, grace_s=float(sys.argv[1])).run())
"""


def job(folder: Path, *scripts: str, grace_s: float = 5):
    return started([sys.executable, "-c", DRIVER, grace_s, *scripts], cwd=folder)


def wait_for_ranks(folder: Path, count: int) -> list[Path]:
    logs = [folder / f"train_parallel{rank}/log" for rank in range(count)]
    wait_until(lambda: all(log.exists() and "ready" in log.read_text() for log in logs), timeout_s=20, what="ready")
    return logs


def test_ranks_that_end_well(tmp_path):
    (tmp_path / "train_parallel1").mkdir()
    (tmp_path / "train_parallel1/log").symlink_to("../train_parallel/worker_1.log")  # of an earlier job, gone
    with job(tmp_path, "echo '[WARNING] noise'; echo I am 0", "echo I am 1; echo aside >&2") as launcher:
        assert launcher.communicate(timeout=20)[0] == "I am 0\n" and launcher.returncode == 0
    assert (tmp_path / "train_parallel1/log").read_text() == "I am 1\naside\n"


@pytest.mark.parametrize("script, status", [("exit 3", 3), ("kill -9 $$", 137)])
def test_a_dead_rank_ends_the_job_with_its_status(tmp_path, script, status):
    with job(tmp_path, SAVES, f"sleep 0.3; for i in $(seq 30); do echo line $i; done; {script}") as launcher:
        output = launcher.communicate(timeout=20)[0]
    assert launcher.returncode == status and (tmp_path / "train_parallel0/log").read_text().endswith("saved\n")
    assert output.endswith("\n".join([f"rank 1 failed with status {status}; the end of train_parallel1/log:",
                                      *(f"  line {number}" for number in range(11, 31)), ""]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_ranks_which_save(tmp_path, number):
    with job(tmp_path, SAVES, SAVES) as launcher:
        logs = wait_for_ranks(tmp_path, 2)
        ranks = children(launcher.pid)
        launcher.send_signal(number)
        assert launcher.wait(20) == 128 + number
        assert len(ranks) >= 2 and not any(map(is_running, ranks))
    assert all(log.read_text().endswith("saved\n") for log in logs)


def test_deaf_ranks_are_killed_after_their_time_or_a_second_signal(tmp_path):
    with job(tmp_path, SAVES, DEAF, grace_s=0.5) as launcher:
        wait_for_ranks(tmp_path, 2)
        launcher.terminate()
        assert "rank 1 did not end within 0.5 s of SIGTERM" in launcher.communicate(timeout=20)[0]
    assert launcher.returncode == 143
    (tmp_path / "second").mkdir()
    with job(tmp_path / "second", DEAF, grace_s=60) as launcher:
        wait_for_ranks(tmp_path / "second", 1)
        for _ in range(2):
            launcher.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert launcher.wait(20) == 130


def test_ranks_end_with_a_killed_launcher_but_not_with_its_reader(tmp_path):
    with job(tmp_path, DEAF, DEAF) as launcher:
        wait_for_ranks(tmp_path, 2)
        ranks = children(launcher.pid)
        launcher.kill()
        wait_until(lambda: not any(map(is_running, ranks)), timeout_s=10, what="the end of the ranks")
    script = "for i in 1 2 3 4; do echo line $i; sleep 0.1; done; touch done"
    line = '"$0" -c "$1" 5 "$2" | head -n 1; echo ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", line, sys.executable, DRIVER, script], cwd=tmp_path, capture_output=True,
                          text=True, timeout=50)
    assert done.stdout == "line 1\n0\n" and (tmp_path / "done").exists()
