# SPDX-License-Identifier: Apache-2.0
"""Networks as somebody deploys them: trained for a moment, given a head that tells images apart, exported, their
accuracy counted by eval.py."""

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import mindspore
import numpy as np
from helpers import TINY, Outcome, eval_batches, run_main, write_cifar10, write_class_folders, write_image

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from src import build
from src.data.formats import build_reader
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

PHOTOS = ("--dataset=imagenet2012", "--num_classes=3", "--batch_norm=True")


class Deployed(NamedTuple):
    """A model, what it was made from, and what eval.py counts on its test set."""

    data: Path
    checkpoint: Path
    mindir: Path
    onnx: Path
    counts: tuple[int, int, int]  # top-1 right, top-k right, all


def infer(model: Path, source: Path, *flags: object) -> Outcome:
    return run_main("infer", f"--model_path={model}", f"--input={source}", "--device_target=CPU", *flags)


def make_cifar_model(folder: Path) -> Deployed:
    data = write_cifar10(folder / "data").folder
    checkpoint = train(data, folder, *TINY)
    spread_answers(checkpoint, data)
    export(checkpoint, folder / "small")
    return finish(data, checkpoint, folder / "small")


def make_photo_model(folder: Path) -> Deployed:
    data = write_class_folders(folder / "data", each=7)  # names repeat from class to class
    grey = np.random.RandomState(5).randint(0, 256, (70, 50)).astype(np.uint8)
    (data / "val" / "ant" / "n01_00000001.JPEG").write_bytes(cv2.imencode(".jpg", grey)[1].tobytes())
    write_image(data / "val" / "readme.png", np.zeros((9, 9, 3), np.uint8))  # of no class: never counted
    checkpoint = train(data, folder, *TINY, *PHOTOS, "--image_size=64")
    spread_answers(checkpoint, data, "--dataset=imagenet2012")
    export(checkpoint, folder / "photos", "--export_batch_size=4", "--dynamic_batch")
    return finish(data, checkpoint, folder / "photos", "--dataset=imagenet2012")


def train(data: Path, folder: Path, *flags: str) -> Path:
    done = run_main("train", f"--data_dir={data}", f"--ckpt_path={folder / 'runs'}", "--max_epoch=2",
                    "--batch_size=8", "--lr_scheduler=exponential", "--warmup_epochs=0", *flags)
    assert done.status == 0, done.err
    return next((folder / "runs").glob("*/ckpt_0/*.ckpt"))


def spread_answers(checkpoint: Path, data: Path, *flags: str) -> None:
    """Give it a random head that is centred on its test images: so short a training has one answer for all, and
    results that belong to other images would count as right."""
    asked = get_config([f"--data_dir={data}", "--device_target=CPU", *flags])
    model = build.ModelLoader(asked, set_up_device(asked)).load(checkpoint)
    config, network = model.config, model.network
    reader = build_reader(config, "test")
    images = np.concatenate([images for images, _ in eval_batches(config, reader)])
    head = network.parameters_dict()
    weights = np.random.RandomState(3).randn(*head["classifier.6.weight"].shape)
    head["classifier.6.weight"].set_data(mindspore.Tensor(weights, mindspore.float32))
    network.set_train(False)
    head["classifier.6.bias"].set_data(mindspore.Tensor(-network(mindspore.Tensor(images)).asnumpy().mean(axis=0)
                                                        + head["classifier.6.bias"].asnumpy()))
    answers = network(mindspore.Tensor(images)).asnumpy().argmax(axis=1)
    assert len(set(answers.tolist())) > 1 + config.num_classes // 4
    save_checkpoint(checkpoint, network, ModelInfo.of(config, model.class_names))


def export(checkpoint: Path, name: Path, *flags: str) -> None:
    done = run_main("export", f"--ckpt_file={checkpoint}", f"--file_name={name}", "--file_format=MINDIR,ONNX",
                    "--device_target=CPU", *flags)
    assert done.status == 0, done.err


def finish(data: Path, checkpoint: Path, name: Path, *flags: str) -> Deployed:
    done = run_main("eval", f"--data_dir={data}", f"--pre_trained={checkpoint}", "--device_target=CPU",
                    f"--ckpt_path={name.parent / 'evaluations'}", "--per_batch_size=16", *flags)
    assert done.status == 0, done.err
    (top1, total), (topk, _) = re.findall(r"top\d_correct=(\d+), tot=(\d+)", done.out)
    return Deployed(data, checkpoint, Path(f"{name}.mindir"), Path(f"{name}.onnx"), (int(top1), int(topk), int(total)))
