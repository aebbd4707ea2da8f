# SPDX-License-Identifier: Apache-2.0
"""A model is not counted on images whose classes are numbered otherwise, or that are prepared as those of another
kind: the accuracy would be wrong, silently."""

import shutil

import pytest
from helpers import run_main, write_lists


@pytest.mark.parametrize(("script", "flag"), [
    ("eval", "--pre_trained={0.checkpoint}"), ("infer", "--model_path={0.onnx}"),
    ("preprocess", "--model_path={0.mindir}")])
def test_other_class_numbers_and_other_kinds_of_images_are_refused(photo_model, tmp_path, script, flag):
    shutil.copytree(photo_model.data / "val", tmp_path / "val")
    write_lists(tmp_path)
    flags = (flag.format(photo_model), f"--data_dir={tmp_path}", f"--ckpt_path={tmp_path}/runs",
             f"--result_path={tmp_path}/prepared")
    # Without `--dataset`, the recipe says small images; eval.py goes by it only if it is the user's own.
    recipe = ("-c", "cifar10_config.yaml") if script == "eval" else ()
    said = run_main(script, *flags, *recipe).refusal()
    assert "the model was trained on photos: give --dataset=photos, or" in said
    lines = (tmp_path / "val_list.txt").read_text().splitlines()
    turned = [f"{path} {2 - int(label)}\n" for path, label in map(str.split, lines)]
    (tmp_path / "val_list.txt").write_text("".join(turned))
    said = run_main(script, *flags, "--dataset=imagenet2012").refusal()
    assert "numbers its classes otherwise than the" in said and "cow, ant" in said
