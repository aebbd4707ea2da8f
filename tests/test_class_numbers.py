# SPDX-License-Identifier: Apache-2.0
"""A model is not counted on pictures whose classes are numbered otherwise: the accuracy would be wrong, silently."""

import shutil

import pytest
from toy_data import run_main


@pytest.fixture
def renumbered(photo_model, tmp_path):
    """The test pictures in a list in which the first class is the last one."""
    shutil.copytree(photo_model.data / "val", tmp_path / "pictures")
    pictures = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("pictures/*/*"))
    names = sorted({path.parent.name for path in pictures})
    lines = [f"{path} {len(names) - 1 - names.index(path.parent.name)}\n" for path in pictures]
    (tmp_path / "val_list.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize(("script", "flags"), [
    ("eval", ["--pre_trained={0.checkpoint}"]), ("infer", ["--model_path={0.checkpoint}"]),
    ("infer", ["--model_path={0.onnx}"]), ("preprocess", ["--model_path={0.mindir}"])])
def test_classes_under_other_numbers_are_refused(photo_model, renumbered, script, flags):
    said = run_main(script, "--dataset=imagenet2012", f"--data_dir={renumbered}", f"--ckpt_path={renumbered}/runs",
                    f"--result_path={renumbered}/prepared", *(flag.format(photo_model) for flag in flags))
    assert said.status == 2 and "numbers its classes otherwise than the" in said.err and "cow, ant" in said.err
