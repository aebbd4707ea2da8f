# SPDX-License-Identifier: Apache-2.0
"""What a terminal shows: whole lines beside a progress bar, and commands that can be pasted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, run_main, write_class_folders

TRAINING = (*TINY, "--batch_norm=False", "--has_dropout=False", "--dataset=imagenet2012", "--num_classes=3",
            "--batch_size=4", "--mode=train_and_evaluate", "--max_epoch=2", "--log_interval=1")
PROGRAM = """
import sys, train, infer
from pathlib import Path
data, runs = sys.argv[1:3]
training = [f"--data_dir={data}", f"--ckpt_path={runs}", *sys.argv[3:]]
status = train.main(training)
model = next(Path(runs).rglob("best.ckpt"))
status += infer.main([f"--input={data}/val", f"--model_path={model}", "--device_target=CPU"])
sys.exit(status or train.main([*training, "--lr=1e30", "--warmup_epochs=0"]) - 1)  # ends by a loss of NaN
"""


def shown(output: str) -> list[str]:
    """The lines that stay on the screen, as an endless terminal of any width shows them."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\r|\n|\x1b\[[AK])", output):
        if part == "\n":
            row, lines = row + 1, [*lines, ""]
        elif part == "\x1b[A":
            row -= 1
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part != "\r":
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part):]
        column = 0 if part == "\r" else column + len(part) * (part[:1] not in "\n\x1b")
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_no_line_is_glued_to_a_progress_bar(tmp_path, columns):
    data = write_class_folders(tmp_path / "data")
    command = shlex.join(map(str, (sys.executable, "-c", PROGRAM, data, tmp_path / "runs", *TRAINING)))
    run = subprocess.run(["script", "-qec", f"stty rows 50 cols {columns}; {command}", "/dev/null"], cwd=ROOT,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # which gives it a terminal
    output = run.stdout.decode()
    assert run.returncode == 0, output
    lines = shown(output)
    for start, count in (("epoch time: ", 2), ("after allreduce eval: top1", 2), (f"{data}/val/", 15),
                         ("best top-1 accuracy: ", 1), ("NN inference cost average time: ", 1),
                         ("train.py: error: the loss became", 1)):
        assert sum(line.startswith(start) for line in lines) == count, (start, output)
    assert sum(bool(re.fullmatch(r"epoch: \d step: \d, loss is \d\.\d{6}", line)) for line in lines) >= 6, output
    assert not [line for line in lines if "step/s" in line or "%|" in line], output
    bars = re.findall(r"epoch \d/2 \|(.*?)\| .* left", output)
    assert bars and min(map(len, bars)) >= 10


def test_the_commands_at_the_end_can_be_pasted(tmp_path, monkeypatch):
    """Both with an evaluation during the training and without."""
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "my data")
    Path("FOLDER_OF_IMAGES").symlink_to("my data")
    for mode, name in (("train", "0-2_3.ckpt"), ("train_and_evaluate", "best.ckpt")):
        done = run_main("train", *TRAINING, "--data_dir=my data", f"--ckpt_path=runs of {mode}", f"--mode={mode}",
                        "--head_lr_multiplier=5")
        assert done.status == 0 and "trains from scratch" in done.out, done
        lines = done.out.splitlines()
        assert any(line.endswith(f"checkpoint: {next(Path().rglob(name))}") for line in lines)
        for line in lines[-3:]:
            python, script, *flags = shlex.split(line)
            assert (python, Path(script).parent) == ("python", ROOT)
            assert (done := run_main(Path(script).stem, *flags)).status == 0, done
    assert re.search(r"best top-1 accuracy: \S+%, in epoch [12]", "\n".join(lines))
