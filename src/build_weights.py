# SPDX-License-Identifier: Apache-2.0
"""Config and a file of weights: where they must agree, and who decides."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from model_utils.schema import Config
from src.utils.util import InputError
from src.weights import Weights, model_facts, read_weights


def agree_with_weights(config: Config, weights: Weights, *, own: Collection[str] = ()) -> tuple[Config, list[str]]:
    """The Config with what the file says of its model, and what changed by that, to be reported.

    The keys in `own` stay as they are. ConfigError where a flag says something else than the file.
    """
    facts = model_facts(weights, width=config.width, image_size=config.image_size, average_pool=config.average_pool
                        and (weights.info is None or config.is_flag("average_pool")))
    facts = {name: value for name, value in facts.items() if name not in own}
    fitting, taken = config.giving_way(facts, f"the checkpoint {weights.path}")
    if weights.info is None and weights.zoo.uses_imagenet_statistics and not config.image_mean and fitting.image_mean:
        taken.append("image_mean and image_std of ImageNet, which such weights are trained with")
    return fitting, taken


class Start(NamedTuple):
    """What training starts from: the weights, if any, the Config that fits them, and what changed in it by that."""

    config: Config
    weights: Weights | None
    taken: list[str]


def open_pre_trained(config: Config) -> Start:
    """Read the weights of `pre_trained` to train on. InputError for a folder, and for what is no VGG's weights.

    Classes, picture size and normalisation are the run's own business where it says anything about them.
    """
    if not config.pre_trained:
        return Start(config, None, [])
    if Path(config.pre_trained).is_dir():
        raise InputError(f"pre_trained: {config.pre_trained} is a folder; training starts from one file")
    weights = read_weights(Path(config.pre_trained))
    own = {"num_classes", "image_size", "include_top"}
    own |= {name for name in ("image_mean", "image_std") if getattr(config, name)}
    if config.is_flag("average_pool") or not (weights.info and weights.info.average_pool):
        own.add("average_pool")
    config, taken = agree_with_weights(config, weights, own=own)
    return Start(config, weights, taken)
