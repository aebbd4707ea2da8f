# SPDX-License-Identifier: Apache-2.0
"""VGG without batch normalisation is known to sit at a loss of ln(classes); the published values must get it off."""

import colorsys
import math
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import Split, cifar_records, run_main

CLASSES = 10
GUESSING = math.log(CLASSES)  # label smoothing does not change the loss of a network that only guesses


@pytest.fixture(scope="module")
def tinted(tmp_path_factory) -> Path:
    """CIFAR-10 records: noise in a colour of its own for each class, which is easily told, like the
    first things that a network learns of photos."""
    folder, random = tmp_path_factory.mktemp("tinted"), np.random.RandomState(1)
    tints = np.array([colorsys.hsv_to_rgb(number / CLASSES, 0.5, 0.7) for number in range(CLASSES)]) * 255
    for number in range(1, 6):
        labels = random.randint(0, CLASSES, 1000)
        noise = random.normal(0, 50, (len(labels), 3, 32 * 32))
        pixels = np.clip(tints[labels][:, :, None] + noise, 0, 255).astype(np.uint8)
        split = Split(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.uint8))
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_records(split).tobytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("network", "steps"), [("vgg11", 30), ("vgg16", 40)])
def test_a_plain_network_leaves_the_plateau_with_the_published_values(tinted, tmp_path, network, steps):
    done = run_main("train", "--config_path=imagenet2012_config.yaml", "--dataset=cifar10", f"--data_dir={tinted}",
                    "--num_classes=10", f"--network={network}", "--image_size=64", f"--max_train_steps={steps}",
                    "--log_interval=1", "--device_target=CPU", f"--ckpt_path={tmp_path}")
    assert done.status == 0, done.err
    losses = np.array([float(loss) for loss in re.findall(r"step: \d+, loss is (\S+)", done.out)])
    assert len(losses) == steps
    assert losses.max() < 2 * GUESSING  # no jump at the start, behind which most units would be dead
    assert losses[-10:].mean() < 0.95 * GUESSING
