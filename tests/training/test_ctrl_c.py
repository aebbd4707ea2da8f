# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of MindSpore's and MindData's work, whose own handlers would make a SIGTERM of it."""

import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, write_class_folders


@pytest.mark.parametrize(("program", "line"), [("eval.py", "loaded: "), ("eval.py", "checkpoint: "),
                                               ("infer.py", "loaded: "), ("infer.py", " %"), ("export.py", "loaded: ")])
def test_ctrl_c_ends_a_command_with_its_own_status_and_a_line(cifar_model, tmp_path, program, line):
    photos = write_class_folders(tmp_path / "photos", each=300, splits=["val"])
    flags = {"eval.py": [f"--pre_trained={cifar_model.checkpoint}", "--dataset=synthetic", "--per_batch_size=1",
                         "--synthetic_test_images=8000", f"--ckpt_path={tmp_path / 'outputs'}"],
             "infer.py": [f"--model_path={cifar_model.checkpoint}", f"--input={photos}"],
             "export.py": [f"--ckpt_file={cifar_model.checkpoint}", f"--file_name={tmp_path / 'exported'}"]}
    command = [sys.executable, "-u", ROOT / program, "--device_target=CPU", *flags[program]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while line not in run.stdout.readline():
            assert run.poll() is None, run.stderr.read()
        time.sleep(0.3)  # until the next thing has begun: compiling, or going through the images
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and err.endswith(f"{program}: stopped\n") and "Traceback" not in err
