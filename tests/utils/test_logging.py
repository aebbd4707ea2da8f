# SPDX-License-Identifier: Apache-2.0
"""The log of a run whose console goes away."""

import subprocess
import sys

from helpers import ROOT

PROGRAM = """
import sys, time
from pathlib import Path
from src.utils.logging import set_up_logging
log = set_up_logging(file=Path(sys.argv[1]))
for number in range(50):
    log.info("line %d", number)
    time.sleep(0.01)
"""


def test_names_that_are_not_utf_8_are_logged_escaped(tmp_path):
    program = PROGRAM.replace('"line %d", number', "'caf\\udce9'")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "log"], cwd=ROOT, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, check=True)
    assert not done.stderr and "caf\\udce9\n" in (tmp_path / "log").read_text()


def test_a_reader_that_leaves_early_does_not_disturb_the_run(tmp_path):
    """As with `python train.py | head -1`: no complaints, and the file has every line."""
    log = tmp_path / "train.log"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, log], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "line 0\n"
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 0
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [f"line {i}" for i in range(50)]
