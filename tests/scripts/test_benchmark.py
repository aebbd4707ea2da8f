# SPDX-License-Identifier: Apache-2.0
"""benchmark.py through its command line, in small: what it records, counts, compares and refuses, but no timings."""

import json
import shutil
import sys
import textwrap

import pytest
from helpers import ROOT, TINY, Outcome, run_main, write_cifar10

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from scripts.benchmarks import measure, roofline
from scripts.benchmarks.contenders import TASKS
from scripts.benchmarks.record import without_absolute_paths
from scripts.benchmarks.report import TITLES
from src import build

# vgg11 of width 0.125 at 32x32: multiplications for one image
FIRST_CONVOLUTION = 9 * 3 * 8 * 32 * 32
OTHER_CONVOLUTIONS = 9 * (8 * 16 * 16**2 + (16 * 32 + 32 * 32) * 8**2 + (32 * 64 + 64 * 64) * 4**2 + 2 * 64 * 64 * 2**2)
DENSE = 64 * 512 + 512 * 512 + 512 * 10
FORWARD_GFLOP = 2 * (FIRST_CONVOLUTION + OTHER_CONVOLUTIONS + DENSE) / 1e9
STEP_GFLOP = 3 * FORWARD_GFLOP - 2 * FIRST_CONVOLUTION / 1e9

STAND_IN = """
    import json, sys
    request = json.loads(sys.stdin.readline())
    json.dump(request, open({request!r}, "w"))
    print(json.dumps({{"torch": "0.1", "contenders": ["torch, plain", "torch, other"]}}), flush=True)
    for line in sys.stdin:
        print({{"torch, plain": 0.5, "torch, other": 0.25}}[line.strip()], flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Timings are of no interest here."""
    monkeypatch.setattr(measure, "PAUSE_S", 0)
    monkeypatch.setattr(roofline, "MATRIX_SIDE", 64)


@pytest.fixture
def interpreter(tmp_path):
    """A call that makes a program with this text that can stand in for the Python that has torch."""

    def make(text: str) -> str:
        (tmp_path / "stand_in.py").write_text(textwrap.dedent(text), encoding="utf-8")
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path / 'stand_in.py'}'\n", encoding="utf-8")
        program.chmod(0o755)
        return str(program)

    return make


def benchmark(*args: object) -> Outcome:
    return run_main("scripts.benchmark", "--blocks=2", "--steps=2", *args)


def refusal(*args: object) -> str:
    done = benchmark(*args)
    assert done.status == 2 and not done.out, done
    return done.err


def measured(tmp_path, *args: object) -> dict:
    """The record of a run, which tells nothing of where files lie here."""
    done = benchmark(f"--json={tmp_path / 'result.json'}", *args)
    assert done.status == 0, done.err
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and str(ROOT) not in text and sys.prefix not in text
    record = json.loads(text)
    for result in record["results"]:
        assert f"{TITLES[result['what']]}\n" in done.out
        for name, row in result["rows"].items():
            assert f"| {name} " in done.out
            assert 0 < row["min"] <= row["median"] <= row["max"] and row["n"] == 2
    return record


def test_steps_record_the_machine_and_the_roofline(tmp_path):
    write_cifar10(tmp_path / "data")
    record = measured(tmp_path, *TINY, f"--data_dir={tmp_path / 'data'}", "--batch_size=4")
    assert record["flags"] == [*TINY, "--data_dir=data", "--batch_size=4"]
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1 and record["date"][:2] == "20"
    assert set(record["versions"]) == {"python", "mindspore", "numpy"} and record["blocks"] == record["steps"] == 2
    [result] = record["results"]
    assert result["case"] == {"network": "vgg11", "width": 0.125, "image_size": [32, 32], "batch_size": 4,
                              "device": "CPU"}
    *ours, mindspore, numpy = result["rows"].values()
    assert len(ours) == 2
    for row in ours:
        assert row["gflop_per_step"] == pytest.approx(4 * STEP_GFLOP, rel=1e-5)
        assert row["gflop_per_s"] == pytest.approx(4 * STEP_GFLOP / row["median"] * 1000, rel=1e-4)
        assert row["images_per_s"] == pytest.approx(4 / row["median"] * 1000, rel=1e-4)
        fastest = max(mindspore["gflop_per_s"], numpy["gflop_per_s"])
        assert row["share_of_matmul"] == pytest.approx(row["gflop_per_s"] / fastest, rel=1e-4)
    assert "share_of_matmul" not in numpy and numpy["gflop_per_step"] == pytest.approx(2 * 64**3 / 1e9, rel=1e-5)


def test_cases_and_pytorch_in_one_record(tmp_path, interpreter):
    request = tmp_path / "request.json"
    record = measured(tmp_path, *TINY, "--what=forward,matmul", "--cases=vgg11:32:2,vgg13:32x64:1", "--compare=torch",
                      f"--torch_python={interpreter(STAND_IN.format(request=str(request)))}", "--use_nesterov")
    assert [(item["what"], item["case"]["network"], item["case"]["image_size"], item["case"]["batch_size"])
            for item in record["results"]] == [("forward", "vgg11", [32, 32], 2), ("matmul", "vgg11", [32, 32], 2),
                                               ("forward", "vgg13", [32, 64], 1), ("matmul", "vgg13", [32, 64], 1)]
    rows = record["results"][0]["rows"]
    assert rows["forward pass, one fixed batch"]["gflop_per_step"] == pytest.approx(2 * FORWARD_GFLOP, rel=1e-5)
    assert rows["torch, plain"]["median"] == 500 and rows["torch, other"]["images_per_s"] == 8
    assert rows["torch, other"]["gflop_per_step"] == pytest.approx(2 * FORWARD_GFLOP, rel=1e-5)
    assert record["versions"]["torch"] == "0.1"
    asked = json.loads(request.read_text())  # the last one: vgg13 at 32x64, whose last map has two pixels
    assert asked["channels"] == [8, 8, 0, 16, 16, 0, 32, 32, 0, 64, 64, 0, 64, 64, 0]
    assert asked["units"] == [[128, 512], [512, 512], [512, 10]] and asked["mode"] == "forward"
    assert asked["use_nesterov"] and asked["momentum"] == 0.9 and asked["weight_decay"] == 5e-4 and asked["steps"] == 2
    kernels = 9 * (3 * 8 + 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 3 * 64 * 64)
    norms = 2 * 2 * (8 + 16 + 32 + 64 + 64)
    assert asked["parameters"] == kernels + norms + 128 * 512 + 512 * 512 + 512 * 10 + 512 + 512 + 10


def test_the_pipeline_of_every_preset(tmp_path):
    write_cifar10(tmp_path / "data")
    record = measured(tmp_path, *TINY, f"--data_dir={tmp_path / 'data'}", "--batch_size=4", "--what=pipeline")
    [result] = record["results"]
    assert list(result["rows"]) == ["training, with augmentation", "training, without augmentation", "evaluation"]
    assert all("images_per_s" in row and "cpu_ms" in row for row in result["rows"].values())


def test_loading_makes_a_checkpoint_where_none_is_given(tmp_path):
    [result] = measured(tmp_path, *TINY, "--what=loading")["results"]
    assert list(result["rows"]) == ["reading new.ckpt", "a network with these weights"]


@pytest.mark.slow
def test_what_fresh_processes_tell(tmp_path):
    record = measured(tmp_path, *TINY, "--dataset=synthetic", "--synthetic_train_images=20", "--batch_size=4",
                      "--what=startup,memory", "--scaling")
    startup, memory, scaling = (list(result["rows"].values()) for result in record["results"])
    assert {row["unit"] for row in startup} == {"s"} and len(startup) == 5
    assert sum(row["min"] for row in startup[1:4]) <= startup[0]["max"]
    assert {row["unit"] for row in memory} == {"MiB"} and all(row["median"] > 50 for row in memory)
    assert scaling[0]["efficiency"] == 1 and all(row["images_per_s"] > 0 for row in scaling)
    assert len(scaling) == 1 or "2 ranks on a core each" in record["results"][2]["rows"]


def test_the_count_knows_vgg16_and_what_does_not_train():
    from src.training.optimizer import freeze
    from src.utils.var_init import drawn_later
    from src.vgg import vgg11, vgg16

    with drawn_later():
        large = vgg16()
    assert roofline.forward_gflop(large, (224, 224), 1) == pytest.approx(30.94, abs=0.01)  # 15.47 G multiply-adds
    small = vgg11(10, image_size=(32, 32), width=0.125)
    assert roofline.step_gflop(small, (32, 32), 1) == pytest.approx(STEP_GFLOP)
    freeze(small, "features")  # then only the dense layers learn, the first of them without an input gradient
    backward = 2 * (2 * DENSE - 64 * 512) / 1e9
    assert roofline.step_gflop(small, (32, 32), 1) == pytest.approx(FORWARD_GFLOP + backward)


def row(median: float, **more: float) -> dict:
    return {"unit": "ms", "median": median, "min": 0.9 * median, "max": 1.2 * median, "n": 7, **more}


def written(path, rows: dict, *, mindspore: str = "2.8.0", **environment: str):
    case = {"network": "vgg16", "width": 1.0, "image_size": [32, 32], "batch_size": 64, "device": "CPU"}
    record = {"date": "2025-01-31", "machine": {"cpu": "A processor", "architecture": "x86_64", "cores": 2},
              "versions": {"python": "3.11.7", "mindspore": mindspore}, "environment": environment,
              "flags": ["--lr=1"], "blocks": 7, "steps": 20,
              "results": [{"what": "steps", "case": case, "rows": rows}]}
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_a_table_of_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.json", {"bare": row(400, images_per_s=160, gflop_per_s=300.0, share_of_matmul=0.95),
                                  "loop": row(500, images_per_s=128)})
    written(tmp_path / "b.json", {"bare": row(40000, images_per_s=1.6)}, mindspore="2.10.0", ONEDNN_MAX_CPU_ISA="ALL")
    assert run_main("scripts.benchmark", "--table", "a.json", "b.json").out == textwrap.dedent("""\
        **Training steps**

        | network | with | measured | median | smallest to largest | n | images/s | of the first | GFLOP/s | of the matrix rate |
        | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
        | vgg16, 32x32, batch 64 | MindSpore 2.8.0 | bare | 400.0 ms | 360.0 to 480.0 | 7 | 160.0 | 100.0 % | 300.0 | 95.0 % |
        | vgg16, 32x32, batch 64 | MindSpore 2.8.0 | loop | 500.0 ms | 450.0 to 600.0 | 7 | 128.0 | 80.0 % |  |  |
        | vgg16, 32x32, batch 64 | MindSpore 2.10.0, ONEDNN_MAX_CPU_ISA=ALL | bare | 40,000 ms | 36,000 to 48,000 | 7 | 1.600 | 100.0 % |  |  |

        * [a.json](a.json): A processor, 2 cores; Python 3.11.7, MindSpore 2.8.0; 2025-01-31; 7 blocks of 20 steps; flags `--lr=1`
        * [b.json](b.json): A processor, 2 cores; Python 3.11.7, MindSpore 2.10.0, ONEDNN_MAX_CPU_ISA=ALL; 2025-01-31; 7 blocks of 20 steps; flags `--lr=1`
        """)  # noqa: E501


def test_refresh_renews_what_is_between_the_marks_and_nothing_else(tmp_path):
    written(tmp_path / "a.json", {"bare": row(400)})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scripts/benchmark.py --table a.json -->\nold\n<!-- end of tables -->\nbehind\n")
    assert run_main("scripts.benchmark", "--refresh", page).status == 0
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- scripts/benchmark.py --table a.json -->"]
    assert lines[-2:] == ["<!-- end of tables -->", "behind"]
    assert "old" not in lines and any("| bare | 400.0 ms |" in line for line in lines)


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_the_tables_of_the_readme_are_those_of_the_records(tmp_path, name):
    shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert run_main("scripts.benchmark", "--refresh", tmp_path / name).status == 0
    assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_two_files_side_by_side(tmp_path):
    first = written(tmp_path / "a.json", {"bare": row(400, images_per_s=160), "loop": row(500, images_per_s=128)})
    second = written(tmp_path / "b.json", {"bare": row(200, images_per_s=320), "new": row(7)}, mindspore="2.9.0")
    done = run_main("scripts.benchmark", "--diff", first, second)
    assert done.status == 0 and "A: A processor" in done.out and "MindSpore 2.9.0" in done.out
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in done.out.splitlines() if "| steps" in line]
    assert rows == [["bare", "400.0 ms", "200.0 ms", "0.500", "100.0 %", "100.0 %"],
                    ["loop", "500.0 ms", "-", "-", "80.0 %", ""],
                    ["new", "-", "7.000 ms", "-", "", ""]]


@pytest.mark.parametrize(("args", "message"), [
    (["--what=steps,speed"], "unknown 'speed'; there are all, steps, forward"),
    (["--blocks=0"], "--blocks: must be a number from 1 on, not '0'"),
    (["--cases=vgg16:32"], "'vgg16:32' is not NETWORK:SIZE:BATCH"),
    (["--cases=vgg11:32:4,vgg99:32:4"], "network: must be one of vgg11, vgg13, vgg16, vgg19, not 'vgg99'"),
    (["--torch_python=python3"], "--torch_python: has no meaning without --compare=torch"),
    (["--compare=torch", "--torch_python=./none", "--what=forward", *TINY], "./none cannot be started"),
    (["--compare=torch", "--freeze=features"], "--compare=torch: knows nothing of --freeze"),
    (["--table", "none.json"], "none.json: cannot be read"),
    (["--table", "README.md"], "README.md: is no file that benchmark.py --json has written"),
    (["--table", "docs/kill_test.json"], "kill_test.json: is no file that benchmark.py --json has written"),
    (["--diff", "none.json", "none.json", "--lr=1"], "--lr=1: has no meaning with --diff, --table and --refresh"),
    (["--refresh", "CHANGELOG.md"], "CHANGELOG.md has no line `<!-- scripts/benchmark.py --table FILE"),
    (["--refresh", "none.md"], "none.md cannot be read or written: No such file"),
    (["--diff", "docs/benchmark_memory.json", "docs/benchmark_startup.json"], "the two files have no row in common"),
    (["--diff", "none.json", "none.json", "--table", "none.json"], "not allowed with argument"),
    (["--what=memory", "--compare=torch"], "--compare: PyTorch is measured with --what=steps, forward, operators only"),
    (["--json=docs", *TINY, "--dataset=synthetic"], "--json: docs cannot be written: it is a folder"),
    (["--json=none/a.json", *TINY, "--dataset=synthetic"], "--json: none/a.json cannot be written"),
    (["--speed=3"], "unknown flag"),
    (TINY, "data_dir: is not given"),
    ([*TINY, "--dataset=synthetic", "--synthetic_train_images=8", "--batch_size=4"],
     "--steps: 2 steps and a first one do not fit into an epoch of 2"),
])
def test_what_is_wrong_is_said_with_status_2(monkeypatch, args, message):
    monkeypatch.chdir(ROOT)
    assert message in refusal(*args)


def test_a_python_without_torch_is_refused(interpreter):
    python = interpreter("import sys; sys.stdin.readline(); sys.exit(\"No module named 'torch'\")")
    said = refusal(*TINY, "--what=forward", "--compare=torch", f"--torch_python={python}")
    assert "PyTorch does not answer" in said and "No module named 'torch'; --torch_python=PYTHON names" in said


def test_flags_lose_where_this_machine_keeps_its_files():
    flags = ["--data_dir=/mnt/my data/photos", "--data_dir", "/photos", "--input=~/a,/b/c", "--ckpt_path=outputs/x",
             "--freeze=layers.[0-9].*"]
    assert without_absolute_paths(flags) == ["--data_dir=photos", "--data_dir", "photos", "--input=a,c",
                                             "--ckpt_path=outputs/x", "--freeze=layers.[0-9].*"]


def test_every_task_has_a_title():
    assert set(TITLES) == set(TASKS)


def test_the_layers_of_a_network_one_by_one(tmp_path):
    """Equal layers once, with how many there are; together they compute what the whole network computes."""
    record = measured(tmp_path, "--what=operators", *TINY, "--dataset=synthetic", "--batch_size=2", "--network=vgg13")
    rows = record["results"][0]["rows"]
    counts = {name: int(name.split("(")[1].removesuffix("x)")) for name in rows if name.endswith("x)")}
    assert counts["convolution 3 to 8, 32x32 (1x)"] == 1 and counts["convolution 64 to 64, 2x2 (2x)"] == 2
    assert sum(count for name, count in counts.items() if name.startswith("convolution")) == 10
    network = build.build_network(get_config([*TINY, "--network=vgg13"]), set_up_device(get_config(TINY)))
    assert sum(counts[name] * rows[name].get("gflop_per_step", 0) for name in counts) \
        == pytest.approx(roofline.step_gflop(network, (32, 32), 2), rel=1e-4)
    assert "optimizer, all parameters" in rows
