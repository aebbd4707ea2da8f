# SPDX-License-Identifier: Apache-2.0
"""The launchers: what they say, and the commands they would start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote, split

import pytest
from helpers import ROOT, TINY, run_main
from launches import SCRIPTS, SERVERS, environment, make_table, started

from model_utils.local_adapter import WAITING_MSRUN, core_shares

LAUNCHERS = ("run_distribute_train.sh", "run_distribute_train_gpu.sh", "run_standalone_train.sh", "run_eval.sh")
TRAIN = f"{quote(sys.executable)} -u {quote(str(ROOT / 'train.py'))} --data_dir=data --is_distributed=1"
FIXED = {"BIND_CORES": "0", "MASTER_PORT": "8118", "DRY_RUN": "1"}


def launch(script: str, *args: object, cwd: Path = ROOT, shell: str = "bash",
           **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run([shell, SCRIPTS / script, *map(str, args)], cwd=cwd, env=environment(**settings),
                          capture_output=True, text=True, timeout=60)


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- what they say


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_from_the_root_and_from_scripts(script, shell):
    from_root = launch(f"../scripts/{script}", "--help", shell=shell)
    from_scripts = subprocess.run([shell, script, "-h"], cwd=SCRIPTS, env=environment(), capture_output=True, text=True)
    assert from_root.returncode == from_scripts.returncode == 0
    assert from_root.stdout == from_scripts.stdout and f"bash {script} " in from_root.stdout
    assert from_root.stderr == ""


@pytest.mark.parametrize("script, args", [
    ("run_distribute_train.sh", ()), ("run_distribute_train.sh", ("table.json",)),
    ("run_distribute_train.sh", ("table.json", "--max_epoch=1")), ("run_distribute_train_gpu.sh", ()),
    ("run_standalone_train.sh", ()), ("run_eval.sh", ("data", "cifar10", "CPU"))])
def test_too_few_arguments(script, args):
    done = launch(script, *args)
    assert (done.returncode, done.stdout) == (2, "") and "DATA_PATH" in done.stderr


def test_the_help_states_the_time_outs():
    text = launch("run_distribute_train.sh", "--help").stdout
    for name in ("JOIN_SECONDS", "GRACE_SECONDS", "HCCL_EXEC_TIMEOUT", "DRY_RUN", "BIND_CORES", "DEVICE_TARGET"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


# --- what they would start


def table_lines(table: Path, ranks: int, devices: int, *, server: int | None = None, flags: str = "") -> list[str]:
    first = (server or 0) * devices
    name = "" if server is None else f"{SERVERS[server]}, "
    return [f"{name}rank {first + device}: RANK_TABLE_FILE={table} RANK_ID={first + device} RANK_SIZE={ranks} "
            f"LOCAL_RANK_SIZE={devices} DEVICE_ID={device} HCCL_CONNECT_TIMEOUT=600 {TRAIN} --device_target=Ascend"
            f"{flags} > train_parallel{first + device}/log 2>&1" for device in range(devices)]


def cluster_lines(ranks: int, target: str, flags: str = "", join: int = 600) -> list[str]:
    common = (f"MS_WORKER_NUM={ranks} RANK_SIZE={ranks} MS_TOPO_TIMEOUT={join} MS_SCHED_HOST=127.0.0.1 "
              "MS_SCHED_PORT=8118 ")
    command = f"{TRAIN} --device_target={target}{flags}"
    return [f"scheduler: {common}MS_ROLE=MS_SCHED RANK_ID=0 {command} > train_parallel0/scheduler.log 2>&1",
            *(f"rank {rank}: {common}MS_ROLE=MS_WORKER MS_NODE_ID={rank} RANK_ID={rank} DEVICE_ID={rank} {command} "
              f"> train_parallel{rank}/log 2>&1" for rank in range(ranks))]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_rank_on_each_device_of_the_table(tmp_path, devices):
    table = make_table(tmp_path, devices)
    done = launch("run_distribute_train.sh", table, "data", "cifar10", "--max_epoch=2", **FIXED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == table_lines(table, devices, devices, flags=" --dataset=cifar10 --max_epoch=2")


def test_a_table_of_two_servers(tmp_path):
    table = make_table(tmp_path, 2, servers=2)
    done = launch("run_distribute_train.sh", table, "data", **FIXED)
    assert done.stdout.splitlines() == [*table_lines(table, 4, 2, server=0),
                                       *table_lines(table, 4, 2, server=1)]


def test_which_server_of_the_table_this_is(tmp_path):
    from scripts.launch import by_server, this_server
    from scripts.rank_table import read_rank_table

    servers = by_server(read_rank_table(make_table(tmp_path, 2, servers=2)))
    assert this_server(servers, {"SERVER_ID": SERVERS[1]}) == SERVERS[1]
    assert this_server({"127.0.0.1": [], **servers}, {}) == "127.0.0.1"  # by an address of this host
    done = launch("run_distribute_train.sh", tmp_path / "2x2.json", "data", cwd=tmp_path)
    assert done.returncode == 2 and "SERVER_ID=" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "train_parallel0").exists()


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_a_rank_on_each_gpu_where_there_is_no_mpirun(tmp_path, ranks):
    done = launch("run_distribute_train_gpu.sh", "data", "imagenet2012", "--amp", **FIXED, DEVICE_NUM=str(ranks))
    assert done.stdout.splitlines() == cluster_lines(ranks, "GPU", " --dataset=imagenet2012 --amp")


@pytest.mark.parametrize("flags, is_photos", [
    ((), True), (("--dataset_sink_mode=False",), True), (("cifar10",), False), (("--dataset", "cifar10"), False),
    (("--config-path=a.yaml",), False), (("-ca.yaml",), False)])
def test_the_training_half_of_imagenet_needs_no_further_word(tmp_path, flags, is_photos):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    done = launch("run_distribute_train_gpu.sh", tmp_path / "train", *flags, **FIXED, DEVICE_NUM="1")
    assert done.returncode == 0 and ("--dataset=imagenet2012" in done.stdout) == is_photos
    (tmp_path / "train" / "n01440764").rmdir()
    (tmp_path / "train" / "data_batch_1.bin").touch()
    done = launch("run_distribute_train_gpu.sh", tmp_path / "train", **FIXED, DEVICE_NUM="1")
    assert done.returncode == 0 and "imagenet2012" not in done.stdout


def test_mpirun_where_there_is_one(tmp_path):
    program(tmp_path, "mpirun", "exit 9")
    path = f"{tmp_path}{os.pathsep}{environment()['PATH']}"
    done = launch("run_distribute_train_gpu.sh", "data", **FIXED, CUDA_VISIBLE_DEVICES="0,2,3", PATH=path)
    as_root = "--allow-run-as-root " if os.geteuid() == 0 else ""
    waits = "OMPI_MCA_odls_base_sigkill_timeout=60 PRTE_MCA_odls_base_sigkill_timeout=60 "
    assert done.stdout == (f"mpirun: {waits}mpirun {as_root}-n 3 --bind-to none --output-filename train_parallel "
                           f"--merge-stderr-to-stdout {TRAIN} --device_target=GPU > train_parallel/log 2>&1\n")
    failed = launch("run_distribute_train_gpu.sh", "data", cwd=tmp_path, DEVICE_NUM="2", PATH=path)
    assert failed.returncode == 9 and "mpirun failed with status 9" in failed.stderr


@pytest.mark.parametrize("visible, cards", [("0,1", 2), ("3", 1), ("0,1,-1,2", 2), ("GPU-8932f937,GPU-1", 2)])
def test_all_visible_cards(visible, cards):
    from scripts.launch import visible_cards

    assert visible_cards({"CUDA_VISIBLE_DEVICES": visible}) == cards
    assert visible_cards({"CUDA_VISIBLE_DEVICES": visible, "DEVICE_NUM": "5"}) == 5


@pytest.mark.parametrize("settings, message", [
    ({"CUDA_VISIBLE_DEVICES": ""}, "no GPU is visible here; DEVICE_TARGET=CPU DEVICE_NUM=2 rehearses"),
    ({"DEVICE_NUM": "all"}, "DEVICE_NUM: must be a number of ranks, not 'all'"),
    ({"DEVICE_NUM": "0"}, "DEVICE_NUM: must be a number of ranks, not '0'"),
    ({"DEVICE_NUM": "2", "MASTER_PORT": "70000"}, "MASTER_PORT: must be a port from 1 to 65535, not '70000'"),
    ({"DEVICE_NUM": "2", "GRACE_SECONDS": "soon"}, "GRACE_SECONDS: must be a number of seconds, not 'soon'"),
    ({"DEVICE_NUM": "2", "DEVICE_TARGET": "Ascend"}, "DEVICE_TARGET: this launcher starts GPU or CPU ranks")])
def test_settings_that_are_wrong(tmp_path, settings, message):
    done = launch("run_distribute_train_gpu.sh", "data", cwd=tmp_path, **settings)
    assert done.returncode == 2 and f"error: {message}" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags, settings", [((), {"DEVICE_TARGET": "CPU"}), (("--device_target", "cpu"), {})])
def test_the_rehearsal_on_cpu_ranks(tmp_path, flags, settings):
    table = make_table(tmp_path, 2, servers=2)
    done = launch("run_distribute_train.sh", table, "data", *flags, "--seed=2", **FIXED, **settings, JOIN_SECONDS="9")
    assert done.stdout.splitlines() == cluster_lines(4, "CPU", " --seed=2", join=9)


@pytest.mark.skipif(not shutil.which("taskset"), reason="this system has no taskset")
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_each_rank_is_bound_to_its_share_of_the_cores(tmp_path, devices):
    done = launch("run_distribute_train.sh", make_table(tmp_path, devices), "data", DRY_RUN="1")
    shares = [",".join(map(str, share)) for share in core_shares(sorted(os.sched_getaffinity(0)), devices)]
    assert re.findall(r" taskset -c (\S+) ", done.stdout) == shares


def test_cores_are_shared_out():
    assert core_shares(range(8), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert core_shares([1, 3, 5], 2) == [[1, 3], [5]]
    assert core_shares([0, 1], 3) == [[0], [1], [0]]


@pytest.mark.parametrize("script, args, settings, flags", [
    ("run_standalone_train.sh", ("data",), {}, "train.py --data_dir=data"),
    ("run_standalone_train.sh", ("a b", "imagenet2012", "--lr=1"), {"DEVICE_TARGET": "GPU"},
     "train.py --data_dir=a b --dataset=imagenet2012 --device_target=GPU --lr=1"),
    ("run_standalone_train.sh", ("data", "--lr=1"), {}, "train.py --data_dir=data --lr=1"),
    ("run_eval.sh", ("data", "cifar10", "CPU", "a b/*.ckpt", "--seed=1"), {},
     "eval.py --data_dir=data --dataset=cifar10 --device_target=CPU --pre_trained=a b/*.ckpt --seed=1"),
    ("run_1p.sh", ("--lr=1",), {"DEVICE_TARGET": "CPU", "DATA_DIR": "a b"},
     f"train.py --config_path={ROOT}/configs/vgg/vgg19_batch256.yaml --data_dir=a b --device_target=CPU --lr=1")])
def test_one_process(tmp_path, script, args, settings, flags):
    python = program(tmp_path, "python", 'echo "$*"; exit 7')
    done = launch(script, *args, **settings, PYTHON=str(python), cwd=tmp_path)
    assert done.returncode == 7
    assert done.stdout == f"-u {ROOT}/{flags}\n"
    rehearsed = launch(script, *args, **settings, PYTHON=str(python), DRY_RUN="1", cwd=tmp_path)
    assert rehearsed.returncode == 0
    assert " ".join(split(rehearsed.stdout)) == f"{python} -u {ROOT}/{flags}"


@pytest.mark.parametrize("script", LAUNCHERS)
def test_a_signal_to_the_script_reaches_the_python_behind_it(tmp_path, script):
    python = program(tmp_path, "python", "echo $$")
    with started(["sh", SCRIPTS / script, "a", "b", "c", "d"], cwd=tmp_path, PYTHON=str(python)) as process:
        assert process.communicate(timeout=30)[0].strip() == str(process.pid)  # one process, not two


def test_the_python_of_the_active_environment(tmp_path):
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "python", "echo active")
    assert launch("run_standalone_train.sh", "data", PYTHON="", VIRTUAL_ENV=str(tmp_path)).stdout == "active\n"


@pytest.mark.parametrize("command, waits", [
    ("python3 /opt/bin/msrun --worker_num=2 --join=True train.py", True),
    ("python3 msrun --join true --worker_num=2 train.py", True),
    ("python3 /opt/bin/msrun --worker_num=2 train.py", False), ("python3 msrun --join=False train.py", False),
    ("bash dynamic_cluster.sh", False), ("python3 train.py --join=True", False)])
def test_an_msrun_that_waits_for_its_ranks_is_known(command, waits):
    assert bool(WAITING_MSRUN.search(command.replace(" ", "\0").encode() + b"\0")) == waits


def test_a_rank_table_starts_no_rank_on_another_device(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK_TABLE_FILE", str(make_table(tmp_path, 2)))
    outcome = run_main("train", *TINY, "--is_distributed=1")
    assert outcome.status == 2 and "msrun --worker_num=N" in outcome.err
