# SPDX-License-Identifier: Apache-2.0
"""The commands of the older projects run as the table says, on tiny data, and the README shows the same table."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from commands import COMMANDS, MODEL_ZOO, PYTORCH, TENSORFLOW, Command, markdown
from helpers import ROOT, TINY, run_main, write_cifar10, write_class_folders
from launches import environment, free_port

NARROW = "--width=0.125 --image_size=32"
TRAINING = f"{NARROW} --batch_size=4 --max_train_steps=2"  # the batch: as printed it is larger than the tiny data


def more_flags(command: Command) -> str:
    """What makes a command small enough for a test, and nothing else."""
    is_training = "train" in command.run.split(" > ")[0] or "run_1p" in command.run
    if not is_training or "--mode=evaluate" in command.run:
        return ""
    is_imagenet = "imagenet" in command.run
    return f"{TRAINING} --num_classes=3" if is_imagenet else TRAINING


def shell_line(command: Command) -> str:
    """The command with the flags for tests before its redirection; one in the background is waited for."""
    line, arrow, target = command.run.partition(" > ")
    line = f"{line.rstrip()} {more_flags(command)}{arrow}{target}"
    line = line.replace("--master_port=34568", f"--master_port={free_port()}")
    if "msrun " in line and "--master_port" not in line:
        line = line.replace("msrun ", f"msrun --master_port={free_port()} ", 1)
    return f"{line}\nwait $!" if line.endswith("&") else line


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like the project's own, with the files that the commands name."""
    folder = tmp_path_factory.mktemp("place")
    for item in [*ROOT.glob("*.py"), *ROOT.glob("*.yaml"), ROOT / "src", ROOT / "model_utils", ROOT / "configs"]:
        (folder / item.name).symlink_to(item)
    (folder / "scripts").mkdir()  # a real one: what is started there writes there
    for item in (ROOT / "scripts").glob("*.*"):
        (folder / "scripts" / item.name).symlink_to(item)
    write_cifar10(folder / "data")
    write_class_folders(folder / "imagenet", each=6)
    devices = [{"device_id": str(rank), "device_ip": f"10.0.0.{rank}", "rank_id": str(rank)} for rank in range(2)]
    (folder / "rank_table.json").write_text(
        str({"version": "1.0", "server_count": "1", "status": "completed",
             "server_list": [{"server_id": "127.0.0.1", "device": devices}]}).replace("'", '"'), encoding="utf-8")
    return folder


MODELS = {"0-70_781": ["--data_dir=data"],
          "0-150_5004": ["--data_dir=imagenet", "--dataset=imagenet2012", "--num_classes=3"]}


def checkpoint(folder: Path, name: str) -> Path:
    """A checkpoint of that name, trained for a step if there is none yet."""
    path = folder / f"{name}.ckpt"
    if not path.exists():
        data, *flags = MODELS[name]
        done = run_main("train", *TINY, *flags, data.replace("=", f"={folder}/"), "--batch_size=4",
                        "--max_train_steps=1", f"--ckpt_path={folder / 'made'}")
        assert done.status == 0, done
        next((folder / "made").rglob("0-1_1.ckpt")).rename(path)
    return path


def make_models(folder: Path, line: str) -> None:
    """The checkpoints and the exported model that a command names."""
    for name in MODELS:
        if name.partition("_")[2] in line:
            checkpoint(folder, name)
    if "eval_dir" in line:
        (folder / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(checkpoint(folder, "0-150_5004"), folder / "checkpoints")
    if "vgg16.mindir" in line:
        done = run_main("export", f"--ckpt_file={checkpoint(folder, '0-70_781')}", f"--file_name={folder / 'vgg16'}",
                        "--file_format=MINDIR", "--device_target=CPU")
        assert done.status == 0, done


def logs_of(place: Path) -> set[Path]:
    return {*place.rglob("*.log"), *place.rglob("train_parallel*/log")}


def run(command: Command, place: Path) -> str:
    """What the command prints, with the logs that it leaves."""
    make_models(place, command.run)
    before = logs_of(place)
    process = subprocess.Popen(["bash", "-c", shell_line(command)], cwd=place / command.folder, text=True,
                               env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    try:
        out, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    logs = logs_of(place) - before
    out += "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(logs))
    assert process.returncode == 0, f"{shell_line(command)}\n{out[-3000:]}"
    for path in logs:
        path.unlink(missing_ok=True)
    return out


def is_repeated(command: Command) -> bool:
    return any(other.run == command.run and other.folder == command.folder
               for other in COMMANDS[:COMMANDS.index(command)])


TO_RUN = [pytest.param(command, id=f"{command.source}-{number}", marks=() if command.in_suite else pytest.mark.slow)
          for number, command in enumerate(COMMANDS) if not is_repeated(command)]


@pytest.mark.parametrize("command", TO_RUN)
def test_a_command_of_an_older_project_runs(place, command):
    assert re.search(command.expect, run(command, place)), command.run


def test_each_project_has_one_command_in_the_suite():
    assert [sum(command.in_suite for command in COMMANDS if command.source == source)
            for source in range(MODEL_ZOO, TENSORFLOW + 1)] == [1] * 5


def test_only_hardware_a_path_or_a_file_name_changes():
    """Flags that are printed are typed, with the same values, but for those that name devices, data and files."""
    free = {"--device_target", "--device_id", "--device", "--data_path", "--data-path", "--data_dir", "--dataset", "-m",
            "--pre_trained", "--config_path", "--ckpt_file", "--file_name", "--file_format", "--ckpt_path", "--datadir",
            "--eval_dir", "--worker_num", "--nproc_per_node", "--use_env", "--master_addr", "-u"}
    for command in COMMANDS:
        printed, typed = (set(re.findall(r"(?<!\S)(--?[\w-]+(?:=\S+)?)", text)) for text in command[1:3])
        lost = {flag for flag in printed - typed if flag.partition("=")[0] not in free}
        assert not lost, (lost, command.printed)


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README_CN.md", "zh")])
def test_the_readme_shows_the_table(name, language):
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.search(r"<!-- tests/commands\.py -->\n(.*?)<!-- end of tests/commands\.py -->", text, re.DOTALL)
    assert shown and shown.group(1) == markdown(language), f"python tests/commands.py {language} prints what it must be"


def test_the_numbers_of_the_projects_are_those_of_their_titles():
    assert (COMMANDS[0].source, PYTORCH) == (MODEL_ZOO, 3)
    assert [command.source for command in COMMANDS] == sorted(command.source for command in COMMANDS)
