# SPDX-License-Identifier: Apache-2.0
"""infer.py as its users call it: images in, predictions out, with and without MindSpore; and what it refuses."""

import csv
import errno
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from helpers import PLAIN, ROOT, TINY, Deployed, Outcome, must_run, run_main
from mindspore import Tensor
from PIL import Image

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from model_utils.schema import Preset
from src.build import build_network
from src.data.cifar10 import CLASS_NAMES
from src.data.pixels import decode
from src.deploy.engines import open_engine, predict
from src.deploy.images import prepare, read_image
from src.deploy.infer import best_guesses
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

PHOTO = Preset((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def infer(model: Path, source: Path, *flags: object) -> Outcome:
    return run_main("infer", f"--model_path={model}", f"--input={source}", "--device_target=CPU", *flags)


def lines(printed: str, folder: Path) -> dict[str, str]:
    """What was printed for each image of a folder."""
    return dict(line.removeprefix(f"{folder}/").split(": ", 1) for line in printed.splitlines()
                if line.startswith(f"{folder}/"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """One image in several formats, and once stored on its side with the EXIF data that turns it upright."""
    folder = tmp_path_factory.mktemp("images")
    rough = np.random.RandomState(1).randint(0, 256, (12, 16, 3)).astype(np.uint8)
    image = Image.fromarray(cv2.resize(rough, (160, 120), interpolation=cv2.INTER_CUBIC))
    image.save(folder / "a.jpg", quality=95)
    image.save(folder / "b.png")
    image.convert("L").save(folder / "c grey.jpg")
    image.convert("CMYK").save(folder / "d_cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "e_turned.jpg", exif=exif, quality=95)
    return folder


@pytest.fixture
def copied(cifar_model: Deployed, tmp_path) -> Path:
    """The ONNX file of an export in a folder of its own, with its card."""
    for path in (cifar_model.onnx, cifar_model.onnx.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / cifar_model.onnx.name


def test_every_engine_and_the_checkpoint_agree(photo_model: Deployed, images, tmp_path):
    """On what the network says about an image that is prepared as in training."""
    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    expected = {}
    for path in sorted(images.iterdir()):
        image = prepare(read_image(path), PHOTO, photos=True)[None]
        logits = session.run(None, {session.get_inputs()[0].name: image})[0][0]
        expected[str(path)] = best_guesses(logits, ("ant", "bee", "cow"), 3)
    for model in (photo_model.mindir, photo_model.onnx, photo_model.checkpoint):
        printed = infer(model, images, f"--save={tmp_path / 'p.json'}").printed()
        rows = json.loads((tmp_path / "p.json").read_text())
        assert [row["file"] for row in rows] == list(expected)
        for row, guesses in zip(rows, expected.values(), strict=True):
            assert [guess["name"] for guess in row["predictions"]] == [guess.name for guess in guesses]
            assert [guess["probability"] for guess in row["predictions"]] \
                == pytest.approx([guess.probability for guess in guesses], abs=1e-4)
        for said, guesses in zip(lines(printed, images).values(), expected.values(), strict=True):
            assert said.startswith(guesses[0].name) and said.count("%") == 3
    (tmp_path / "list.txt").write_text(f"{images / 'b.png'} 2\n{images / 'a.jpg'}\n")
    assert list(lines(infer(photo_model.onnx, tmp_path / "list.txt").printed(), images)) == ["b.png", "a.jpg"]


def test_the_program_in_the_docs(photo_model: Deployed, images, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert code in (ROOT / "docs/zh/deploy.md").read_text(encoding="utf-8")
    shutil.copy(photo_model.checkpoint, tmp_path / "best.ckpt")
    shutil.copy(images / "a.jpg", tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    name = capsys.readouterr().out.strip()
    assert f"a.jpg: {name} " in infer(photo_model.onnx, images / "a.jpg").printed()


def test_broken_images_are_named_and_stop_nothing(photo_model: Deployed, images, tmp_path):
    folder, drawn = tmp_path / "some broken", tmp_path / "new" / "drawn"
    shutil.copytree(images, folder)
    (folder / "half.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-2000])
    (folder / "text.png").write_text("no image")
    (folder / "bee").mkdir()
    (folder / "b.png").rename(folder / "bee" / "b.png")
    done = infer(photo_model.mindir, folder, f"--save={tmp_path / 'p.csv'}", "--top=9", f"--annotate={drawn}")
    assert done.status == 1 and "Traceback" not in done.err
    assert "2 of 7 inputs have no answer" in done.err and str(folder / "half.jpg") in done.err
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert ",".join(rows[0]) == "file,class_1,probability_1,class_2,probability_2,class_3,probability_3,error"
    whole = [row for row in rows if not row["error"]]
    assert (len(rows), len(whole)) == (7, 5)
    assert sum(float(whole[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert sorted(path.name for path in drawn.iterdir()) == [
        "a.jpg", "bee__b.jpg", "c grey.jpg", "contact_sheet.png", "d_cmyk.jpg", "e_turned.jpg"]
    shape = cv2.imread(str(drawn / "a.jpg")).shape
    assert shape[0] > 224 and shape[1] >= 298  # enlarged, with text below
    assert cv2.imread(str(drawn / "e_turned.jpg")).shape == shape  # upright


def test_a_result_file_that_a_full_disk_refuses_is_named(cifar_model: Deployed, images, tmp_path, monkeypatch):
    def write_bytes(_path: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # without the name, as the system reports it

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert "a_0.bin cannot be written: No space" in infer(cifar_model.onnx, images / "a.jpg",
                                                          f"--result_dir={tmp_path}").refusal()


def test_an_explanation_is_warm_where_the_network_looks(tmp_path, monkeypatch):
    """This one adds up the brightness of all places, so the one bright corner is all that speaks for its answer."""
    config = get_config([*TINY, *PLAIN, "--graph_mode=False"])
    network = build_network(config, set_up_device(config))
    for parameter in network.trainable_params():
        weight = np.full(parameter.shape, parameter.ndim == 2, np.float32)  # of dense layers ones, of biases zeros
        if parameter.ndim == 4:
            weight[..., 1, 1] = 1  # the middle of a kernel
        parameter.set_data(Tensor(weight))
    save_checkpoint(tmp_path / "sum.ckpt", network, ModelInfo.of(config, CLASS_NAMES))
    image = np.zeros((32, 32, 3), np.uint8)
    image[2:12, 22:31] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    printed = infer(tmp_path / "sum.ckpt", tmp_path / "image.png", "--explain", "--graph_mode=False").printed()
    assert "images with their predictions in predictions" in printed
    drawn = np.asarray(Image.open("predictions/image.jpg")).astype(int)[:224]
    assert drawn.shape[1] == 448
    colour = (drawn[..., 0] - drawn[..., 2])[3::7, 3::7]  # a pixel for each one of the image and its copy; red is hot
    assert colour[:8, 50:60].max() > 100
    colour[:14, 48:] = 0
    assert np.abs(colour).max() < 20


def test_the_test_set_of_a_data_set(cifar_model: Deployed, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "old_0.bin").touch()
    flags = (f"--model_path={cifar_model.onnx}", f"--data_dir={cifar_model.data}", f"--result_dir={tmp_path / 'r'}",
             f"--time_dir={tmp_path / 't'}")
    must_run("infer", *flags)
    files = sorted((tmp_path / "r").iterdir())  # without the old one
    assert [path.name for path in files] == [f"{index:06d}_0.bin" for index in range(cifar_model.counts[2])]
    assert {path.stat().st_size for path in files} == {40}
    times = (tmp_path / "t" / "test_perform_static.txt").read_text()
    for word in ("average time: ", f"infer_count {cifar_model.counts[2]}", "p50: ", "p90: ", "p99: ", "images/s"):
        assert word in times
    (tmp_path / "r" / "thesis.doc").touch()
    assert "thesis.doc" in run_main("infer", *flags).refusal()
    assert sorted((tmp_path / "r").iterdir()) == [*files, tmp_path / "r" / "thesis.doc"]

def test_a_data_set_is_not_turned_upright(photo_model: Deployed, images, tmp_path):
    """Neither is it in training and evaluation; a user's own image is."""
    for name in ("ant", "bee", "cow"):
        (tmp_path / "val" / name).mkdir(parents=True)
        shutil.copy(images / "e_turned.jpg", tmp_path / "val" / name)
    engine = open_engine("onnxruntime", photo_model.onnx, batch_size=None)
    seen = []
    for upright, flags in ((False, (f"--data_dir={tmp_path}", "--dataset=imagenet2012")),
                           (True, (f"--input={tmp_path / 'val'}",))):
        must_run("infer", f"--model_path={photo_model.onnx}", f"--save={tmp_path / 'p.json'}", *flags)
        pixels = decode((images / "e_turned.jpg").read_bytes(), upright=upright)
        logits = predict(engine, prepare(pixels, PHOTO, photos=True)[None])[0]
        seen.append(best_guesses(logits, "abc", 1)[0].probability)
        rows = json.loads((tmp_path / "p.json").read_text())
        assert [row["predictions"][0]["probability"] for row in rows] == pytest.approx([seen[-1]] * 3, abs=1e-5)
    assert abs(seen[0] - seen[1]) > 1e-4


def test_what_cannot_be_answered_is_refused(cifar_model: Deployed, copied, images, tmp_path):
    model, source, prepared = f"--model_path={cifar_model.onnx}", f"--input={images}", tmp_path / "w" / "00_data"
    (tmp_path / "empty.txt").touch()
    shutil.copytree(images, tmp_path / "photos")
    for folder in (prepared, tmp_path / "d" / "00_data"):
        folder.mkdir(parents=True)
        np.zeros(3 * 32 * 32, np.float32).tofile(folder / "x_bs1_0.bin")
    (tmp_path / "d" / "inputs.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words, *flags in (
            ("input: ", model, "--input=absent.jpg"), ("input: ", model, f"--input={tmp_path / 'empty.txt'}"),
            ("save: ", model, source, "--save=x.xls"), ("save: ", model, source, "--save=/proc/x.csv"),
            ("engine: ", model, source, "--engine=lite"), ("num_classes: ", model, source, "--num_classes=5"),
            ("num_classes: ", f"--model_path={cifar_model.checkpoint}", source, "--num_classes=5"),
            ("annotate: ", model, f"--input={tmp_path / 'photos'}", f"--annotate={tmp_path / 'photos'}"),
            ("is read", f"--model_path={copied}", source, f"--save={copied.with_suffix('.json')}"),
            ("result_dir: ", model, f"--input={prepared}", f"--result_dir={prepared}"),
            ("inputs.json: is damaged", model, f"--input={tmp_path / 'd' / '00_data'}")):
        assert words in run_main("infer", "--device_target=CPU", *flags).refusal()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_without_a_card_takes_the_recipe(copied, images):
    copied.with_suffix(".json").unlink()
    printed = infer(copied, images, "--image_size=32", "--top=10").printed()
    assert "small.json" in printed and "airplane" in printed
    for flags, words in (((), "an input of (1, 3, 224, 224)"), (("--image_size=32", "--num_classes=3"), "num_classes")):
        assert words in infer(copied, images, *flags).refusal()
