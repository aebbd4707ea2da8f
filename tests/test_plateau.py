# SPDX-License-Identifier: Apache-2.0
"""VGG without batch normalisation is known to sit at a loss of ln(classes); the published values must get it off."""

import math
import re

import numpy as np
import pytest
from toy_data import run_main

CLASSES = 10
GUESSING = math.log(CLASSES)  # label smoothing does not change the loss of a network that only guesses


@pytest.mark.slow
@pytest.mark.parametrize(("network", "steps"), [("vgg11", 120), ("vgg16", 240)])
def test_a_plain_network_leaves_the_plateau_with_the_published_values(tmp_path, network, steps):
    done = run_main("train", "--config_path=imagenet2012_config.yaml", "--dataset=synthetic", "--num_classes=10",
                    f"--network={network}", "--image_size=64", f"--max_train_steps={steps}", "--log_interval=1",
                    "--device_target=CPU", f"--ckpt_path={tmp_path}")
    assert done.status == 0, done.err
    losses = np.array([float(loss) for loss in re.findall(r"step: \d+, loss is (\S+)", done.out)])
    assert len(losses) == steps
    assert losses.max() < 2 * GUESSING  # no jump at the start, behind which most units would be dead
    assert losses[-20:].mean() < 0.95 * GUESSING
