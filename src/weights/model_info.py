# SPDX-License-Identifier: Apache-2.0
"""What a model is: the record in our checkpoints, beside exported files and in converted weights. No MindSpore here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from model_utils.errors import UserError
from model_utils.reading import first_problem
from model_utils.schema import DATASETS, INTERPOLATIONS, LEAST_STD, MOST_SIDE, MOST_UNITS, NETWORKS, Config, Preset

CHECKPOINT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt")  # of files of weights that are read
Side = Annotated[int, Field(ge=32, le=MOST_SIDE, multiple_of=32)]
Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=LEAST_STD, le=1)]


class ModelInfo(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """What is needed to build a network again, to feed it, and to name its classes."""

    network: Literal[tuple(NETWORKS)]
    num_classes: int = Field(ge=1, le=10**6)
    class_names: tuple[str, ...]
    image_size: tuple[Side, Side]
    image_mean: tuple[Share, Share, Share]
    image_std: tuple[Deviation, Deviation, Deviation]
    batch_norm: bool
    has_bias: bool
    include_top: bool
    width: float = Field(gt=0, le=4)
    dataset: Literal[tuple(DATASETS)]
    average_pool: bool = False
    hidden_units: int = Field(4096, ge=0, le=MOST_UNITS)
    crop_pct: float | None = Field(None, ge=0.1, le=1)  # None in files written before this field existed
    interpolation: Literal[tuple(INTERPOLATIONS)] | None = None
    resize_mode: Literal["short_side", "squash"] | None = None
    val_split: float | None = Field(None, ge=0, lt=1)  # which of the images were held out, with the seed
    seed: int | None = Field(None, ge=0, lt=2**31)
    pad_mode: str | None = Field(None, exclude=True)  # in older files; with all allowed values padding is one pixel
    padding: int | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _names_fit(self) -> "ModelInfo":
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} names for {self.num_classes} classes")
        return self

    @classmethod
    def of(cls, config: Config, class_names: tuple[str, ...]) -> "ModelInfo":
        preset = config.preset
        values = {name: getattr(config, name) for name in cls.model_fields if name in type(config).model_fields}
        return cls(**values | {"class_names": class_names, "image_mean": preset.mean, "image_std": preset.std})

    @classmethod
    def from_json(cls, text: str, source: object) -> "ModelInfo":
        """The record as a file has it; UserError names `source` and the first value that cannot be."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{source}: its description of the model is damaged, or from another version of this "
                            f"program: {first_problem(error)}") from None

    @property
    def photos(self) -> bool:
        return DATASETS[self.dataset].photos

    @property
    def preset(self) -> Preset:
        known = self.model_dump(include={"crop_pct", "interpolation", "resize_mode"}, exclude_none=True)
        return Preset(self.image_size, self.image_mean, self.image_std, **known)

    def config_values(self) -> dict[str, Any]:
        """The settings that the model decides, by the names of their keys."""
        return {name: value for name, value in self if value is not None
                and name not in ("class_names", "dataset", "pad_mode", "padding", "val_split", "seed")}
