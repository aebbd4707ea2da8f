# SPDX-License-Identifier: Apache-2.0
"""run_infer_310.sh on the CPU, from the test set to the accuracy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, Deployed, Outcome, program


def device(cwd: Path, *args: object, **variables: str) -> Outcome:
    """The script, from an empty folder, with the Python of the tests."""
    cwd.mkdir(exist_ok=True)
    env = os.environ | {"PYTHON": sys.executable, "GLOG_v": "3"} | variables
    done = subprocess.run(["bash", ROOT / "scripts" / "run_infer_310.sh", *map(str, args)], cwd=cwd, env=env,
                          capture_output=True, text=True, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


def counts(folder: Path) -> tuple[int, int, int]:
    """Top-1 and top-k right and all images, by acc.log."""
    text = (folder / "acc.log").read_text()
    total, top1, topk = map(int, re.search(r"(\d+) images: top1_correct=(\d+), top\d_correct=(\d+)", text).groups())
    share = float(re.search(r"(?:'acc'|Top1 acc): (\d\.\d{4})$", text, re.MULTILINE)[1])
    assert share == round(top1 / total, 4)
    return top1, topk, total


def test_cifar10_with_mindspore(cifar_model: Deployed, tmp_path):
    (tmp_path / "the data").symlink_to(cifar_model.data)
    printed = device(tmp_path / "w", cifar_model.mindir, "cifar10", "../the data", "y", ENGINE="mindspore").printed()
    assert counts(tmp_path / "w") == cifar_model.counts
    for words in ("'acc': 0.", f"mindspore runs {cifar_model.mindir}"):
        assert words in printed
    assert len(list((tmp_path / "w" / "result_Files").glob("*_0.bin"))) == cifar_model.counts[2]
    times = (tmp_path / "w" / "time_Result" / "test_perform_static.txt").read_text()
    assert f"infer_count {cifar_model.counts[2]}\n" in times


def test_cifar10_with_onnxruntime_then_without_preprocessing(cifar_model: Deployed, tmp_path):
    """Inputs and labels of one call belong together, whatever their folder is called. A device has no MindSpore."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mindspore'] = None\n")
    here, expected, prepared = tmp_path / "w", cifar_model.counts, tmp_path / "w" / "preprocess_Result"
    device(here, cifar_model.onnx, "cifar10", cifar_model.data, "y", "0", "--per_batch_size=5",
           "--dataset_format=cifar10", PYTHONPATH=str(tmp_path)).printed()
    names = {path.name for path in (prepared / "00_data").iterdir()}
    assert names == {f"VGG11_data_bs5_{number}.bin" for number in range(8)}  # 37 images, the last file has two
    assert counts(here) == expected

    other = tmp_path / "d [1]"
    other.mkdir()
    for path in (*(prepared / "00_data").iterdir(), prepared / "cifar10_label_ids.npy"):
        shutil.copy(path, other)
    for data in (cifar_model.data, other):
        if data == other:
            for path in (prepared / "00_data").iterdir():
                path.write_bytes(bytes(path.stat().st_size))  # must not be used
        printed = device(here, cifar_model.onnx, "cifar10", data, "n", "", PYTHONPATH=str(tmp_path)).printed()
        assert counts(here) == expected
        assert "preprocess: done" not in printed
    (other / "cifar10_label_ids.npy").unlink()
    said = device(here, cifar_model.onnx, "cifar10", other, "n", PYTHONPATH=str(tmp_path)).refusal()
    assert f"there is no cifar10_label_ids.npy for {other}" in said


def test_imagenet_in_batches_then_without_preprocessing(photo_model: Deployed, tmp_path):
    """The MindIR takes four images at a time, and there are 22."""
    here, expected = tmp_path / "w", photo_model.counts
    printed = device(here, photo_model.mindir, "imagenet2012", photo_model.data, "Y").printed()
    assert counts(here) == expected and "Top1 acc: " in printed and "Top2 acc: " in printed
    assert expected[2] == 22 == len(list((here / "result_Files").iterdir()))
    assert (here / "result_Files" / "n01_00000001_0.bin").is_file()
    labels = json.loads((here / "preprocess_Result" / "imagenet_label.json").read_text())
    assert labels["n01_00000001.JPEG"] == 0 and labels["bee__0_jpg.jpg"] == 1 and len(labels) == 22

    printed = device(here, photo_model.mindir, "imagenet2012", photo_model.data / "val", "n", "--engine=mindspore",
                     ENGINE="lite").printed()
    assert counts(here) == expected and f"mindspore runs {photo_model.mindir}" in printed


@pytest.mark.parametrize("script, log, status", [("preprocess", "preprocess.log", 3), ("infer", "infer.log", 7),
                                                 ("postprocess", "acc.log", 1)])
def test_a_failing_stage_ends_it(cifar_model: Deployed, tmp_path, script, log, status):
    """With a Python that plays the stages and lets one of them fail."""
    acc = tmp_path / "w" / "acc.log"
    python = program(tmp_path / "python", f"""#!/bin/sh
        case "$1" in
            */{script}.py) echo "the reason"; echo "on standard error" >&2; exit {status} ;;
            */postprocess.py) echo "'acc': 0.5000" ;;
        esac
        """)
    acc.parent.mkdir()
    acc.write_text("'acc': 0.9999")
    done = device(tmp_path / "w", cifar_model.onnx, "cifar10", cifar_model.data, "y", PYTHON=str(python))
    assert done.status == status
    assert f"failed with status {status}; the end of {tmp_path / 'w' / log}:" in done.err
    assert "the reason" in done.err and "on standard error" in done.err
    assert "'acc'" not in done.out
    assert not acc.exists() or "'acc'" not in acc.read_text()  # neither a new nor an old one
