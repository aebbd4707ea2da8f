# SPDX-License-Identifier: Apache-2.0
"""What a model is: the record in our checkpoints, beside exported files and in converted weights. No MindSpore here."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from model_utils.schema import DATASETS, Config, Preset


class ModelInfo(BaseModel):
    """What is needed to build a network again, to feed it, and to name its classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    network: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    batch_norm: bool
    has_bias: bool
    pad_mode: str
    padding: int
    include_top: bool
    width: float
    dataset: str
    average_pool: bool = False
    crop_pct: float | None = None  # None in files written before this field existed
    interpolation: str | None = None

    @classmethod
    def of(cls, config: Config, class_names: tuple[str, ...]) -> "ModelInfo":
        preset = config.preset
        values = {name: getattr(config, name) for name in cls.model_fields if name in type(config).model_fields}
        return cls(**values | {"class_names": class_names, "image_mean": preset.mean, "image_std": preset.std,
                               "padding": config.effective_padding})

    @property
    def photos(self) -> bool:
        return DATASETS[self.dataset].photos

    @property
    def preset(self) -> Preset:
        known = {"crop_pct": self.crop_pct, "interpolation": self.interpolation}
        return Preset(self.image_size, self.image_mean, self.image_std,
                      **{name: value for name, value in known.items() if value is not None})

    def config_values(self) -> dict[str, Any]:
        """The settings that the model decides, by the names of their keys."""
        return {name: value for name, value in self if value is not None and name not in ("class_names", "dataset")}
