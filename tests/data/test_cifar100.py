# SPDX-License-Identifier: Apache-2.0
"""CIFAR-100 in its binary layout, with fine and with coarse labels, through the commands."""

import numpy as np
import pytest
from helpers import TINY, cifar_records, make_split, must_run, run_main, write_image

from model_utils.config import get_config
from src.data.formats import build_reader

FLAGS = (*TINY, "--dataset=cifar100", "--data_dir=data", "--batch_size=8", "--graph_mode=False", "--ckpt_path=runs")


@pytest.fixture
def splits(tmp_path, monkeypatch, graph_mode):
    """Images in 10 of the 100 fine classes, and in 10 of the 20 coarse ones."""
    monkeypatch.chdir(tmp_path)
    folder, made = tmp_path / "data" / "cifar-100-binary", {}
    folder.mkdir(parents=True)
    for name, count in (("train", 20), ("test", 9)):
        split = make_split(count, seed=count)
        fine, coarse = 10 * split.labels + 9, 2 * split.labels + 1
        records = np.concatenate([coarse[:, None], cifar_records(split._replace(labels=fine))], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        made[name] = split.images, {"fine": fine, "coarse": coarse}
    for kind, count in (("fine", 100), ("coarse", 20)):
        (folder / f"{kind}_label_names.txt").write_text("".join(f"{kind} {number}\n" for number in range(count)))
    return made


@pytest.mark.parametrize(("kind", "count"), [("fine", 100), ("coarse", 20)])
def test_images_and_labels_are_those_of_the_files(splits, kind, count):
    config = get_config([*FLAGS, f"--cifar100_labels={kind}", f"--num_classes={count}"])
    for split, (images, labels) in splits.items():
        reader = build_reader(config, split)
        assert np.array_equal(reader.labels, labels[kind]) and reader.class_names[19] == f"{kind} 19"
        assert all(np.array_equal(reader.read(index), image) for index, image in enumerate(images))
        assert reader.name(3) == f"data/cifar-100-binary/{split}.bin: record 3"


def test_every_command_takes_it(splits, tmp_path):
    done = run_main("train", *FLAGS, "--max_epoch=1", "--mode=train_and_evaluate")
    assert done.status == 0 and "100 classes" in done.out and "result: {'acc': " in done.out, done
    (checkpoint,) = tmp_path.glob("runs/*/best.ckpt")
    done = must_run("eval", *FLAGS, f"--pre_trained={checkpoint}", "--data_dir=data/cifar-100-binary")
    assert "tot=9, " in done.out
    must_run("export", f"--ckpt_file={checkpoint}", "--file_name=model", "--file_format=ONNX", "--device=CPU")
    write_image(tmp_path / "a.png", splits["test"][0][0])
    assert "fine " in must_run("infer", "--model_path=model.onnx", "--input=a.png").out
    done = must_run("scripts.check_dataset", "--dataset=cifar100", "--data_dir=data", "--cifar100_labels=coarse")
    assert "20 images, 20 classes" in done.out and "width 32 to 32" in done.out
    # labels that do not fit
    assert "--num_classes=20" in run_main("train", *FLAGS, "--cifar100_labels=coarse").refusal()
    done = run_main("eval", *FLAGS, f"--pre_trained={checkpoint}", "--cifar100_labels=coarse")
    assert "--cifar100_labels=fine" in done.refusal()
    assert "--dataset=cifar100" in run_main("train", *TINY, "--data_dir=data").err
