# SPDX-License-Identifier: Apache-2.0
"""The commands that README.md and docs show: all exist with their flags, and run on tiny data (most with --slow)."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import PLAIN, ROOT, TINY, must_run, run_python, write_cifar10, write_class_folders
from launches import free_port, make_table, started

from model_utils.config import get_config
from model_utils.dialects import ALIASES
from model_utils.schema import Config

MARKS = re.compile(r"<!-- tests/scripts/test_commands\.py runs these -->\n(.*?)<!-- end -->", re.DOTALL)
BLOCK, INLINE = re.compile(r"```bash\n(.*?)```", re.DOTALL), re.compile(r"`((?:python|bash|msrun) \S[^`\n]*)`")
PAGES = [ROOT / name for name in ("README.md", "README_CN.md")] + sorted((ROOT / "docs").rglob("*.md"))
PLACEHOLDER = re.compile(r"--(config_path|resume)=(mine\.yaml|outputs/|FOLDER|\.\.\.)")  # files of the reader's own
EARLIER_RUNS = {  # that the pages name, in outputs
    "quickstart/20250101_120000": "--config_path=configs/quickstart.yaml --data_dir=data/shapes",
    "20250101_120000": "--dataset=photos --data_dir=photos"}
ELSEWHERE = re.compile(r"pip |activate|quickstart\.sh|run_tests|download_|=(8|16) |torchvision:|vgg16_bn\.|RUN|"
                       r"master_addr|^msrun \S+$|^bash scripts/run_dist|_ascend|FOLDER|RANK|cifar100|outputs/\*|<|"
                       r"\.\.\.|--resume$|=photos --pre_trained='outputs/finetune")  # of downloaded weights
LOSS, ACC, TOP1 = r"epoch: 1 step: 2, loss is", r"result: \{'acc': 0\.\d{4}\}", r"after allreduce eval: top1_correct="
TRAINING = f"{shlex.join(PLAIN)} --image_size=32 --batch_size=4 --max_train_steps=2"  # for the tiny data
MODELS = {"0-70_781": ["--data_dir=data"], "0-150_5004": ["--data_dir=imagenet", "--dataset=imagenet2012",
                                                          "--num_classes=3"]}
BLOCKS = BLOCK.findall(MARKS.search((ROOT / "docs/migration.md").read_text(encoding="utf-8"))[1])
COMMANDS = list(dict.fromkeys(line for line in "".join(BLOCKS).splitlines() if line and line[0] != "#"))
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


def commands_in(page: Path) -> list[str]:
    """The commands of a page, in code blocks and in the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = "".join(BLOCK.findall(text)).splitlines() + INLINE.findall(BLOCK.sub("", text))
    return [re.sub(r"\s+(# |> ).*", "", line) for line in lines if shlex.split(line, comments=True)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_and_file_exists(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands_in(page):
        words = shlex.split(command, comments=True)
        scripts = [word.strip("()").removeprefix("./") for word in words]
        name = next((word for word in scripts if word.endswith((".py", ".sh")) and word[0] != "/"), "")
        flags = [word.strip(")") for word in words[scripts.index(name) + 1:]] if name else []
        if name in {path.name for path in ROOT.glob("*.py")}:
            flags = [flag for flag in flags if not PLACEHOLDER.match(flag)]
            "--help" in command or get_config(flags, name)
        elif name:
            path = ROOT / name if (ROOT / name).exists() else ROOT / "scripts" / Path(name).name
            source = path.read_text(encoding="utf-8") + (ROOT / "scripts" / "launch.py").read_text(encoding="utf-8")
            names = [flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]
            assert all(key in ("config_path", *Config.model_fields, *ALIASES) or f"--{key}" in source for key in names)
    text = re.sub("^# .*", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)  # not the older projects' files
    named = {ROOT / name for name in re.findall(r"(?<![\w/])(?:scripts|configs)/[\w/]+\.(?:py|sh|yaml)\b", text)}
    linked = {page.parent / name for name in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)}
    assert not [str(path) for path in named | linked if not path.exists()]


def test_the_chinese_pages_have_the_same_commands():
    for page in [ROOT / "README_CN.md", *(ROOT / "docs/zh").iterdir()]:
        english = ROOT / "README.md" if page.name == "README_CN.md" else ROOT / "docs" / page.name
        ours, theirs = ([re.sub(r"\s*(?<!\S)#.*", "", block, flags=re.MULTILINE).split() for block in BLOCK.findall(
            path.read_text(encoding="utf-8"))] for path in (page, english))
        assert ours == theirs, page


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
    write_class_folders(folder / "imagenet", each=10)
    make_table(folder, 2).rename(folder / "rank_table.json")
    return folder


def checkpoint(folder: Path, name: str) -> Path:
    """A checkpoint of that name, trained for a step if there is none yet."""
    path = folder / f"{name}.ckpt"
    if not path.exists():
        data, *flags = MODELS[name]
        must_run("train", *TINY, *PLAIN, *flags, data.replace("=", f"={folder}/"), "--batch_size=4",
                 "--max_train_steps=1", f"--ckpt_path={folder / 'made'}")
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
        run_python(ROOT / "export.py", f"--ckpt_file={path}", "--file_name=vgg16", "--file_format=MINDIR",
                   "--device_target=CPU", cwd=folder).printed()


def in_small(command: str) -> str:
    """The command with flags that make it small, before its redirection; one in the background is waited for."""
    line, arrow, target = command.partition(" > ")
    line, closing = (line[:-1], ")") if line.endswith(")") else (line.rstrip(), "")
    if re.search(r"train\.py|_train|run_1p", line) and "--mode=evaluate" not in line:
        line += f" {TRAINING}" + (" --num_classes=3" if "imagenet" in line else "")
    line = line.replace("--master_port=34568", "")
    line = line.replace("msrun ", f"msrun --master_port={free_port()} ", 1) if "msrun " in line else line
    return f"{line}{closing}{arrow}{target}" + ("\nwait $!" if target.endswith("&") else "")


def logs_in(folder: Path) -> set[Path]:
    return {*folder.rglob("*.log"), *folder.rglob("train_parallel*/log")}


def run(command: str, folder: Path) -> tuple[int, str]:
    """The exit status of a command, in small, and what it printed and logged."""
    for path in logs_in(folder):
        path.unlink()
    with started(["bash", "-c", in_small(command)], cwd=folder) as process:
        out, _ = process.communicate(timeout=240)
    return process.returncode, out + "".join(
        path.read_text(errors="replace") for path in sorted(logs_in(folder)) if path.exists())


@pytest.mark.parametrize("command", [
    pytest.param(command, id=str(number), marks=() if IN_SUITE.match(command) else pytest.mark.slow)
    for number, command in enumerate(COMMANDS)])
def test_a_command_of_an_older_project_runs(place, command):
    make_models(place, command)
    status, out = run(command, place)
    assert status == 0 and re.search(expected(command), out), f"{in_small(command)}\n{out[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README", *(f"docs/{name}" for name in (
    "data", "finetuning", "distributed", "resume", "deploy", "recipes", "faq"))])
def test_the_commands_of_a_page_run(place, name):
    """In their order, with the files that a reader has at that point; not those that download or need cards."""
    run("python scripts/make_shapes.py data/shapes && rm -rf photos new_photos outputs *.safetensors mindcv.ckpt && "
        "cp -r imagenet/train photos && cp -r photos new_photos", place)
    for folder, flags in EARLIER_RUNS.items():
        status, out = run(f"python train.py --ckpt_path=outputs/made --ckpt_interval_steps=1 {flags}", place)
        assert status == 0, out
        (place / "outputs" / folder).parent.mkdir(exist_ok=True)
        next((place / "outputs" / "made").iterdir()).rename(place / "outputs" / folder)
    (place / "best.ckpt").write_bytes((place / "outputs/20250101_120000/best.ckpt").read_bytes())
    (place / "mine.yaml").write_text("base: cifar10_config.yaml\n")
    for command in commands_in(ROOT / f"{name}.md"):
        if not ELSEWHERE.search(command):
            status, out = run(command, place)
            assert status == 0, f"{in_small(command)}\n{out[-3000:]}"
