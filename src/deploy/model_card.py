# SPDX-License-Identifier: Apache-2.0
"""NAME.json beside exported files: everything that a program must know to use them, and the proof that they are right.

No MindSpore here: a device reads it too.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.errors import UserError
from model_utils.schema import Preset

VERSION = 1
SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
LOGITS = "logits: one score per class, not yet probabilities; softmax makes them so"
FEATURES = "feature map of the last convolution: the network was built without its classifier"
STEPS = {True: "decode to R,G,B; short side to {short} pixels ({how}); cut {size} out of the centre; "
               "(pixel / 255 - mean) / std; transpose to C,H,W",
         False: "decode to R,G,B; resize to 32 x 32 pixels (bilinear), then to {size} ({how}); "
                "(pixel / 255 - mean) / std; transpose to C,H,W"}


class ExportedFile(NamedTuple):
    """One format of a model. `batch_size` is None where it takes any number of images at a time."""

    file: str
    sha256: str
    size_bytes: int
    batch_size: int | None
    input_name: str
    parity: dict[str, Any] | None  # what the comparison with the network came to; None where there was none


class ModelCard(NamedTuple):
    """What a model is, how it is fed, what its answers mean, and the files it was exported to, by format."""

    network: str
    class_names: tuple[str, ...]
    preset: Preset
    photos: bool
    include_top: bool
    checkpoint: str
    checkpoint_sha256: str
    files: dict[str, ExportedFile]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def config_values(self) -> dict[str, Any]:
        """The settings that the model decides, by the names of their keys."""
        return {"network": self.network, "num_classes": self.num_classes, "image_size": self.preset.image_size,
                "image_mean": self.preset.mean, "image_std": self.preset.std, "crop_pct": self.preset.crop_pct,
                "interpolation": self.preset.interpolation, "include_top": self.include_top}

    def to_json(self) -> str:
        height, width = self.preset.image_size
        steps = STEPS[self.photos].format(short=self.preset.short_side, size=f"{height} x {width}",
                                          how=self.preset.interpolation)
        return _in_lines({
            "version": VERSION,
            "network": self.network,
            "input": {"shape": ["N", 3, height, width], "layout": "NCHW", "type": "float32", "colours": "RGB"},
            "preprocessing": {"steps": steps, "photos": self.photos, "image_size": [height, width],
                              "crop_pct": self.preset.crop_pct, "interpolation": self.preset.interpolation,
                              "mean": self.preset.mean, "std": self.preset.std},
            "output": {"meaning": LOGITS if self.include_top else FEATURES, "include_top": self.include_top},
            "class_names": self.class_names,
            "checkpoint": {"file": self.checkpoint, "sha256": self.checkpoint_sha256},
            "files": {name: _file_entry(entry, self.preset) for name, entry in self.files.items()},
        })

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The inverse; ValueError, KeyError or TypeError for anything else."""
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        steps = data["preprocessing"]
        preset = Preset(tuple(steps["image_size"]), tuple(steps["mean"]), tuple(steps["std"]), steps["crop_pct"],
                        steps["interpolation"])
        files = {name: ExportedFile(*(entry[field] for field in ExportedFile._fields))
                 for name, entry in data["files"].items()}
        return cls(data["network"], tuple(data["class_names"]), preset, steps["photos"],
                   data["output"]["include_top"], data["checkpoint"]["file"], data["checkpoint"]["sha256"], files)


def _in_lines(data: dict[str, Any]) -> str:
    """JSON with a line for each key; lists stay in one line."""
    text = json.dumps(data, indent=1, ensure_ascii=False)  # a line break inside a text is escaped, so none is matched
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), text) + "\n"


def _file_entry(entry: ExportedFile, preset: Preset) -> dict[str, Any]:
    batch = "N" if entry.batch_size is None else entry.batch_size
    return {**entry._asdict(), "input_shape": [batch, 3, *preset.image_size]}


def card_path(model_path: Path) -> Path:
    return model_path.with_suffix(".json")


def find_card(model_path: Path) -> ModelCard | None:
    """The card beside an exported file; None if there is none. UserError if there is one that cannot be read."""
    path = card_path(model_path)
    if model_path.suffix.lower() not in SUFFIXES.values() or not path.is_file():
        return None
    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no description of an exported model, or is damaged "
                         f"({type(error).__name__}: {error}); export.py writes it anew") from None


def is_anothers(path: Path) -> bool:
    """Whether a file is JSON, but not what export.py would ever have written."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(data, dict) or not {"version", "files"} <= set(data)


def entry_of(card: ModelCard, model_path: Path) -> ExportedFile | None:
    """What the card says of this file."""
    return next((card.files[name] for name, suffix in SUFFIXES.items()
                 if suffix == model_path.suffix.lower() and name in card.files), None)


def check_file(card: ModelCard, model_path: Path) -> ExportedFile | None:
    """What the card says of this file, once its contents are those that were exported. UserError if they are not."""
    entry = entry_of(card, model_path)
    if entry and (entry.size_bytes != model_path.stat().st_size or entry.sha256 != sha256(model_path)):
        raise UserError(f"{model_path}: is not the file that {card_path(model_path).name} describes: it is damaged, "
                         "or was written by somebody else; export it again")
    return entry


def sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
