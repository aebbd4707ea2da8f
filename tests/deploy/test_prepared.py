# SPDX-License-Identifier: Apache-2.0
"""preprocess.py and postprocess.py on their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import Deployed, Outcome, run_main


def preprocess(folder: Path, *flags: object) -> Outcome:
    return run_main("preprocess", f"--result_path={folder}", *flags)


def test_inputs_follow_the_recipe_without_a_model(cifar_model: Deployed, tmp_path):
    preprocess(tmp_path, f"--data_dir={cifar_model.data}", "--image_size=32,64", "--image_mean=0,0,0",
               "--image_std=1,1,1", "--batch_size=10").printed()
    files = sorted((tmp_path / "00_data").iterdir())
    assert [path.name for path in files] == [f"VGG16_data_bs10_{number}.bin" for number in range(4)]
    images = np.fromfile(files[3], np.float32).reshape(-1, 3, 32, 64)
    assert len(images) == 7
    assert images.min() >= 0 and images.max() <= 1
    labels = np.load(tmp_path / "cifar10_label_ids.npy", allow_pickle=False)
    assert labels.shape == (37,)
    assert labels.dtype == np.int32


def test_inputs_of_an_earlier_call_are_removed(cifar_model: Deployed, tmp_path):
    flags = (f"--data_dir={cifar_model.data}", "--image_size=32")
    assert preprocess(tmp_path, *flags, "--batch_size=1").status == 0
    assert preprocess(tmp_path, *flags, "--batch_size=30").status == 0
    (tmp_path / "00_data" / "thesis.doc").touch()
    before = sorted(tmp_path.rglob("*"))
    assert "thesis.doc" in preprocess(tmp_path, *flags).refusal()
    assert sorted(tmp_path.rglob("*")) == before and len(before) == 6  # the folder has two files and the other one


@pytest.fixture
def results(tmp_path) -> Path:
    """Three files of two images and one of one, seven in all; the answers for classes 1, 3 and 5 are wrong."""
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
    printed = postprocess(results).printed()
    assert "7 images: top1_correct=4, " in printed
    assert "'acc': 0.5714\n" in printed
    (results / "labels.json").write_text("[0, 1, 2, 3, 4, 5, 6]")
    assert postprocess(results, labels="labels.json").out == printed
    np.save(results / "labels.npy", np.array([[0, 1], [2, 3]]))  # a row for each file, as in the model zoo
    for number in (2, 3):
        (results / "result_Files" / f"VGG16_data_bs2_{number}_0.bin").unlink()
    assert "'acc': 0.5000\n" in postprocess(results).out


def test_labels_by_name(results):
    shutil.rmtree(results / "result_Files")
    (results / "result_Files").mkdir()
    for name, answer in (("n01_1.a", 7), ("n02_2", 9), ("n03_3", 9)):
        np.eye(1000, dtype=np.float32)[answer].tofile(results / "result_Files" / f"{name}_0.bin")
    (results / "labels.json").write_text('{"n01_1.a.JPEG": 7, "n02_2.png": 8, "n03_3.png": 9}')
    printed = postprocess(results, "--dataset_name=imagenet2012", labels="labels.json").printed()
    assert "Top1 acc: 0.6667\n" in printed
    assert "Top5 acc: 0.6667\n" in printed


def test_results_and_labels_that_do_not_fit_are_refused(results):
    def refused(words: str, *flags: str, labels: str = "labels.npy") -> None:
        done = postprocess(results, *flags, labels=labels)
        assert words in done.refusal() and "acc" not in done.out, done

    files = results / "result_Files"
    middle = files / "VGG16_data_bs2_1_0.bin"
    whole = middle.read_bytes()
    refused("5 float32 numbers", "--num_classes=5")
    (files / "other_0.bin").touch()
    refused("other_0.bin")
    (files / "other_0.bin").unlink()
    for damage in (lambda: middle.write_bytes(whole[:-1]), middle.unlink):
        damage()
        refused(middle.name)
    middle.write_bytes(whole)

    for text, words in (('{"a": "cat"}', "must hold labels"), ("[1.5]", "must hold labels"),
                        ('{"a.jpg": 0, "a.png": 1}', "label_dir: two images"), ("[0, 1, 2, 3, 4, 5, 10]", "label 10")):
        (results / "bad.json").write_text(text)
        refused(words, labels="bad.json")
