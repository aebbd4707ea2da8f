# SPDX-License-Identifier: Apache-2.0
"""infer.py as its users call it: images in, predictions out, with and without MindSpore; and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from helpers import ROOT, Deployed, Outcome, run_main
from PIL import Image

from model_utils.config import get_config
from model_utils.schema import Preset
from src.deploy.engines import open_engine, predict
from src.deploy.images import decode, prepare, read_image
from src.deploy.infer import best_guesses, to_predictions
from src.deploy.model_card import KnownModel

PHOTO = Preset((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def infer(model: Path, source: Path, *flags: object) -> Outcome:
    return run_main("infer", f"--model_path={model}", f"--input={source}", "--device_target=CPU", *flags)


def refused(*flags: object) -> str:
    done = run_main("infer", "--device_target=CPU", *flags)
    assert done.status == 2
    assert "Traceback" not in done.err
    return done.err


def lines(done: Outcome, folder: Path) -> dict[str, str]:
    """What was printed for each image of a folder."""
    return dict(line.removeprefix(f"{folder}/").split(": ", 1) for line in done.out.splitlines()
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
def broken(images, tmp_path) -> Path:
    folder = tmp_path / "some broken"
    shutil.copytree(images, folder)
    data = (folder / "a.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(data[:len(data) // 2])
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture
def copied(cifar_model: Deployed, tmp_path) -> Path:
    """The MindIR of an export in a folder of its own, with its ONNX file and its card."""
    for path in (cifar_model.mindir, cifar_model.onnx, cifar_model.mindir.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / cifar_model.mindir.name


# --- predictions


def test_every_engine_and_the_checkpoint_agree(photo_model: Deployed, images, tmp_path):
    tables = []
    for number, (model, *flags) in enumerate([(photo_model.mindir,), (photo_model.onnx,), (photo_model.checkpoint,),
                                              (photo_model.mindir, "--engine=onnxruntime")]):
        done = infer(model, images, f"--save={tmp_path / f'{number}.json'}", *flags)
        assert done.status == 0, done.err
        tables.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert [Path(row["file"]).name for row in tables[0]] == sorted(path.name for path in images.iterdir())
    for table in tables:
        for row, first in zip(table, tables[0], strict=True):
            assert [guess["name"] for guess in row["predictions"]] == [item["name"] for item in first["predictions"]]
            probabilities = [[guess["probability"] for guess in one["predictions"]] for one in (row, first)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)


def test_images_are_prepared_as_the_model_was_trained(photo_model: Deployed, images):
    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    said = lines(infer(photo_model.onnx, images, "--top=1"), images)
    for path in sorted(images.iterdir()):
        image = prepare(read_image(path), PHOTO, photos=True)[None]
        logits = session.run(None, {session.get_inputs()[0].name: image})[0][0]
        guess = best_guesses(logits, ("ant", "bee", "cow"), 1)[0]
        assert said[path.name] == f"{guess.name} {100 * guess.probability:.1f} %"
    assert said["a.jpg"].split()[0] == said["e_turned.jpg"].split()[0]


def test_one_image_and_a_list(photo_model: Deployed, images, tmp_path):
    done = infer(photo_model.onnx, images / "c grey.jpg", "--top=2")
    assert done.status == 0
    assert lines(done, images)["c grey.jpg"].count("%") == 2
    (tmp_path / "list.txt").write_text(f"{images / 'b.png'} 2\n{images / 'a.jpg'}\n")
    assert list(lines(infer(photo_model.onnx, tmp_path / "list.txt"), images)) == ["b.png", "a.jpg"]


def test_broken_images_are_named_and_stop_nothing(photo_model: Deployed, broken, tmp_path):
    done = infer(photo_model.mindir, broken)
    said = lines(done, broken)
    assert done.status == 1
    assert "Traceback" not in done.err
    assert len(said) == 7
    assert "is damaged" in said["half.jpg"]
    assert "2 of 7 inputs have no answer" in done.err
    assert str(broken / "half.jpg") in done.err

    assert infer(photo_model.onnx, broken, f"--save={tmp_path / 'p.csv'}", "--top=9").status == 1
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert ",".join(rows[0]) == "file,class_1,probability_1,class_2,probability_2,class_3,probability_3,error"
    whole = [row for row in rows if not row["error"]]
    assert (len(rows), len(whole)) == (7, 5)
    assert sum(float(whole[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert float(whole[0]["probability_1"]) >= float(whole[0]["probability_2"]) >= float(whole[0]["probability_3"])


def test_annotated_images(photo_model: Deployed, broken, tmp_path):
    folder = tmp_path / "new" / "drawn"
    assert infer(photo_model.onnx, broken, f"--annotate={folder}").status == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.jpg", "b.jpg", "c grey.jpg", "contact_sheet.png", "d_cmyk.jpg", "e_turned.jpg"]
    drawn = cv2.imread(str(folder / "a.jpg"))
    assert drawn.shape[0] > 224 and drawn.shape[1] >= 298  # enlarged, with text below
    assert cv2.imread(str(folder / "e_turned.jpg")).shape == drawn.shape  # upright


def test_an_answer_that_is_not_a_number():
    model = KnownModel(get_config([], "infer.py"), ("a", "b"), False, None, ())
    broken, whole = to_predictions("x.bin", np.array([[0.0, np.nan], [1.0, 0.0]], np.float32), model, 2)
    assert broken.source == "x.bin[0]" and broken.error and not broken.guesses
    assert whole.source == "x.bin[1]" and whole.guesses[0].name == "a" and not whole.error


def test_probabilities():
    guesses = best_guesses(np.array([1000.0, 1001.0, -5.0, 1001.0], np.float32), "abcd", 3)
    assert [guess.name for guess in guesses] == ["b", "d", "a"]
    assert guesses[0].probability == pytest.approx(np.e / (2 * np.e + 1))


# --- a test set, and result files


def test_the_test_set_of_a_data_set(cifar_model: Deployed, tmp_path):
    done = run_main("infer", f"--model_path={cifar_model.onnx}", f"--data_dir={cifar_model.data}",
                    f"--result_dir={tmp_path / 'r'}", f"--time_dir={tmp_path / 't'}")
    assert done.status == 0, done.err
    files = sorted((tmp_path / "r").iterdir())
    assert [path.name for path in files] == [f"{index:06d}_0.bin" for index in range(cifar_model.counts[2])]
    assert {path.stat().st_size for path in files} == {40}
    times = (tmp_path / "t" / "test_perform_static.txt").read_text()
    for word in ("average time: ", f"infer_count {cifar_model.counts[2]}", "p50: ", "p90: ", "p99: ", "images/s"):
        assert word in times


def test_a_data_set_is_not_turned_upright(photo_model: Deployed, images, tmp_path):
    """Neither is it in training and evaluation; a user's own image is."""
    for name in ("ant", "bee", "cow"):
        (tmp_path / "val" / name).mkdir(parents=True)
        shutil.copy(images / "e_turned.jpg", tmp_path / "val" / name)
    engine = open_engine("onnxruntime", photo_model.onnx, batch_size=None)
    seen = []
    for upright, flags in ((False, (f"--data_dir={tmp_path}", "--dataset=imagenet2012")),
                           (True, (f"--input={tmp_path / 'val'}",))):
        done = run_main("infer", f"--model_path={photo_model.onnx}", f"--save={tmp_path / 'p.json'}", *flags)
        assert done.status == 0, done.err
        pixels = decode((images / "e_turned.jpg").read_bytes(), upright=upright)
        logits = predict(engine, prepare(pixels, PHOTO, photos=True)[None])[0]
        seen.append(best_guesses(logits, "abc", 1)[0].probability)
        rows = json.loads((tmp_path / "p.json").read_text())
        assert [row["predictions"][0]["probability"] for row in rows] == pytest.approx([seen[-1]] * 3, abs=1e-5)
    assert abs(seen[0] - seen[1]) > 1e-4


def test_names_that_are_not_utf_8(photo_model: Deployed, tmp_path):
    shutil.copytree(photo_model.data, tmp_path / "data")
    image = min((tmp_path / "data" / "val" / "ant").iterdir())
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.jpg")))
    done = run_main("infer", "--device_target=CPU", f"--model_path={photo_model.onnx}",
                    f"--data_dir={tmp_path / 'data'}", "--dataset=imagenet2012")
    assert done.status == 0
    assert "/val/ant/caf\\xe9.jpg: " in done.out


def test_old_result_files_are_removed_and_nothing_else(cifar_model: Deployed, images, tmp_path):
    (tmp_path / "old_0.bin").touch()
    assert infer(cifar_model.onnx, images, f"--result_dir={tmp_path}").status == 0
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["a_0.bin", "b_0.bin"]
    assert not (tmp_path / "old_0.bin").exists()
    (tmp_path / "thesis.doc").touch()
    done = infer(cifar_model.onnx, images, f"--result_dir={tmp_path}")
    assert done.status == 2
    assert "thesis.doc" in done.err
    assert len(list(tmp_path.iterdir())) == 6


def test_a_device_needs_no_mindspore(photo_model: Deployed, images, tmp_path):
    def run(*args: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / "infer.py"), f"--input={images}", *map(str, args)],
                              capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                              cwd=tmp_path, timeout=120)

    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mindspore'] = None\n"
                                               "sys.modules['mindspore_lite'] = None\n")
    done = run(f"--model_path={photo_model.onnx}", "--save=p.csv", "--annotate=drawn")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.csv").is_file()
    assert (tmp_path / "drawn" / "contact_sheet.png").is_file()
    done = run(f"--model_path={photo_model.mindir}")
    assert done.returncode == 2
    assert "needs mindspore_lite or mindspore, and none is installed" in done.stderr


def test_requirements_of_a_device_are_those_of_the_project():
    device, project = ({line for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"}
                       for name in ("requirements-infer.txt", "requirements.txt"))
    assert device < project
    assert not [line for line in device if line.startswith("mindspore")]


# --- what is refused


def test_requests_that_cannot_be_answered(cifar_model: Deployed, images, tmp_path):
    model, source = f"--model_path={cifar_model.onnx}", f"--input={images}"
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.txt").touch()
    for key, *flags in (("model_path", source), ("model_path", "--model_path=absent.mindir", source), ("input", model),
                        ("input", model, "--input=absent.jpg"), ("input", model, f"--input={tmp_path}"),
                        ("input", model, f"--input={tmp_path / 'empty.txt'}"), ("save", model, source, "--save=x.xls"),
                        ("save", model, source, "--save=/proc/x.csv"),
                        ("save", model, source, f"--save={tmp_path / 'folder.csv'}"),
                        ("engine", model, source, "--engine=lite"),
                        ("engine", f"--model_path={cifar_model.checkpoint}", source, "--engine=lite"),
                        ("num_classes", model, source, "--num_classes=5"),
                        ("num_classes", f"--model_path={cifar_model.checkpoint}", source, "--num_classes=5")):
        assert f"error: {key}: " in refused(*flags), flags
    assert "cannot be made" in refused(model, source, f"--annotate={tmp_path / 'empty.txt' / 'x'}")


def test_nothing_that_is_read_is_overwritten(copied, images, tmp_path):
    shutil.copytree(images, tmp_path / "photos")
    before = (tmp_path / "photos" / "a.jpg").read_bytes()
    for source in (tmp_path / "photos", tmp_path / "photos" / "a.jpg"):
        flags = (f"--model_path={copied}", f"--input={source}", f"--annotate={tmp_path / 'photos'}")
        assert "annotate: " in refused(*flags)
    card = copied.with_suffix(".json")
    assert f"save: {card} is read" in refused(f"--model_path={copied}", f"--input={images}", f"--save={card}")
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == before
    assert json.loads(card.read_text())["files"]


def test_prepared_inputs(cifar_model: Deployed, tmp_path):
    inputs = tmp_path / "00_data"
    inputs.mkdir()
    flags = (f"--model_path={cifar_model.onnx}", f"--input={inputs}")
    np.zeros(100, np.float32).tofile(inputs / "x_bs1_0.bin")
    assert "x_bs1_0.bin: has 400 bytes" in refused(*flags)
    np.zeros(3 * 32 * 32, np.float32).tofile(inputs / "x_bs1_0.bin")
    assert "annotate: " in refused(*flags, f"--annotate={tmp_path / 'a'}")
    assert "result_dir: " in refused(*flags, f"--result_dir={inputs}")
    assert (inputs / "x_bs1_0.bin").is_file()
    for damage in ("", "{", "[1]", "7"):
        (tmp_path / "inputs.json").write_text(damage)
        assert f"{tmp_path / 'inputs.json'}: is damaged" in refused(*flags)


def test_onnx_instead_of_mindir_needs_the_proof(copied, images):
    """The file that is named is run as it is; another one only if the hashes show that it is of the same export."""
    flags = (f"--model_path={copied}", f"--input={images}", "--engine=onnxruntime")
    card, onnx = copied.with_suffix(".json"), copied.with_suffix(".onnx")
    assert run_main("infer", *flags).status == 0
    for path in (copied, onnx):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"{path}: is not the file that small.json describes" in refused(*flags)
        path.write_bytes(content)
    entries = json.loads(card.read_text())
    del entries["files"]["ONNX"]
    card.write_text(json.dumps(entries))
    assert f"{onnx}: is not the file that small.json describes" in refused(*flags)
    assert "model_path: " in refused(f"--model_path={onnx}", f"--input={images}")
    card.unlink()
    assert f"there is no {card}" in refused(*flags)
    onnx.unlink()
    assert f"there is no {onnx}" in refused(*flags)


def test_a_model_without_a_card_takes_the_recipe(copied, images):
    onnx, card = copied.with_suffix(".onnx"), copied.with_suffix(".json")
    card.unlink()
    done = infer(onnx, images, "--image_size=32", "--top=10")
    assert done.status == 0
    assert "small.json" in done.out
    assert "airplane" in done.out
    flags = (f"--model_path={onnx}", f"--input={images}")
    assert "onnxruntime does not take an input of (1, 3, 224, 224)" in refused(*flags)
    assert "num_classes: " in refused(*flags, "--image_size=32", "--num_classes=3")
    card.write_text("{}")
    assert "small.json: " in refused(f"--model_path={copied}", f"--input={images}")
