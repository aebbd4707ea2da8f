# SPDX-License-Identifier: Apache-2.0
"""infer.py as its users call it: images in, predictions out, with and without MindSpore."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from deployed import Deployed, infer
from helpers import ROOT, Outcome, run_main
from PIL import Image

from model_utils.config import get_config
from model_utils.schema import Preset
from src.deploy.engines import CellEngine, open_engine, predict
from src.deploy.images import prepare, read_image
from src.deploy.infer import Answer, Item
from src.deploy.predictions import best_guesses, predictions_of, softmax
from src.deploy.run_infer import run_infer


def lines(done: Outcome, folder: Path) -> dict[str, str]:
    """What was printed for each image of a folder."""
    return dict(line.removeprefix(f"{folder}/").split(": ", 1) for line in done.out.splitlines()
                if line.startswith(f"{folder}/"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """One image in every dress, and its twin that lies on its side but for EXIF."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(1)
    rough = random.randint(0, 256, (12, 16, 3)).astype(np.uint8)
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
def broken(images, tmp_path) -> Path:
    folder = tmp_path / "some broken"
    shutil.copytree(images, folder)
    data = (folder / "a.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(data[:len(data) // 2])
    (folder / "text.png").write_text("no image")
    return folder


# --- predictions


def test_every_engine_and_the_checkpoint_agree(photo_model: Deployed, images, tmp_path):
    tables = []
    for number, (model, *flags) in enumerate([(photo_model.mindir,), (photo_model.onnx,), (photo_model.checkpoint,),
                                              (photo_model.mindir, "--engine=onnxruntime")]):
        saved = tmp_path / f"{number}.json"
        done = infer(model, images, f"--save={saved}", *flags)
        assert done.status == 0, done.err
        tables.append(json.loads(saved.read_text()))
    assert [Path(row["file"]).name for row in tables[0]] == sorted(path.name for path in images.iterdir())
    for table in tables:
        for row, first in zip(table, tables[0], strict=True):
            assert [guess["name"] for guess in row["predictions"]] == [item["name"] for item in first["predictions"]]
            probabilities = [[guess["probability"] for guess in one["predictions"]] for one in (row, first)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)


def test_a_network_computes_no_more_images_than_there_are(photo_model: Deployed, images, tmp_path, monkeypatch):
    """It is compiled for each number of images, so a last batch is filled up; but not beyond all there are."""
    batches, run = [], CellEngine.run
    monkeypatch.setattr(CellEngine, "run", lambda engine, images: batches.append(len(images)) or run(engine, images))
    for source, together, images_each in ((images, 5, 5), (images / "b.png", 1, 1)):
        assert infer(photo_model.checkpoint, source, f"--time_dir={tmp_path}").status == 0
        assert set(batches) == {together} and len(batches) == 2  # one to warm up
        assert f"over {images_each} images, up to {images_each} at a time" in next(tmp_path.iterdir()).read_text()
        batches.clear()


def test_images_are_prepared_as_the_model_was_trained(photo_model: Deployed, images):
    """Against the network itself, on input that is prepared here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    preset = Preset((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    said = lines(infer(photo_model.onnx, images, "--top=1"), images)
    for path in sorted(images.iterdir()):
        image = prepare(read_image(path), preset, photos=True)[None]
        logits = session.run(None, {session.get_inputs()[0].name: image})[0][0]
        guess = best_guesses(logits, ("ant", "bee", "cow"), 1)[0]
        assert said[path.name] == f"{guess.name} {100 * guess.probability:.1f} %"
    assert said["a.jpg"].split()[0] == said["e_turned.jpg"].split()[0]


def test_one_image_and_a_list(photo_model: Deployed, images, tmp_path):
    done = infer(photo_model.onnx, images / "c grey.jpg", "--top=2")
    assert done.status == 0 and lines(done, images)["c grey.jpg"].count("%") == 2
    (tmp_path / "list.txt").write_text(f"{images / 'b.png'} 2\n{images / 'a.jpg'}\n")
    assert list(lines(infer(photo_model.onnx, tmp_path / "list.txt"), images)) == ["b.png", "a.jpg"]


def test_csv(photo_model: Deployed, broken, tmp_path):
    done = infer(photo_model.onnx, broken, f"--save={tmp_path / 'p.csv'}", "--top=9")
    assert done.status == 1
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert len(rows) == 7
    assert ",".join(rows[0]) == "file,class_1,probability_1,class_2,probability_2,class_3,probability_3,error"
    whole = [row for row in rows if not row["error"]]
    assert len(whole) == 5
    assert sum(float(whole[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert float(whole[0]["probability_1"]) >= float(whole[0]["probability_2"]) >= float(whole[0]["probability_3"])


def test_broken_images_are_named_and_stop_nothing(photo_model: Deployed, broken):
    done = infer(photo_model.mindir, broken)
    assert done.status == 1 and "Traceback" not in done.err
    said = lines(done, broken)
    assert len(said) == 7 and "is damaged" in said["half.jpg"] and "is no image" in said["text.png"]
    assert "2 of 7 inputs have no answer" in done.err and str(broken / "half.jpg") in done.err


def test_annotated_images(photo_model: Deployed, broken, tmp_path):
    done = infer(photo_model.onnx, broken, f"--annotate={tmp_path / 'new' / 'drawn'}")
    names = sorted(path.name for path in (tmp_path / "new" / "drawn").iterdir())
    assert done.status == 1
    assert names == ["a.jpg", "b.jpg", "c grey.jpg", "contact_sheet.png", "d_cmyk.jpg", "e_turned.jpg"]
    drawn = cv2.imread(str(tmp_path / "new" / "drawn" / "a.jpg"))
    assert drawn.shape[0] > 224 and drawn.shape[1] >= 298  # enlarged, with a strip below
    turned = cv2.imread(str(tmp_path / "new" / "drawn" / "e_turned.jpg"))
    assert turned.shape == drawn.shape  # upright


# --- result files


def test_the_test_set_of_a_data_set(cifar_model: Deployed, tmp_path):
    done = run_main("infer", f"--model_path={cifar_model.onnx}", f"--data_dir={cifar_model.data}",
                    f"--result_dir={tmp_path / 'r'}", f"--time_dir={tmp_path / 't'}")
    assert done.status == 0, done.err
    files = sorted((tmp_path / "r").iterdir())
    assert len(files) == cifar_model.counts[2] and files[0].name == "000000_0.bin"
    assert {path.stat().st_size for path in files} == {40}
    times = (tmp_path / "t" / "test_perform_static.txt").read_text()
    for word in ("average time: ", f"infer_count {cifar_model.counts[2]}", "p50: ", "p90: ", "p99: ", "images/s"):
        assert word in times
    assert f"{cifar_model.counts[2]} images" in times


def test_a_data_set_is_not_turned_upright(photo_model: Deployed, images, tmp_path):
    """Neither is it in training and evaluation; a user's own image is."""
    for name in ("ant", "bee", "cow"):
        (tmp_path / "val" / name).mkdir(parents=True)
        shutil.copy(images / "e_turned.jpg", tmp_path / "val" / name)
    probabilities = []
    for flags in ((f"--data_dir={tmp_path}", "--dataset=imagenet2012"), (f"--input={tmp_path / 'val'}",)):
        done = run_main("infer", f"--model_path={photo_model.onnx}", f"--save={tmp_path / 'p.json'}", *flags)
        assert done.status == 0, done.err
        rows = json.loads((tmp_path / "p.json").read_text())
        probabilities.append([row["predictions"][0]["probability"] for row in rows])
    preset = Preset((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    engine = open_engine("onnxruntime", photo_model.onnx, batch_size=None)
    for upright, seen in zip((False, True), probabilities, strict=True):
        image = prepare(read_image(images / "e_turned.jpg", upright=upright), preset, photos=True)
        assert seen == pytest.approx([softmax(predict(engine, image[None])).max()] * 3, abs=1e-5)
    assert abs(probabilities[0][0] - probabilities[1][0]) > 1e-4


def test_images_of_a_data_set_may_have_names_that_are_not_utf_8(photo_model: Deployed, tmp_path):
    shutil.copytree(photo_model.data, tmp_path / "data")
    image = min((tmp_path / "data" / "val" / "ant").iterdir())
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.jpg")))
    done = run_main("infer", "--device_target=CPU", f"--model_path={photo_model.onnx}",
                    f"--data_dir={tmp_path / 'data'}", "--dataset=imagenet2012")
    assert done.status == 0 and "/val/ant/caf\\xe9.jpg: " in done.out


def test_result_files_of_an_earlier_run_go_and_nothing_else(cifar_model: Deployed, images, tmp_path):
    (tmp_path / "old_0.bin").touch()
    assert infer(cifar_model.onnx, images, f"--result_dir={tmp_path}").status == 0
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "a_0.bin" and not (tmp_path / "old_0.bin").exists()
    (tmp_path / "thesis.doc").touch()
    done = infer(cifar_model.onnx, images, f"--result_dir={tmp_path}")
    assert done.status == 2 and "thesis.doc lies there" in done.err
    assert len(list(tmp_path.iterdir())) == 6


# --- without MindSpore


def run_without_mindspore(tmp_path: Path, script: str, *args: object) -> subprocess.CompletedProcess:
    """A script in a process where MindSpore cannot be imported, as on a device."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys\nfor name in ('mindspore', 'mindspore_lite'):\n    sys.modules[name] = None\n")
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, args)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, timeout=120)


def test_a_device_needs_no_mindspore(photo_model: Deployed, images, tmp_path):
    done = run_without_mindspore(tmp_path, "infer.py", f"--model_path={photo_model.onnx}", f"--input={images}",
                                 "--save=p.csv", "--annotate=drawn")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.csv").is_file() and (tmp_path / "drawn" / "contact_sheet.png").is_file()
    refused = run_without_mindspore(tmp_path, "infer.py", f"--model_path={photo_model.mindir}", f"--input={images}")
    assert refused.returncode == 2 and "needs mindspore_lite or mindspore, and none is installed" in refused.stderr


def test_requirements_of_a_device_are_those_of_the_project():
    def pins(name: str) -> set[str]:
        return {line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")}

    device = pins("requirements-infer.txt")
    assert device < pins("requirements.txt") and not [line for line in device if line.startswith("mindspore")]


# --- numbers


def test_an_answer_that_is_no_number():
    answer = Answer(Item("a", "a.jpg", read=None), np.array([[0.0, np.nan], [1.0, 0.0]], np.float32), None)
    broken, whole = predictions_of(answer, "ab", 2)
    assert "a.jpg[0]: the model's answer is no number" in str(broken) and whole.guesses[0].name == "a"
    assert "no number" in answer.problem and answer._replace(logits=np.zeros((1, 2))).problem is None


def test_probabilities():
    guesses = best_guesses(np.array([1000.0, 1001.0, -5.0, 1001.0], np.float32), "abcd", 3)
    assert [guess.name for guess in guesses] == ["b", "d", "a"]
    assert guesses[0].probability == pytest.approx(np.e / (2 * np.e + 1))
    assert softmax(np.array([[0.0, 0.0], [5.0, -1e4]])).sum(axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize("is_saved", [False, True])
def test_logits_that_are_written_down_are_kept_only_for_another_use(cifar_model, images, tmp_path, is_saved):
    """Those of a whole data set can fill the memory."""
    flags = [f"--model_path={cifar_model.onnx}", f"--input={images}", f"--result_dir={tmp_path / 'r'}"]
    answers = run_infer(get_config([*flags, *[f"--save={tmp_path / 'a.json'}"] * is_saved], "infer.py"))
    assert [answer.logits.size for answer in answers] == [10 * is_saved] * len(list((tmp_path / "r").iterdir()))
