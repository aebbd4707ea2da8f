#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kill a training run again and again, resume it each time, and compare its end with a run that was never killed.

A narrow vgg11 on generated images. Every other kill waits for the moment in which a resume state is being written.
Exits with 1 if a state was lost or the final weights differ in a single bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.benchmarks.record import describe_run  # noqa: E402
from src.utils.util import UserError  # noqa: E402
from src.weights.checkpoint import read_file  # noqa: E402

INTERVAL_STEPS = 3
STEPS_PER_EPOCH = 20
FLAGS = ("--dataset=synthetic", "--network=vgg11", "--width=0.125", "--image_size=32", "--batch_size=8",
         f"--synthetic_train_images={8 * STEPS_PER_EPOCH}", "--device_target=CPU", "--ckpt_interval=1", "--lr=0.01",
         "--keep_checkpoint_max=1", f"--ckpt_interval_steps={INTERVAL_STEPS}", "--warmup_epochs=1")


def start(folder: Path, epochs: int, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *FLAGS, f"--max_epoch={epochs}", f"--ckpt_path={folder}", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def newest_step(folder: Path) -> int:
    """The step of the newest state that loads; 0 if there is none."""
    for path in sorted(folder.glob("*/resume/step-*.state"), reverse=True):
        try:
            read_file(path)
        except UserError:
            continue
        return int(path.stem.removeprefix("step-"))
    return 0


def is_saving(run: subprocess.Popen, folder: Path) -> bool:
    """Whether this process is writing a state, or was when it was killed: the name of the unfinished file says so."""
    return any(folder.glob(f"*/resume/.step-*.{run.pid}.tmp"))


def wait_for_moment(run: subprocess.Popen, folder: Path, *, inside_save: bool, delay_s: float) -> None:
    """Until a state is being written, or for a while after training has begun; at most until the run ends."""
    before = newest_step(folder)
    while run.poll() is None:
        if inside_save and is_saving(run, folder):
            return
        if not inside_save and newest_step(folder) > before:
            time.sleep(delay_s)
            return
        time.sleep(0.0005 if inside_save else 0.05)


def final_weights(folder: Path, epochs: int) -> dict[str, np.ndarray]:
    path = next(folder.glob(f"*/ckpt_0/0-{epochs}_{STEPS_PER_EPOCH}.ckpt"))
    return read_file(path).arrays


def kill_test(kills: int, folder: Path, *, epochs: int, seed: int) -> dict[str, float]:
    """Run the test; reports kills, resumes, lost states, the longest way back, and how many weights differ."""
    chance, begin = random.Random(seed), time.monotonic()
    report = {"kills": 0, "inside_a_save": 0, "resumes": 0, "states_lost": 0, "longest_way_back_steps": 0,
              "interval_steps": INTERVAL_STEPS}
    killed, best = folder / "killed", 0
    while True:
        run = start(killed, epochs, "--resume")
        report["resumes"] += report["kills"] > 0
        if report["kills"] < kills:
            wait_for_moment(run, killed, inside_save=chance.random() < 0.5, delay_s=chance.uniform(0, 1))
            if run.poll() is None:
                run.send_signal(signal.SIGKILL)
                report["kills"] += 1
        errors = run.communicate()[1]
        report["inside_a_save"] += is_saving(run, killed)
        if run.returncode == 0:
            break
        if run.returncode != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {run.returncode}:\n{errors[-2000:]}")
        step = newest_step(killed)
        report["states_lost"] += step < best
        report["longest_way_back_steps"] = max(report["longest_way_back_steps"], best - step)
        best = max(best, step)
    report["seconds"] = round(time.monotonic() - begin)
    reference = start(folder / "reference", epochs)
    errors = reference.communicate()[1]
    if reference.returncode:
        raise SystemExit(f"the run that is not killed ended with {reference.returncode}:\n{errors[-2000:]}")
    ours, theirs = final_weights(killed, epochs), final_weights(folder / "reference", epochs)
    report["weights_differ"] = sum(not np.array_equal(ours[name], theirs[name]) for name in theirs)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default 100)")
    parser.add_argument("--epochs", type=int, help="length of the run; enough for the kills unless given")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the report here as well")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        epochs = options.epochs or 5 + options.kills
        report = describe_run(FLAGS) | kill_test(options.kills, Path(folder), epochs=epochs, seed=options.seed)
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(report["states_lost"] > 0 or report["weights_differ"] > 0 or report["kills"] < options.kills)


if __name__ == "__main__":
    sys.exit(main())
