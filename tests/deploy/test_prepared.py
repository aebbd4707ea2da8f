# SPDX-License-Identifier: Apache-2.0
"""preprocess.py and postprocess.py on their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from deployed import Deployed
from helpers import Outcome, run_main

# --- preprocess.py on its own


def preprocess(*flags: object) -> Outcome:
    return run_main("preprocess", *flags)


def test_inputs_follow_the_recipe_without_a_model(cifar_model: Deployed, tmp_path):
    done = preprocess(f"--data_dir={cifar_model.data}", f"--result_path={tmp_path}", "--image_size=32,64",
                      "--image_mean=0,0,0", "--image_std=1,1,1", "--batch_size=10")
    assert done.status == 0, done.err
    files = sorted((tmp_path / "00_data").iterdir())
    assert [path.name for path in files] == [f"VGG16_data_bs10_{number}.bin" for number in range(4)]
    images = np.fromfile(files[3], np.float32).reshape(-1, 3, 32, 64)
    assert len(images) == 7 and images.min() >= 0 and images.max() <= 1
    labels = np.load(tmp_path / "cifar10_label_ids.npy", allow_pickle=False)
    assert labels.shape == (37,) and labels.dtype == np.int32


def test_inputs_of_an_earlier_call_go(cifar_model: Deployed, tmp_path):
    flags = (f"--data_dir={cifar_model.data}", f"--result_path={tmp_path}", "--image_size=32")
    assert preprocess(*flags, "--batch_size=1").status == preprocess(*flags, "--batch_size=30").status == 0
    assert len(list((tmp_path / "00_data").iterdir())) == 2
    (tmp_path / "00_data" / "thesis.doc").touch()
    done = preprocess(*flags)
    assert done.status == 2 and "thesis.doc" in done.err
    assert len(list((tmp_path / "00_data").iterdir())) == 3
    assert (tmp_path / "cifar10_label_ids.npy").exists()  # nothing was touched


def test_a_model_that_is_not_there_or_not_exported_is_refused(cifar_model: Deployed, tmp_path):
    flags = (f"--data_dir={cifar_model.data}", f"--result_path={tmp_path}")
    done = preprocess(*flags, f"--model_path={tmp_path / 'absent.onnx'}")
    assert done.status == 2 and f"model_path: there is no file {tmp_path / 'absent.onnx'}" in done.err
    done = preprocess(*flags, f"--model_path={cifar_model.checkpoint}")
    assert done.status == 2 and "is no exported model (.mindir, .air, .onnx)" in done.err
    assert not list(tmp_path.iterdir())


def test_inputs_for_another_model_are_refused(cifar_model: Deployed, tmp_path):
    assert preprocess(f"--data_dir={cifar_model.data}", f"--result_path={tmp_path}", "--image_size=32",
                      "--image_mean=0.5,0.5,0.5").status == 0
    done = run_main("infer", f"--model_path={cifar_model.onnx}", f"--input={tmp_path / '00_data'}",
                    f"--result_dir={tmp_path / 'r'}")
    assert done.status == 2 and "was prepared for another model: mean [0.5, 0.5, 0.5], not [0.4914" in done.err


def test_classes_of_model_and_data_must_be_as_many(cifar_model: Deployed, photo_model: Deployed, tmp_path):
    done = preprocess("--dataset=imagenet2012", f"--data_dir={photo_model.data}", f"--result_path={tmp_path}",
                      f"--model_path={cifar_model.onnx}")
    assert done.status == 2 and "num_classes: is 10" in done.err and "there are 3 classes" in done.err


def test_no_data(tmp_path):
    assert "data_dir: is not given" in preprocess(f"--result_path={tmp_path}").err
    assert preprocess(f"--data_dir={tmp_path}", f"--result_path={tmp_path / 'r'}").status == 2
    done = preprocess("--dataset=cifar10", "--dataset_name=imagenet2012")
    assert done.status == 2 and "dataset_name: is imagenet2012, but --dataset is cifar10" in done.err


def test_a_recipe_without_dataset_name_means_its_dataset(photo_model: Deployed, tmp_path):
    (tmp_path / "own.yaml").write_text("dataset: imagenet2012\nnum_classes: 3\n")
    done = preprocess(f"--config_path={tmp_path / 'own.yaml'}", f"--data_dir={photo_model.data}",
                      f"--result_path={tmp_path / 'r'}")
    assert done.status == 0 and (tmp_path / "r" / "imagenet_label.json").is_file()


# --- postprocess.py on its own


@pytest.fixture
def results(tmp_path) -> Path:
    """Three files of two images and one of one, seven in all; those of the classes 1, 3 and 5 are answered wrong."""
    (tmp_path / "result_Files").mkdir()
    labels = np.array([0, 1, 2, 3, 4, 5, 6])
    logits = np.eye(10, dtype=np.float32)[np.where(labels % 2, 9, labels)]
    for number in range(4):
        logits[2 * number:2 * number + 2].tofile(tmp_path / "result_Files" / f"VGG16_data_bs2_{number}_0.bin")
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def postprocess(folder: Path, *flags: object, labels: str = "labels.npy") -> Outcome:
    return run_main("postprocess", f"--result_dir={folder / 'result_Files'}", f"--label_dir={folder / labels}", *flags)


def test_every_image_counts(results):
    done = postprocess(results)
    assert done.status == 0 and "7 images: top1_correct=4, " in done.out and "'acc': 0.5714\n" in done.out
    (results / "labels.json").write_text("[0, 1, 2, 3, 4, 5, 6]")
    assert postprocess(results, labels="labels.json").out == done.out
    np.save(results / "labels.npy", np.array([[0, 1], [2, 3]]))  # a row for each file, as the model zoo has it
    for number in (2, 3):
        (results / "result_Files" / f"VGG16_data_bs2_{number}_0.bin").unlink()
    assert "'acc': 0.5000\n" in postprocess(results).out


def test_labels_by_name(results):
    shutil.rmtree(results / "result_Files")
    (results / "result_Files").mkdir()
    for name, answer in (("n01_1.a", 7), ("n02_2", 9), ("n03_3", 9)):
        np.eye(1000, dtype=np.float32)[answer].tofile(results / "result_Files" / f"{name}_0.bin")
    (results / "labels.json").write_text('{"n01_1.a.JPEG": 7, "n02_2.png": 8, "n03_3.png": 9}')
    done = postprocess(results, "--dataset_name=imagenet2012", labels="labels.json")
    assert done.status == 0 and "Top1 acc: 0.6667\n" in done.out and "Top5 acc: 0.6667\n" in done.out


def problem(folder: Path, *flags: object, **labels: str) -> str:
    done = postprocess(folder, *flags, **labels)
    assert done.status == 2 and "Traceback" not in done.err and "acc" not in done.out
    return done.err


def test_files_that_are_missing_extra_or_cut_short(results):
    files = results / "result_Files"
    (files / "other_0.bin").touch()
    assert "holds 1 files that no label belongs to: other_0.bin" in problem(results)
    (files / "other_0.bin").unlink()
    whole = (files / "VGG16_data_bs2_1_0.bin").read_bytes()
    (files / "VGG16_data_bs2_1_0.bin").write_bytes(whole[:-1])
    assert "VGG16_data_bs2_1_0.bin has 79 bytes, not 80" in problem(results)
    (files / "VGG16_data_bs2_1_0.bin").unlink()
    assert "lacks 1 of 4 files: VGG16_data_bs2_1_0.bin" in problem(results)
    (files / "VGG16_data_bs2_1_0.bin").write_bytes(whole)
    assert "has 80 bytes, not 40: 2 images with 5 float32 numbers each" in problem(results, "--num_classes=5")
    (files / "VGG16_data_bs1_1_0.bin").touch()
    assert "NAME_bs<images per file>" in problem(results)
    shutil.rmtree(files)
    assert "holds no result files" in problem(results)


def test_labels_that_are_none(results):
    assert "there is no file of labels" in problem(results, labels="absent.npy")
    np.save(results / "pickled.npy", np.array([[1], [2, 3]], dtype=object), allow_pickle=True)
    assert "not pickled" in problem(results, labels="pickled.npy")
    class Intruder:
        """What a pickle does when it is read."""

        def __reduce__(self):
            return Path.touch, (results / "was here",)

    (results / "empty.npy").write_bytes(b"")
    assert "must hold labels" in problem(results, labels="empty.npy")
    np.save(results / "pickled.npy", np.array([Intruder()], dtype=object), allow_pickle=True)
    assert "not pickled" in problem(results, labels="pickled.npy") and not (results / "was here").exists()
    np.savez(results / "several", labels=[1, 2])
    (results / "several.npz").rename(results / "several.npy")
    for name, header in (("several", None), ("torn", "{'descr': '<i8', 'fortran"),
                         ("huge", "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,), }")):
        if header is not None:
            text = header.ljust(117).encode() + b"\n"
            (results / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        assert f"{name}.npy: must hold labels" in problem(results, labels=f"{name}.npy")
    for text in ("{", '{"a": "cat"}', "[]", "[1.5]", "7", '[[1, 2], [3, 4]]'):
        (results / "bad.json").write_text(text)
        assert "bad.json: must hold labels" in problem(results, labels="bad.json")
    np.save(results / "labels.npy", np.array([0, 1, 2, 3, 4, 5, 10]))
    assert "label 10 is not a class" in problem(results)


def test_two_images_with_one_result_file_are_refused(results):
    (results / "labels.json").write_text('{"a.jpg": 0, "a.png": 1}')
    done = postprocess(results, labels="labels.json")
    assert done.status == 2 and "one name but for the ending" in done.err
