# SPDX-License-Identifier: Apache-2.0
"""Own photos: `--dataset=photos --data_dir=DIR` finds the classes, keeps some images for validation, and says what to
expect; eval.py counts on the images that were kept."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    COUNTS,
    PLAIN,
    TINY,
    Outcome,
    convert,
    only_folder,
    run_main,
    write_cifar10,
    write_class_folders,
    write_coloured,
    write_image,
    write_lists,
    write_tfrecords,
)

from model_utils.config import get_config
from src.data.formats import build_reader
from src.weights.load import read_weights

FLAGS = (*TINY, *PLAIN, "--batch_size=4", "--max_epoch=1")
KEPT = [2, 1, 2]  # of the classes, with a share of 0.2 of COUNTS


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The current folder: `photos` with one folder for each class."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(write_coloured(tmp_path / "source") / "train", "photos"))


def train(*flags: str) -> Outcome:
    return run_main("train", *FLAGS, "--dataset=photos", "--data_dir=photos", "--ckpt_path=runs", *flags)


def evaluate(checkpoint: Path, *flags: str, data: str = "photos") -> Outcome:
    return run_main("eval", f"--data_dir={data}", f"--pre_trained={checkpoint}", "--ckpt_path=evaluations",
                    "--device_target=CPU", *flags)


def counted(outcome: Outcome) -> list[str]:
    return re.findall(r"top1_correct=\d+, tot=\d+", outcome.printed())


def test_a_folder_of_class_folders_is_all_that_it_takes(photos):
    trained = train("--max_epoch=2")
    right = counted(trained)[-1]
    assert "3 classes" in trained.out and right.endswith(f"tot={sum(KEPT)}")
    assert re.search(r"about \d+ seconds for 8 steps \(2 epochs\), until \d\d:\d\d\n", trained.out), trained.out
    assert "warning: few training images: ant 7, bee 4, cow 6;" in trained.out
    run = only_folder(Path("runs"))
    lines = (run / "val_list.txt").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0", "0", "1", "2", "2"]
    assert all((photos / line.rpartition(" ")[0]).is_file() for line in lines)
    info = read_weights(run / "best.ckpt").info
    assert (info.dataset, info.class_names, info.val_split) == ("photos", ("ant", "bee", "cow"), 0.2)

    best = counted(evaluate(run / "best.ckpt"))
    last = next((run / "ckpt_0").iterdir())
    assert counted(evaluate(last)) == [right] and best[0].endswith(f"tot={sum(KEPT)}")
    shutil.copy(last, "copy.ckpt")
    photos.rename("moved")
    assert counted(evaluate(Path("copy.ckpt"), data="moved")) == [right]  # drawn again by the record's share and seed
    predicted = run_main("infer", "--model_path=copy.ckpt", "--data_dir=moved", "--val_split=0", "--device_target=CPU")
    assert "are the training images as well" in predicted.out
    whole = evaluate(last, "--val_split=0", data="moved")
    assert counted(whole)[0].endswith(f"tot={sum(COUNTS['train'])}") and "are the training images as well" in whole.out

    write_image(Path("moved/ant/another.png"), np.zeros((50, 50, 3), np.uint8))  # that would change what is drawn
    assert counted(evaluate(last, data="moved")) == [right]
    for flags, are_these in (((), True), (("--seed=7",), False)):
        predicted = run_main("infer", f"--model_path={last}", "--data_dir=moved", "--device_target=CPU", *flags).out
        named = set(re.findall(r"^moved/(.*\.png): ", predicted, re.MULTILINE))
        assert len(named) == len(lines) and (named == {line[:-2] for line in lines}) == are_these
    said = train("--max_epoch=3", f"--resume={run}", "--data_dir=moved").refusal()
    assert "18" in said and "17" in said
    Path("moved/ant/another.png").unlink()
    resumed = train("--max_epoch=3", f"--resume={run}", "--data_dir=moved", "--lr_scheduler=cosine_annealing")
    assert resumed.status == 0 and (run / "val_list.txt").read_text().splitlines() == lines, resumed
    gone = lines[0].rpartition(" ")[0]
    Path("moved", gone).unlink()
    for refused in (evaluate(last, data="moved"), train("--max_epoch=4", f"--resume={run}", "--data_dir=moved")):
        assert f"no longer in moved: {gone}; put them back" in refused.refusal()
    other = evaluate(last, data=str(write_class_folders(Path("more"), splits=["others"]) / "others"))
    assert counted(other)[0].endswith("tot=15") and "none of them in" in other.out


def test_an_image_that_a_list_repeats_is_kept_each_time_or_never(photos):
    lines = [f"{image.relative_to(photos)} {label}\n" for label, name in enumerate(("ant", "bee", "cow"))
             for image in (photos / name).iterdir()]
    (photos / "train_list.txt").write_text("".join(lines * 3))
    assert counted(train())[0].endswith(f"tot={3 * sum(KEPT)}")
    run = only_folder(Path("runs"))
    kept = (run / "val_list.txt").read_text().splitlines()
    assert len(kept) == 3 * len(set(kept))
    assert train("--max_epoch=2", f"--resume={run}").status == 0


def test_records_without_a_test_file_are_divided_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(write_cifar10(Path("data")).folder / "cifar-10-verify-bin")
    flags = (*FLAGS, "--data_dir=data", "--val_split=0.2", "--mode=train_and_evaluate", "--ckpt_path=runs")
    assert run_main("train", *flags).status == 0
    run = only_folder(Path("runs"))
    kept = len((run / "val_list.txt").read_text().splitlines())
    assert counted(evaluate(run / "best.ckpt", data="data"))[0].endswith(f"tot={kept}")
    assert run_main("train", *flags, "--max_epoch=2", f"--resume={run}").status == 0


def test_images_for_validation_of_its_own_are_taken_instead(photos):
    shutil.rmtree(photos)
    shutil.copytree("source", photos)
    trained = train("--val_split=0.3", "--dry_run", "--per_batch_size=6")
    assert "--val_split has no effect: photos has images for validation" in trained.out
    assert counted(trained)[0].endswith(f"tot={sum(COUNTS['val'])}")
    assert "--val_split" not in train("--dry_run").out and not Path("runs").exists()


def test_a_number_of_classes_that_is_given_must_be_right(photos):
    assert "--num_classes=3 fits these" in train("--num_classes=4").refusal()
    for weights, count in (("1,2", 2), ("2", 1)):
        said = train(f"--class_weights={weights}").refusal()
        assert f"class_weights: has {count} factor(s)" in said and "3 classes" in said
    assert run_main("scripts.show_batch", *FLAGS, "--dataset=photos", "--data_dir=photos").status == 0
    for name in ("ant", "bee"):
        shutil.rmtree(photos / name)
    assert "there is one class, cow" in train().refusal() and not Path("runs").exists()


def test_few_uneven_and_small_images_are_said_with_advice(photos):
    for number in range(50):
        write_image(photos / f"ant/more{number}.png", np.full((20, 30, 3), number, np.uint8))
    said = train("--dry_run", "--image_size=64").out
    assert "few training images: bee 4, cow 6" in said and "the images are small: half of the 9" in said
    assert "of very different size: bee 4, ant 47; --class_weights=balanced" in said
    assert "different size" not in train("--dry_run", "--class_weights=balanced").out


def test_the_split_is_the_same_in_every_format(photos):
    for path in write_tfrecords(Path("source"), Path("records"), shards=2).glob("validation*"):
        path.unlink()
    shutil.copytree(photos, "listed")
    assert convert(photos, Path("packed"), "--split=train").status == 0
    Path("listed/train").mkdir()
    for folder in Path("listed").glob("[abc]*"):
        folder.rename(Path("listed/train") / folder.name)
    write_lists(Path("listed"))
    images = {}
    for name in ("photos", "records", "packed", "listed"):
        config = get_config([*FLAGS, "--dataset=photos", f"--data_dir={name}"])
        train_set, test_set = (build_reader(config, split) for split in ("train", "test"))
        assert np.bincount(test_set.labels).tolist() == KEPT and test_set.class_names == ("ant", "bee", "cow")
        images[name] = [[reader.read(index).tobytes() for index in range(len(reader))]
                        for reader in (train_set, test_set)]
        assert not set(images[name][0]) & set(images[name][1]) and len(train_set) + len(test_set) == 22
    assert all(found == images["photos"] for found in images.values())
