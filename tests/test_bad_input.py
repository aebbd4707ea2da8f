# SPDX-License-Identifier: Apache-2.0
"""What users get wrong: one clear message, exit status 2, no traceback, and nothing written.

The table `files/bad_input.txt` has at least eight mistakes for each command. Each answer comes within ten seconds, and
takes less than a gigabyte.
"""

import json
import os
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time
import zlib
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TINY, Outcome, run_main, run_python, write_cifar10, write_class_folders, write_image
from launches import SCRIPTS, environment, wait_until

from model_utils.config import get_config
from src.data.cifar10 import CLASS_NAMES
from src.deploy.model_card import ExportedFile, ModelCard
from src.weights.model_info import ModelInfo

RECORD = 3073
ABSENT = "GPU" if glob("/dev/davinci[0-9]*") else "Ascend"


def table() -> list:
    rows = []
    for line in (ROOT / "tests" / "files" / "bad_input.txt").read_text(encoding="utf-8").splitlines():
        words, arrow, said = line.partition(" -> ")
        if arrow and line[0] != "#":
            is_slow = ".sh " in words and "run_infer_310" not in words  # most start Python, and MindSpore
            marks = pytest.mark.slow if is_slow else ()
            rows.append(pytest.param(words, said.split(), id=words[:70], marks=marks))
    return rows


def bomb(encoded: bytes) -> bytes:
    """The image with a header that claims 60,000 x 60,000 pixels."""
    data = bytearray(encoded)
    if data[:1] == b"\x89":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        frame = data.index(b"\xff\xc0") + 5
        data[frame:frame + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder in which the commands of the table run."""
    from src.weights.checkpoint import INFO_KEY, write_file

    here = tmp_path_factory.mktemp("bad")
    deep, nines = "[" * 10**5, "9" * 5000
    os.mkfifo(here / "fifo")
    (here / "loop").symlink_to("loop")
    for name, size, label in (("cifar_cut", 5 * RECORD - 1, 1), ("cifar_empty", 0, 1), ("cifar_label", None, 10)):
        file = write_cifar10(here / name).folder / "cifar-10-batches-bin/data_batch_3.bin"
        content = bytearray(file.read_bytes())
        content[4 * RECORD] = label
        file.write_bytes(content[:size])
    write_class_folders(here / "no_images", each=1)
    for image in list((here / "no_images/train/bee").iterdir()):
        image.rename(image.with_suffix(".txt"))
    (write_class_folders(here / "other_classes") / "val/cow").rename(here / "other_classes/val/dog")
    for name in ("folder", "pipes/cifar-10-batches-bin", "pipes_test/cifar-10-verify-bin", "dead_venv/bin",
                 "moved_venv/bin", "shapes_list", "shapes_deep"):
        (here / name).mkdir(parents=True)
    os.mkfifo(here / "pipes/cifar-10-batches-bin/data_batch_1.bin")
    os.mkfifo(here / "pipes_test/cifar-10-verify-bin/test_batch.bin")
    (here / "dead_venv/bin/python").symlink_to("nothing")
    (here / "moved_venv/bin/python").symlink_to(sys.executable)
    write_cifar10(here / "cifar")
    table = {"rank_id": "0", "device_id": "0"}
    (here / "table.json").write_text(json.dumps({"server_list": [{"server_id": "10.0.0.1", "device": [table]}]}))
    write_image(here / "photo.png", np.zeros((40, 40, 3), np.uint8))
    (here / "run.state").symlink_to(ROOT / "tests/files/first_version/resume/step-00000006.state")
    texts = {
        "large.yaml": "seed: 1\n" * 10**5, "hex.yaml": f"lr: 0x{'f' * 400}", "deep.yaml": f"lr_epochs: {deep}",
        "bomb.yaml": "lr: &a [x]\n" + "".join(f"{to}: &{to} [{', '.join([f'*{name}'] * 9)}]\n"
                                              for name, to in zip("abcdefgh", "bcdefghi", strict=True)),
        "tag.yaml": "lr: !!bool maybe", "steps.yaml": "model: vgg16\nscheduler: step_decay\ndecay_epochs: 1e-9",
        "archive.npy": "PK\x03\x04", "merge.yaml": "seed: &a {x: 1}\nlr: {<<: [*a, *a]}\n",
        "long_key.yaml": f"{'k' * 1000}: 1\n", "nested.yaml": f"lr_epochs: {'[' * 1500}\n",
        "long_value.yaml": f"max_epoch: {'x' * 10**5}\n", "many.yaml": f"lr_epochs: [{'1, ' * 5000}]\n",
        "latin.json": "\udcff", "latin.txt": "\udcff", "deep.json": deep, "list.json": "[]",
        "digits.json": f"[{nines}]", "labels.json": "[1]",
        "rank_digits.json": json.dumps({"status": "completed", "server_list": [{"server_id": "10.0.0.1", "device": [
            {"rank_id": nines, "device_id": "0"}]}]}),
        "page.pth": "<!DOCTYPE html>", "keras.ckpt": "\udc89HDF\r\n", "text.ckpt": "hello",
        "pointer.safetensors": "version https://git-lfs.github.com",
        "folder/empty.ckpt": "", "noise.ckpt": "noise" * 2000, "shapes_list/shapes.json": "[]", "shapes_list/other": "",
        "shapes_deep/shapes.json": deep, "moved_venv/vgg-environment": "/elsewhere\n"}
    info = ModelInfo.of(get_config(["--data_dir=x", *TINY]), CLASS_NAMES)
    card = ModelCard(info, "x.ckpt", "0" * 64, {"MINDIR": ExportedFile(
        file="card.mindir", sha256="0" * 64, size_bytes=1, batch_size=1, input_name="x", parity=None)}).to_json()
    cards = {"card": "", "size": "image_size=[33,33]", "negative": "image_size=[-32,-32]", "sign": "std=[-1,1,1]",
             "letters": 'mean=["a","b","c"]', "interpolation": 'interpolation="foo"', "short": "mean=[0.1]",
             "tiny": "std=[1e-320,1,1]", "batch": "batch_size=-1", "no_files": "files=3", "version": "version=[]"}
    for name, change in cards.items():
        data, (key, _, value) = json.loads(card), change.partition("=")
        owner = next((part for part in (data["preprocessing"], data["files"]["MINDIR"]) if key in part), data)
        owner |= {key: json.loads(value)} if key else {}
        texts[f"{name}.json"] = json.dumps(data)
    for name in (*cards, "list", "deep", "digits", "latin"):
        (here / f"{name}.mindir").write_bytes(b"x")
    for name, text in texts.items():
        (here / name).write_bytes(text.encode(errors="surrogateescape"))
    np.save(here / "pickled.npy", np.array([{}]), allow_pickle=True)
    changes = {"network": "vgg99", "classes": ("num_classes", "ten"), "size": ("image_size", [33, 33]),
               "huge": ("image_size", [65536, 65536]), "std": ("image_std", [1e-320, 1, 1]),
               "names": ("class_names", ["a"])}
    record = json.loads(info.model_dump_json())
    records = {name: json.dumps(record | dict([change if isinstance(change, tuple) else (name, change)]))
               for name, change in changes.items()} | {"deep": deep, "record_is_list": "[]"}
    for name, text in records.items():
        write_file(here / f"{name}.ckpt", {INFO_KEY: text}, [("x", np.zeros(1, np.float32))])
    lists = {"superscript": "0.png ²", "arabic": "0.png ٣", "dashes": "0.png --5", "digits": f"0.png {nines}",
             "labels": "0.png 0", "image_is_pipe": "0.png 0\n" * 32}
    for name, text in lists.items():
        (here / name).mkdir()
        (here / name / "train_list.txt").write_text(text, encoding="utf-8")
        write_image(here / name / "0.png", np.zeros((40, 40, 3), np.uint8))
    (here / "labels/labels.txt").write_text(f"{nines}:a\n")
    (here / "image_is_pipe/labels.txt").write_text("0:a\n1:b\n2:c\n")
    (here / "image_is_pipe/0.png").unlink()
    os.mkfifo(here / "image_is_pipe/0.png")
    changes = {"bomb_jpeg/bomb.jpg": bomb, "bomb_png/bomb.png": bomb, "cut_jpeg/cut.jpg": lambda data: data[:300],
               "half_jpeg/half.jpg": lambda data: data[:len(data) // 2]}
    for name, change in changes.items():
        folder, file = name.split("/")
        for path in list(write_class_folders(here / folder, splits=["train"], each=1).glob("train/*/*")):
            path.unlink()
            write_image(path.with_name(file), np.random.RandomState(1).randint(0, 256, (90, 90, 3)).astype(np.uint8))
            path.with_name(file).write_bytes(change(path.with_name(file).read_bytes()))
    return here


@pytest.mark.parametrize(("words", "said"), table())
def test_every_command_answers_a_mistake_in_few_words(place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    words = shlex.split(words.replace("{NINES}", "9" * 5000).replace("{HERE}", str(place)).replace("{ABSENT}", ABSENT))
    index = next(index for index, word in enumerate(words) if "=" not in word)
    settings, command, args = dict(word.split("=", 1) for word in words[:index]), words[index], words[index + 1:]
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("no answer"))
    signal.alarm(20)
    before, start = set(place.rglob("*")), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if command.endswith(".sh"):
        done = subprocess.run(["bash", SCRIPTS / command, *args], env=environment(PIP_NO_INDEX="1", **settings),
                              capture_output=True, text=True, timeout=60)
        outcome = Outcome(done.returncode, done.stdout, done.stderr)
    else:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        small = [*TINY, "--batch_size=1", "--graph_mode=False", "--ckpt_path=runs"] if command == "train" else []
        if command == "yaml":
            Path("runs").mkdir(exist_ok=True)
            Path("runs/recipe.yaml").write_text(args[0].replace("\\n", "\n"))
            command, args = "train", ["-c", "runs/recipe.yaml"]
        outcome = run_main(command, *small, *args)
    signal.alarm(0)
    assert outcome.status == 2 or command == "scripts.check_dataset" and outcome.status in (1, 2), outcome
    assert "Traceback" not in outcome.err and len(outcome.err) < 20_000, outcome.err[-3000:]
    assert [word for word in said if word.replace(".", " ") not in outcome.err and word not in outcome.err] == [], \
        outcome.err[:3000]
    assert "s3cr3t" not in outcome.err
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**20
    assert [path for path in place.rglob("*")
            if path not in before and place / "runs" not in (path, *path.parents)] == []


def test_the_error_of_a_process_is_its_message_alone(tmp_path):
    outcome = run_python(str(ROOT / "eval.py"), "--lr=abc", cwd=tmp_path)
    assert outcome.status == 2 and outcome.out == "" and list(tmp_path.iterdir()) == []
    assert outcome.err.startswith("eval.py: error: ") and "'abc' (from --lr)" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    write_cifar10(tmp_path / "data")
    command = [sys.executable, str(ROOT / "scripts" / "check_dataset.py"), f"--data_dir={tmp_path / 'data'}"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize(("target", "status", "said"), [
    ("&-", 2, "standard output is closed"), ("/dev/full", 1, "standard output cannot be written: No space left")])
def test_output_that_goes_nowhere_costs_one_line(place, target, status, said):
    command = shlex.join([sys.executable, str(SCRIPTS / "hccl_tools.py"), "--check=table.json"]) + f" >{target}"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_ctrl_c_while_a_command_imports_its_modules_ends_it_with_one_line():
    program = ("import os, signal, time\nfrom model_utils.errors import stop_quietly\nstop_quietly(__name__)\n"
               "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    outcome = run_python("-c", program)
    assert outcome.status == 130 and outcome.err == "-c: stopped by SIGINT\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_removes_what_it_had_not_finished(tmp_path, number):
    command = [sys.executable, SCRIPTS / "make_shapes.py", tmp_path / "shapes", "--train=1000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: any(tmp_path.glob("*/set")), timeout_s=60, what="the hidden folder")
        run.send_signal(number)
        assert run.wait(60) == 128 + number and run.stderr.read() == f"make_shapes.py: stopped by {number.name}\n"
    assert list(tmp_path.iterdir()) == []
