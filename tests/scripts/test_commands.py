# SPDX-License-Identifier: Apache-2.0
"""The commands of the older projects, as docs/migration.md shows them: all parse, and all run on tiny data (most with --slow).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import PLAIN, ROOT, TINY, run_main, run_python, write_cifar10, write_class_folders
from launches import environment, free_port, make_table

from model_utils.config import get_config

MARKS = re.compile(r"<!-- tests/scripts/test_commands\.py runs these -->\n(.*?)<!-- end -->", re.DOTALL)
LOSS, ACC, TOP1 = r"epoch: 1 step: 2, loss is", r"result: \{'acc': 0\.\d{4}\}", r"after allreduce eval: top1_correct="
TRAINING = f"{shlex.join(PLAIN)} --image_size=32 --batch_size=4 --max_train_steps=2"  # for the tiny data
MODELS = {"0-70_781": ["--data_dir=data"], "0-150_5004": ["--data_dir=imagenet", "--dataset=imagenet2012",
                                                          "--num_classes=3"]}


def shown_commands(name: str) -> list[str]:
    """The lines of the code blocks that are not comments."""
    text = MARKS.search((ROOT / name).read_text(encoding="utf-8"))[1]
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


COMMANDS = shown_commands("docs/migration.md")
# one of each project; the others with --slow
IN_SUITE = re.compile(r"python train\.py  --data_path=data --device_id=0|python eval\.py -c|python export\.py|"
                      r"python -u \./train\.py .*--epochs=1 |\(cd scripts && bash run_1p\.sh --datadir")


def expected(command: str) -> str:
    """What the output or the log of a command contains."""
    if "export.py" in command:
        return r"vgg16_cifar10\.mindir"
    if "run_infer_310" in command:
        return r"'acc': 0\.\d{4}"
    if "eval" in re.sub("--eval_step_per_epoch", "", command) or "run_1p" in command:
        return TOP1 if "imagenet" in command else ACC
    return r"throughput: " if "--epochs=1 " in command else LOSS


def test_every_command_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = 0
    for command in COMMANDS:
        words = shlex.split(command.partition(" > ")[0])
        program = next((word.removeprefix("./") for word in words if word.endswith(".py")), None)
        if program:
            flags = words[words.index(next(word for word in words if word.endswith(".py"))) + 1:]
            config = get_config(flags, program)
            assert config.data_dir in (None, "data", "imagenet"), command
            parsed += 1
    assert parsed >= 19


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like the project's own, with the files that the commands name."""
    folder = tmp_path_factory.mktemp("a place")
    for item in [*ROOT.glob("*.py"), *ROOT.glob("*.yaml"), ROOT / "src", ROOT / "model_utils", ROOT / "configs"]:
        (folder / item.name).symlink_to(item)
    (folder / "scripts").mkdir()  # a real one: what is started there writes there
    for item in (ROOT / "scripts").glob("*.*"):
        (folder / "scripts" / item.name).symlink_to(item)
    write_cifar10(folder / "data")
    write_class_folders(folder / "imagenet", each=6)
    make_table(folder, 2).rename(folder / "rank_table.json")
    return folder


def checkpoint(folder: Path, name: str) -> Path:
    """A checkpoint of that name, trained for a step if there is none yet."""
    path = folder / f"{name}.ckpt"
    if not path.exists():
        data, *flags = MODELS[name]
        done = run_main("train", *TINY, *PLAIN, *flags, data.replace("=", f"={folder}/"), "--batch_size=4",
                        "--max_train_steps=1", f"--ckpt_path={folder / 'made'}")
        assert done.status == 0, done
        next((folder / "made").rglob("0-1_1.ckpt")).rename(path)
    return path


def make_models(folder: Path, command: str) -> None:
    """The checkpoints and the exported model that a command names."""
    for name in MODELS:
        if name.partition("_")[2] in command:
            checkpoint(folder, name)
    if "eval_dir" in command:
        (folder / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(checkpoint(folder, "0-150_5004"), folder / "checkpoints")
    if "vgg16.mindir" in command:
        path = checkpoint(folder, "0-70_781")
        done = run_python(ROOT / "export.py", f"--ckpt_file={path}", "--file_name=vgg16", "--file_format=MINDIR",
                          "--device_target=CPU", cwd=folder)
        assert done.status == 0, done


def in_small(command: str) -> str:
    """The command with flags that make it small, before its redirection; one in the background is waited for."""
    line, arrow, target = command.partition(" > ")
    line, closing = (line[:-1], ")") if line.endswith(")") else (line.rstrip(), "")
    if ("train" in line or "run_1p" in line) and "--mode=evaluate" not in line:
        line += f" {TRAINING}" + (" --num_classes=3" if "imagenet" in line else "")
    line = line.replace("--master_port=34568", "")
    line = line.replace("msrun ", f"msrun --master_port={free_port()} ", 1) if "msrun " in line else line
    return f"{line}{closing}{arrow}{target}" + ("\nwait $!" if target.endswith("&") else "")


def logs_in(folder: Path) -> set[Path]:
    return {*folder.rglob("*.log"), *folder.rglob("train_parallel*/log")}


@pytest.mark.parametrize("command", [
    pytest.param(command, id=str(number), marks=() if IN_SUITE.match(command) else pytest.mark.slow)
    for number, command in enumerate(COMMANDS)])
def test_a_command_of_an_older_project_runs(place, command):
    make_models(place, command)
    for path in logs_in(place):
        path.unlink()
    process = subprocess.Popen(["bash", "-c", in_small(command)], cwd=place, text=True, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    out += "".join(path.read_text(errors="replace") for path in sorted(logs_in(place)) if path.exists())
    assert process.returncode == 0 and re.search(expected(command), out), f"{in_small(command)}\n{out[-3000:]}"
