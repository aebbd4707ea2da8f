# SPDX-License-Identifier: Apache-2.0
"""NAME.json beside exported files: what a program must know to use them, and the proof that they are right.

Needs no MindSpore: a device reads it too.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from model_utils.errors import UserError
from model_utils.reading import first_problem, read_json
from model_utils.schema import MOST_SIDE, SMALL, Config
from src.data.cifar10 import CLASS_NAMES
from src.weights.model_info import ModelInfo

VERSION = 1
SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
LOGITS = "logits: one score per class, not yet probabilities; softmax makes them so"
FEATURES = "feature map of the last convolution: the network was built without its classifier"


class ExportedInfo(ModelInfo):
    """The ModelInfo in a card, which does not say how the network is built."""

    batch_norm: bool | None = None
    has_bias: bool | None = None
    width: float | None = None
    average_pool: bool | None = None
    hidden_units: int | None = None


class ExportedFile(BaseModel, frozen=True):
    """One format of a model."""

    file: str
    sha256: str
    size_bytes: int
    batch_size: int | None = Field(ge=1, le=MOST_SIDE)  # None: any number of images at a time
    input_name: str
    parity: dict[str, Any] | None  # result of the comparison with the network; None if there was none


class ModelCard(NamedTuple):
    """What a model is, the checkpoint it comes from, and the files it was exported to, by format."""

    info: ModelInfo
    checkpoint: str
    checkpoint_sha256: str
    files: dict[str, ExportedFile]

    def to_json(self) -> str:
        info, preset = self.info, self.info.preset
        height, width = preset.image_size
        resize = "resize to 32 x 32 pixels (bilinear)"
        if preset.image_size != SMALL:
            resize += f", then to {height} x {width} ({preset.interpolation})"
        if info.photos:
            resize = f"short side to {preset.short_side} pixels"
            if preset.resize_mode == "squash":
                resize = "resize to {} x {} pixels".format(*preset.resized(height, width))
            resize += f" ({preset.interpolation}); cut {height} x {width} out of the centre"
        steps = f"decode to R,G,B; {resize}; (pixel / 255 - mean) / std; transpose to C,H,W"
        files = {name: {**entry.model_dump(), "input_shape": [entry.batch_size or "N", 3, height, width]}
                 for name, entry in self.files.items()}
        data = {
            "version": VERSION,
            "network": info.network,
            "input": {"shape": ["N", 3, height, width], "layout": "NCHW", "type": "float32", "colours": "RGB"},
            "preprocessing": {"steps": steps, "photos": info.photos, "image_size": [height, width],
                              "crop_pct": preset.crop_pct, "interpolation": preset.interpolation,
                              "resize_mode": preset.resize_mode,
                              "mean": preset.mean, "std": preset.std},
            "output": {"meaning": LOGITS if info.include_top else FEATURES, "include_top": info.include_top},
            "class_names": info.class_names,
            "checkpoint": {"file": self.checkpoint, "sha256": self.checkpoint_sha256},
            "files": files,
        }
        # One line per key: lists are joined again. Line breaks inside strings are escaped, so none of them matches.
        text = json.dumps(data, indent=1, ensure_ascii=False)
        return re.sub(r"\[\n[^\[\]{}]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), text) + "\n"

    @classmethod
    def from_json(cls, data: Any) -> "ModelCard":
        """The inverse; ValueError, KeyError, TypeError or AttributeError for anything else."""
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        steps, names = data["preprocessing"], data["class_names"]
        info = ExportedInfo(network=data["network"], num_classes=len(names), class_names=names,
                            image_size=steps["image_size"], image_mean=steps["mean"], image_std=steps["std"],
                            crop_pct=steps["crop_pct"], interpolation=steps["interpolation"],
                            resize_mode=steps.get("resize_mode"), include_top=data["output"]["include_top"],
                            dataset="imagenet2012" if steps["photos"] else "cifar10")
        files = {name: ExportedFile(**entry) for name, entry in data["files"].items()}
        return cls(info, data["checkpoint"]["file"], data["checkpoint"]["sha256"], files)


def card_path(model_path: Path) -> Path:
    return model_path.with_suffix(".json")


def find_card(model_path: Path) -> ModelCard | None:
    """The card beside an exported file; None if there is none. UserError if it cannot be read."""
    path = card_path(model_path)
    if not path.is_file():
        return None
    try:
        return ModelCard.from_json(read_json(path))
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        said = first_problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: is not the description of an exported model, or is damaged "
                        f"({said}); export the model again, or under another name") from None


class KnownModel(NamedTuple):
    """A model as a command uses it: the Config that fits it, and what else is known about it."""

    config: Config
    class_names: tuple[str, ...]
    photos: bool
    batch_size: int | None  # of an exported file; None if it is not known or any number will do
    notes: tuple[str, ...]  # for the log


def identify_model(config: Config, model_path: Path | None) -> KnownModel:
    """The Config for an exported model: flags first, then NAME.json, then the recipe.

    UserError if a flag and NAME.json disagree, or if there is no such model. Without a model the Config stays as it is.
    """
    if model_path and model_path.suffix.lower() not in SUFFIXES.values():
        raise UserError(f"model_path: {model_path} is not an exported model ({', '.join(SUFFIXES.values())}); "
                        "export.py makes one from a checkpoint")
    card = find_card(model_path) if model_path else None
    if model_path and not model_path.is_file():
        raise UserError(f"model_path: there is no file {model_path}")
    if card is None:
        is_cifar10 = config.dataset == "cifar10" and config.num_classes == len(CLASS_NAMES)
        names = CLASS_NAMES if is_cifar10 else tuple(map(str, range(config.num_classes)))
        missing = [f"there is no {card_path(model_path).name}, so image size, normalisation and classes are those of "
                   "the recipe and the flags"] if model_path else []
        return KnownModel(config, names, config.photos, None, (*config.notes, *missing))
    entry = next((entry for name, entry in card.files.items() if SUFFIXES.get(name) == model_path.suffix.lower()), None)
    if entry is None:
        raise UserError(f"model_path: {card_path(model_path)} describes another export, without {model_path.name}; "
                        "export this format again")
    fitting, taken = config.giving_way(card.info.config_values(), str(card_path(model_path)))
    decided = [f"taken from {card_path(model_path)}: {', '.join(taken)}"] if taken else []
    return KnownModel(fitting, card.info.class_names, card.info.photos, entry.batch_size, (*config.notes, *decided))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
