# SPDX-License-Identifier: Apache-2.0
"""Config and a file of weights: where they must agree, and who decides."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.errors import UserError
from model_utils.schema import DATASETS, Config
from src.weights.checkpoint import find_checkpoints
from src.weights.load import Weights, model_facts, read_weights

MODEL_KEYS = ("network", "batch_norm", "has_bias", "width", "pad_mode", "padding", "average_pool")


def agree_with_weights(config: Config, weights: Weights, *, own: Collection[str] = ()) -> tuple[Config, list[str]]:
    """The Config with what the file says of its model, and what changed by that, to be reported.

    The keys in `own` stay as they are. UserError where a flag says something else than the file.
    """
    facts = model_facts(weights, width=config.width, image_size=config.image_size, average_pool=config.average_pool
                        and (weights.info is None or config.is_flag("average_pool")))
    if _pixels(facts.get("pad_mode"), facts.get("padding")) == _pixels(config.pad_mode, config.effective_padding):
        own = {*own, "pad_mode", "padding"}  # two ways to say the same
    own = {*own, *(name for name in ("crop_pct", "interpolation") if config.is_flag(name))}  # to try others is usual
    facts = {name: value for name, value in facts.items() if name not in own}
    fitting, taken = config.giving_way(facts, f"the checkpoint {weights.path}")
    theirs = (fitting.image_mean, fitting.image_std)
    ours = DATASETS[config.dataset].statistics
    if fitting.image_mean and not config.image_mean and (not weights.info or theirs != ours):
        taken.append("image_mean and image_std of the file's training images" if weights.info else
                     "image_mean and image_std of ImageNet, which such weights are trained with")
    return fitting, taken


def _pixels(pad_mode: str | None, padding: int | None) -> int | None:
    """What a 3x3 convolution adds on every side."""
    return 1 if pad_mode == "same" else padding


class Start(NamedTuple):
    """What training starts from: the weights, if any, the Config that fits them, and what changed in it by that."""

    config: Config
    weights: Weights | None
    taken: list[str]


def without_file(config: Config, settings: Mapping[str, Any]) -> Start:
    """The start of a run that goes on from a state with these settings, which holds all weights: the file that they
    began with may be gone. What the file decided about the model is decided."""
    if not config.pre_trained:
        return Start(config, None, [])
    decided = {name: settings[name] for name in MODEL_KEYS if not config.is_flag(name)}
    decided |= {name: tuple(settings[name]) for name in ("image_mean", "image_std") if not getattr(config, name)}
    return Start(config.taking(decided, "the resume state"), None, [])


def open_pre_trained(config: Config) -> Start:
    """Read the weights that `pre_trained` names, to train on. UserError if that is not one file, or no VGG's weights.

    Classes, image size and normalisation are the run's own business where it says anything about them.
    """
    if not config.pre_trained:
        return Start(config, None, [])
    if Path(config.pre_trained).is_dir():
        raise UserError(f"pre_trained: {config.pre_trained} is a folder; training starts from one file")
    paths = find_checkpoints(config.pre_trained)
    if len(paths) > 1:
        raise UserError(f"pre_trained: {config.pre_trained} names {len(paths)} files; training starts from one, "
                         f"such as the newest, {paths[0]}")
    weights = read_weights(paths[0])
    own = {"num_classes", "image_size", "include_top", "crop_pct", "interpolation"}
    own |= {name for name in ("image_mean", "image_std") if getattr(config, name)}
    if config.is_flag("average_pool") or not (weights.info and weights.info.average_pool):
        own.add("average_pool")
    config, taken = agree_with_weights(config, weights, own=own)
    return Start(config, weights, taken)
