# SPDX-License-Identifier: Apache-2.0
"""benchmark.py through its command line, in small: what it records, counts and refuses, but no timings."""

import json
import sys

import pytest
from helpers import TINY, must_run, program

from scripts import benchmark
from scripts.benchmarks import tasks

DATA = ("--dataset=synthetic", "--synthetic_train_images=16", "--synthetic_test_images=16", "--batch_size=4")
# vgg11 of width 0.125 at 32x32: operations of the forward pass for one image, 2 for each multiply and add
FIRST = 2 * 9 * 3 * 8 * 32 * 32
FORWARD = FIRST + 2 * (9 * (8 * 16 * 16**2 + (16 * 32 + 32 * 32) * 8**2 + (32 * 64 + 64 * 64) * 4**2 + 2 * 64 * 64 * 4)
                       + 64 * 512 + 512 * 512 + 512 * 10)
TORCH = """
import json, sys
from pathlib import Path
about = json.loads(sys.stdin.readline())
Path(__file__).with_name("request.json").write_text(json.dumps(about))
print(json.dumps({"torch": "0.1", "contenders": ["torch, plain"]}), flush=True)
for line in sys.stdin:
    print(0.5, flush=True)
"""
ROWS = {"steps": 2, "forward": 2, "pipeline": 3}  # without those of the matrix product


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE_S", 0)
    monkeypatch.setattr(tasks, "MATRIX_SIDE", 64)


def measured(tmp_path, *args: str) -> dict:
    path = tmp_path / "result.json"
    done = must_run("scripts.benchmark", "--blocks=2", "--steps=2", f"--json={path}", *TINY, *DATA, *args)
    record = json.loads(path.read_text())
    assert done.out.count("| vgg11 of width 0.125, 32x32, batch 4 ") == len(record["results"][0]["rows"])  # the table
    return record


@pytest.mark.parametrize("task", ROWS)
def test_each_task_gives_its_rows(tmp_path, task):
    record = measured(tmp_path, f"--what={task}")
    [result] = record["results"]
    rows = [row for name, row in result["rows"].items() if "product of" not in name]
    assert len(rows) == ROWS[task]
    assert all(0 < row["min"] <= row["median"] <= row["max"] and row["n"] == 2 for row in result["rows"].values())
    assert result["case"] == {"network": "vgg11", "width": 0.125, "image_size": [32, 32], "batch_size": 4,
                              "device": "CPU"}
    gflop = {"steps": 4 * (3 * FORWARD - FIRST) / 1e9, "forward": 4 * FORWARD / 1e9}.get(task)
    assert rows[0].get("gflop_per_step") == (gflop and pytest.approx(gflop, rel=1e-5))


def test_pytorch_gets_the_same_network_and_settings(tmp_path):
    (tmp_path / "worker.py").write_text(TORCH)
    python = program(tmp_path / "python", f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/worker.py"\n')
    record = measured(tmp_path, "--what=forward", "--compare=torch", f"--torch_python={python}")
    assert record["results"][0]["rows"]["torch, plain"]["images_per_s"] == 8 and record["versions"]["torch"] == "0.1"
    asked = json.loads((tmp_path / "request.json").read_text())
    assert {"has_bias", "average_pool", "num_classes", "smoothing", "lr", "momentum", "use_nesterov", "weight_decay",
            "dropout_rate", "seed", "parameters", "batch_norm", "batch_size", "image_size", "include_top"} <= set(asked)
    assert asked["mode"] == "forward" and asked["stages"] == [1, 1, 2, 2, 2] and len(asked["weights"]) == 11
    assert asked["weights"][0] == [8, 3, 3, 3] and asked["weights"][-3:] == [[512, 64], [512, 512], [10, 512]]
