# SPDX-License-Identifier: Apache-2.0
"""Every key of the project: its type, range, default and help, in the groups that `--help` shows."""

import re
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from model_utils.errors import UserError
from model_utils.values import (
    Flag,
    Floats,
    ImageSize,
    Ints,
    LossScale,
    OptionalFloat,
    OptionalInt,
    OptionalText,
    StepLimit,
    Text,
    auto_or_flag,
    choice,
    choices,
)

NETWORKS = {  # -> convolutions in each of the five stages
    "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class DataSet(NamedTuple):
    """What the images of a data set are like, and the formats in which dataset_format=auto looks for them."""

    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, R,G,B on the scale 0 to 1
    photos: bool  # of any size, cropped; False: small images of one size
    formats: tuple[str, ...] = ()  # none: the images are generated


DATASETS = {
    "cifar10": DataSet(((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), photos=False,
                       formats=("cifar10", "list", "tfrecord", "mindrecord")),
    "imagenet2012": DataSet(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), photos=True,
                            formats=("folder", "list", "tfrecord", "mindrecord")),
    "synthetic": DataSet(((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), photos=False),
}
SMALL = (32, 32)  # the size of images that are no photos
DATASET_FORMATS = ("auto", "cifar10", "folder", "list", "tfrecord", "mindrecord")
# -> their names in OpenCV and MindData
INTERPOLATIONS = {"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST", "area": "AREA"}
FILES_OF_A_RUN = ("config.yaml", "metrics.csv", "curves.png", "run.lock", "best.ckpt")
FOLDERS_OF_A_RUN = re.compile(r"resume|ckpt_\d+")
MOST_EPOCHS = 100_000  # a rate for each of their steps is made in advance
NUMBERS = (int, float, int | None, float | None)
SCHEDULES = ("step", "exponential", "cosine_annealing")


def key(default: Any, help_text: str, *, bare: str | None = None, **limits: Any) -> Any:
    """A key; `bare` is what its flag means when it is given without a value."""
    return Field(default, description=help_text, validate_default=True, json_schema_extra={"bare": bare}, **limits)


def _shown(value: Any) -> str:
    """A value as one writes it behind a flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Preset(NamedTuple):
    """How images become the network's input, apart from the random part."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875  # share of a photo's short side that the evaluation crop keeps
    interpolation: str = "bilinear"

    @property
    def short_side(self) -> int:
        """The short side of a photo before the evaluation crop."""
        return round(max(self.image_size) / self.crop_pct)

    @property
    def scaled(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation on the scale 0 to 255, that of the pixels."""
        return [255.0 * value for value in self.mean], [255.0 * value for value in self.std]


class RunKeys(BaseModel):
    """What to do"""

    mode: choice("train", "evaluate", "train_and_evaluate") = key("train", "what train.py does")
    seed: int = key(1, "weights, sample order, augmentation and dropout all follow from it", ge=0, lt=2**31)
    log_interval: int = key(100, "steps between two loss lines", ge=1)
    training_step_per_epoch: StepLimit = key(-1, "steps of a training epoch; -1 takes all of the data")
    eval_step_per_epoch: StepLimit = key(-1, "batches of an evaluation on each device; -1 takes every image")
    max_train_steps: OptionalInt = key(None, "ends the run after so many steps, if max_epoch does not end it before; "
                                             "the learning rate stays that of max_epoch", ge=1)
    skip_steps: int = key(1, "steps at the start that the throughput at the end of training leaves out", ge=0)
    epochs_between_evals: int = key(1, "epochs between two evaluations in train_and_evaluate", ge=1)
    log_name: Text = key("train.log", "name of rank 0's log in the run folder", pattern=r"^[^/\\.][^/\\]*$")


class DeviceKeys(BaseModel):
    """Where it runs"""

    device_target: choice("auto", "Ascend", "GPU", "CPU") = key("auto", "auto takes Ascend, then GPU, then CPU")
    device_id: OptionalInt = key(None, "which card; the launcher's choice, else 0", ge=0)
    rank_size: OptionalInt = key(None, "how many ranks the job must have; checked", ge=1)
    is_distributed: Flag = key(False, "one rank of a job that msrun, mpirun or a rank table started")
    graph_mode: Flag = key(True, "compile the network; False runs it op by op (PyNative)")
    amp_level: choice("auto", "O0", "O1", "O2", "O3") = key("auto", "auto is O2 on Ascend and GPU, O0 on CPU")
    num_parallel_workers: OptionalInt = key(None, "data workers of a rank; never more than its cores", ge=1)
    dataset_sink_mode: auto_or_flag() = key("auto", "auto sinks on Ascend and GPU", bare="True")
    sink_size: int = key(-1, "steps per sink; -1 is about log_interval, a divisor of the epoch", ge=-1)


class DataKeys(BaseModel):
    """Data"""

    dataset: choice(*DATASETS) = key("cifar10", "which data set, and so which layout and transforms")
    data_dir: OptionalText = key(None, "its folder")
    dataset_format: choice(*DATASET_FORMATS) = key("auto", "how its images are stored; auto looks, and says so")
    tfrecord_first_label: int = key(1, "number of the first class in TFRecord shards", ge=0, le=1)
    on_bad_image: choice("error", "replace", "skip") = key("error", "what a image that cannot be read does: end the "
                                                           "run, be replaced by another, or be left out (one rank)")
    num_classes: int = key(10, "number of classes", ge=2)
    batch_size: int = key(64, "images per step on each device", ge=1)
    per_batch_size: OptionalInt = key(None, "images per evaluation step; batch_size unless given", ge=1)
    image_size: ImageSize = key((224, 224), "height,width; one number is a square")
    image_mean: Floats = key((), "R,G,B mean on the scale 0 to 1; the data set's own unless given")
    image_std: Floats = key((), "R,G,B deviation on the scale 0 to 1; the data set's own unless given")
    augment: Flag = key(True, "random crops and flips in training")
    scale: Floats = key((0.08, 1.0), "smallest,largest share of a photo's area that a random crop takes")
    ratio: Floats = key((3 / 4, 4 / 3), "smallest,largest width over height of a random crop of a photo")
    hflip: float = key(0.5, "how often a training image is flipped, 0 to 1", ge=0, le=1)
    cutout: int = key(0, "side of the black square put on each training image, in pixels; 0 for none", ge=0)
    interpolation: choice(*INTERPOLATIONS) = key("bilinear", "how images are resized")
    crop_pct: float = key(0.875, "share of a photo's short side that the evaluation crop keeps", gt=0, le=1)
    buffer_size: int = key(10, "model-zoo key; the shuffle here is always a full one", ge=1)
    synthetic_train_images: int = key(5000, "size of the generated training set", ge=1)
    synthetic_test_images: int = key(1000, "size of the generated test set", ge=1)


class NetworkKeys(BaseModel):
    """Network"""

    network: choice(*NETWORKS) = key("vgg16", "depth")
    batch_norm: Flag = key(True, "batch normalisation after each convolution")
    has_bias: Flag = key(False, "bias in the convolutions")
    has_dropout: Flag = key(True, "dropout in the classifier")
    dropout_rate: float = key(0.5, "share of units dropped; 0 is none", ge=0, lt=1)
    pad_mode: choice("same", "pad") = key("same", "padding of the convolutions")
    padding: OptionalInt = key(None, "pixels of padding; 1 with pad and 0 with same unless given", ge=0)
    initialize_mode: choice("XavierUniform", "KaimingNormal", "Dirac") = key("XavierUniform", "initial weights")
    include_top: Flag = key(True, "False leaves the classifier out")
    width: float = key(1.0, "factor on all channel counts, for small machines and tests", gt=0, le=4)
    average_pool: Flag = key(False, "pool the last feature map to 7x7, so that a classifier fits other image sizes")
    pre_trained: OptionalText = key(None, "weights to start from (train) or to evaluate (eval): .ckpt, .safetensors, "
                                          ".pth or .pt of this project, the model zoo, MindCV, torchvision or timm")
    pre_trained_strict: Flag = key(True, "False trains on although more than the head is missing in pre_trained")
    freeze: OptionalText = key(None, "what does not train: features, classifier, or patterns such as layers.[0-9].*")


class ScheduleKeys(BaseModel):
    """Learning rate"""

    max_epoch: int = key(70, "epochs", ge=1, le=MOST_EPOCHS)
    lr_scheduler: choice(*SCHEDULES, "multi_step") = key("step", "multi_step is another name of exponential")
    lr: float = key(0.01, "peak rate of exponential and cosine_annealing", gt=0, allow_inf_nan=False)
    lr_init: float = key(0.01, "rate at the start of the warm-up (step)", ge=0, allow_inf_nan=False)
    lr_max: float = key(0.1, "rate after the warm-up (step)", gt=0, allow_inf_nan=False)
    lr_epochs: Ints = key((30, 60, 90, 120), "epochs at which exponential lowers the rate")
    lr_gamma: float = key(0.1, "factor by which exponential lowers it", gt=0, le=1)
    eta_min: float = key(0.0, "end of the cosine", ge=0, allow_inf_nan=False)
    T_max: OptionalInt = key(None, "epochs of the cosine; max_epoch unless given", ge=1)
    lr_scale: choice("none", "linear") = key("none", "linear: rates grow with the global batch")
    lr_base_batch: int = key(64, "global batch that the rates are meant for (lr_scale=linear)", ge=1)
    warmup_epochs: float = key(5, "epochs of linear warm-up; 0 is none", ge=0, le=MOST_EPOCHS)


class LossKeys(BaseModel):
    """Loss and optimizer"""

    momentum: float = key(0.9, "momentum", ge=0, lt=1)
    use_nesterov: Flag = key(False, "Nesterov momentum")
    head_lr_multiplier: float = key(1.0, "times the learning rate for the last layer", gt=0, allow_inf_nan=False)
    weight_decay: float = key(5e-4, "on convolution and dense weights only", ge=0, allow_inf_nan=False)
    loss_scale: LossScale = key(1.0, "fixed factor, or dynamic (Ascend and GPU)")
    label_smooth: Flag = key(False, "label smoothing")
    label_smooth_factor: float = key(0.0, "probability taken from the label", ge=0, lt=1)


class OutputKeys(BaseModel):
    """Run folder and checkpoints"""

    ckpt_path: Text = key("outputs/", "root of the run folders")
    ckpt_interval: int = key(5, "epochs between two checkpoints", ge=1)
    keep_checkpoint_max: int = key(10, "how many are kept", ge=1)
    is_save_on_master: Flag = key(True, "only rank 0 saves checkpoints")
    ckpt_interval_steps: OptionalInt = key(None, "steps between two resume states, besides those of the epochs", ge=1)
    ckpt_interval_minutes: OptionalFloat = key(None, "minutes between two resume states", gt=0)
    on_save_error: choice("continue", "stop") = key("continue", "when a file cannot be written")
    resume: OptionalText = key(None, "go on: newest (a bare --resume), a run folder or a state file", bare="newest")
    resume_force: Flag = key(False, "resume although schedule, data or batch differ")


class ExportKeys(BaseModel):
    """Export and Ascend 310"""

    ckpt_file: OptionalText = key(None, "checkpoint to export")
    file_name: Text = key("vgg16", "name of the exported files, without their ending")
    file_format: choices("MINDIR", "AIR", "ONNX") = key(("MINDIR",), "one format or several, such as MINDIR,ONNX")
    export_batch_size: int = key(1, "images that the exported model takes at a time", ge=1)
    dynamic_batch: Flag = key(False, "let an ONNX file take any number of images at a time")
    parity_check: Flag = key(True, "load each exported file again and compare its answers with the network's")
    dataset_name: choice(*DATASETS) = key("cifar10", "data set of preprocess.py and postprocess.py")
    result_path: Text = key("./preprocess_Result/", "where preprocess.py writes")
    result_dir: OptionalText = key(None, "result files: infer.py writes them here, postprocess.py reads them")
    time_dir: OptionalText = key(None, "where infer.py writes how long the model took")
    label_dir: OptionalText = key(None, "labels that postprocess.py reads")


class InferKeys(BaseModel):
    """Inference"""

    model_config = ConfigDict(protected_namespaces=())

    model_path: OptionalText = key(None, "exported model (.mindir or .onnx), or a checkpoint")
    input: OptionalText = key(None, "image, folder of them, list of them (.txt), or folder of prepared .bin files")
    engine: choice("auto", "lite", "mindspore", "onnxruntime") = key("auto", "what runs it; auto goes by its format")
    top: int = key(5, "how many classes are named for each image", ge=1)
    save: OptionalText = key(None, "write the predictions here, as .csv or .json")
    annotate: OptionalText = key(None, "folder for the images with their predictions drawn in")


class ModelArtsKeys(BaseModel):
    """ModelArts"""

    enable_modelarts: Flag = key(False, "copy data in and results out")
    data_url: OptionalText = key(None, "where the data lies")
    train_url: OptionalText = key(None, "where the results go")
    checkpoint_url: OptionalText = key(None, "where the checkpoint lies")
    data_path: Text = key("/cache/data", "local folder of the data (YAML only)")
    output_path: Text = key("/cache/train", "local folder of the results")
    load_path: Text = key("/cache/checkpoint_path", "local folder of the checkpoint")
    need_modelarts_dataset_unzip: Flag = key(True, "the data is a zip file")
    modelarts_dataset_unzip_name: OptionalText = key(None, "its name without .zip")


GROUPS = (RunKeys, DeviceKeys, DataKeys, NetworkKeys, ScheduleKeys, LossKeys, OutputKeys, ExportKeys, InferKeys,
          ModelArtsKeys)


class Config(*reversed(GROUPS)):  # reversed: the fields then stand in the order of the groups
    """One run, as data: complete, checked and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reading of the files wants said once the log is open."""
        return self._notes

    def origin(self, name: str) -> str:
        """Where the value of a key came from: a flag, 'file:line' or 'default'."""
        return self._origins.get(name, "default")

    def is_flag(self, name: str) -> bool:
        return self.origin(name).startswith("-")

    def taking(self, values: dict[str, Any], origin: str) -> "Config":
        """The same run with these values, which are known to be allowed and came from `origin`."""
        taken = self.model_copy(update=values)
        taken._origins = self._origins | dict.fromkeys(values, origin)
        return taken

    def giving_way(self, values: dict[str, Any], owner: str) -> tuple["Config", list[str]]:
        """This Config with what a model says of itself, and what the recipe had said differently, to be reported.

        UserError where a flag says something else.
        """
        changed = {name: value for name, value in values.items() if getattr(self, name) != value}
        for name, value in changed.items():
            if self.is_flag(name):
                raise UserError(f"{name}: {self.origin(name)} says {_shown(getattr(self, name))}, but {owner} has "
                                  f"{_shown(value)}; give --{name}={_shown(value)}, or leave the flag out")
        said = [f"{name}={_shown(value)} (not {_shown(getattr(self, name))}, {self.origin(name)})"
                for name, value in changed.items() if getattr(self, name) not in (None, ())]
        return self.taking(changed, owner), said

    @model_validator(mode="before")
    @classmethod
    def _no_words_for_numbers(cls, values: dict[str, Any]) -> dict[str, Any]:
        """YAML makes True of `yes` and `on`, and Python 1 of True."""
        for name, value in values.items():
            if isinstance(value, bool) and cls.model_fields[name].annotation in NUMBERS:
                raise ValueError(f"{name}: must be a number")
        return values

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ValueError(f"{name}: must have three values, R,G,B")
        if not all(0 <= value <= 1 for value in self.image_mean):
            raise ValueError("image_mean: must be on the scale 0 to 1")
        if not all(0 < value <= 1 for value in self.image_std):
            raise ValueError("image_std: must be positive and on the scale 0 to 1")
        for name, largest in (("scale", 1.0), ("ratio", float("inf"))):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] <= largest or limits[1] == float("inf"):
                raise ValueError(f"{name}: must be two positive values, the smaller first"
                                 + (", at most 1" if largest == 1 else ""))
        if self.cutout > min(self.image_size):
            raise ValueError(f"cutout: must be at most the {min(self.image_size)} pixels of image_size")
        if list(self.lr_epochs) != sorted(self.lr_epochs) or any(epoch < 1 for epoch in self.lr_epochs):
            raise ValueError("lr_epochs: must be epochs in ascending order, such as 30,60,90")
        if self.log_name in FILES_OF_A_RUN or FOLDERS_OF_A_RUN.fullmatch(self.log_name):
            raise ValueError("log_name: is the name of something else in the run folder")
        if self.pad_mode == "pad" and self.padding not in (None, 1):
            raise ValueError("padding: must be 1 with pad_mode=pad, where a 3x3 convolution keeps the image's size")
        return self

    @property
    def photos(self) -> bool:
        return DATASETS[self.dataset].photos

    @property
    def preset(self) -> Preset:
        mean, std = DATASETS[self.dataset].statistics
        return Preset(self.image_size, self.image_mean or mean, self.image_std or std, self.crop_pct,
                      self.interpolation)

    @property
    def eval_batch_size(self) -> int:
        return self.per_batch_size or self.batch_size

    @property
    def effective_padding(self) -> int:
        """Padding in pixels: unset means what keeps a 3x3 convolution's size."""
        if self.pad_mode == "same":
            return 0
        return 1 if self.padding is None else self.padding

    @property
    def effective_dropout(self) -> float:
        return self.dropout_rate if self.has_dropout else 0.0

    @property
    def smoothing(self) -> float:
        return self.label_smooth_factor if self.label_smooth else 0.0

    @property
    def schedule(self) -> str:
        return "exponential" if self.lr_scheduler == "multi_step" else self.lr_scheduler
