# SPDX-License-Identifier: Apache-2.0
"""Every key of the project: its type, range, default and help, in groups; and which command reads it."""

import re
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from model_utils.errors import UserError

NETWORKS = {  # -> convolutions in each of the five stages
    "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class DataSet(NamedTuple):
    """What the images of a data set are like, and the formats in which dataset_format=auto looks for them."""

    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, R,G,B on the scale 0 to 1
    photos: bool  # of any size, cropped; False: small images of one size
    formats: tuple[str, ...] = ()  # none: the images are generated


PHOTOS = DataSet(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), photos=True,  # ImageNet's statistics
                 formats=("folder", "list", "tfrecord", "mindrecord"))
DATASETS = {
    "cifar10": DataSet(((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), photos=False,
                       formats=("cifar10", "list", "tfrecord", "mindrecord")),
    "cifar100": DataSet(((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), photos=False,
                        formats=("cifar100", "list", "tfrecord", "mindrecord")),
    "photos": PHOTOS, "imagenet2012": PHOTOS,
    "synthetic": DataSet(((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), photos=False),
}
SMALL = (32, 32)  # the size of images that are no photos
# -> their names in OpenCV and MindData; antialias is Pillow's bilinear filter, and area in MindData's random crops
INTERPOLATIONS = {"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST", "area": "AREA", "antialias": "AREA"}
NAMES_IN_RUN_FOLDER = re.compile(
    r"(config\.yaml|val_list\.txt|metrics\.csv|curves\.png|run\.lock|best\.ckpt|resume|profile|ckpt_\d+)")
MOST_EPOCHS = 100_000  # the learning rate of each of their steps is computed in advance
LEAST_STD = 1e-6  # of a standard deviation, by which pixels are divided
MOST_ITEMS = 1000  # of a list
MOST_SIDE, MOST_BATCH, MOST_DRAWN = 4096, 2**16, 10**6
MOST_CLASSES = 10**6
MOST_UNITS = 2**16
LARGEST = 1e30  # of all numbers with a fraction
NOTHING_WORDS = ("", "none", "null")


class Preset(NamedTuple):
    """How images become the network's input, apart from the random part."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875  # share of a photo's short side that the evaluation crop keeps
    interpolation: str = "bilinear"
    resize_mode: str = "short_side"

    @property
    def short_side(self) -> int:
        """The short side of a photo before the evaluation crop."""
        return round(max(self.image_size) / self.crop_pct)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a photo of this size is resized before the evaluation crop."""
        if self.resize_mode == "squash":
            return round(self.image_size[0] / self.crop_pct), round(self.image_size[1] / self.crop_pct)
        short = min(height, width)
        return self.short_side * height // short, self.short_side * width // short  # rounded down, as torchvision does

    @property
    def scaled(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation on the scale 0 to 255, that of the pixels."""
        return [255.0 * value for value in self.mean], [255.0 * value for value in self.std]


def parse_flag(value: Any) -> bool:
    """True or False in every spelling that pydantic knows (true, 1, yes, on and so on); else ValueError."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise ValueError("must be True or False") from None


def _height_and_width(sides: tuple[int, ...]) -> tuple[int, ...]:
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or any(not 32 <= side <= MOST_SIDE or side % 32 for side in sides):
        raise ValueError(f"must be one or two multiples of 32 up to {MOST_SIDE} (height,width), such as 224,224: "
                         "the network halves the image five times")
    return sides


def _auto_augment(name: str) -> str:
    """A policy in the form of timm and MindCV; `src/dataset.py` reads the numbers in it."""
    name = re.sub("^rand(?=-|$)", "randaug", name.strip().lower())
    if not re.fullmatch(r"trivial|autoaug(-mstd[\d.]+)?|randaug(-(m(\d|10)|n2|mstd[\d.]+|inc1))*", name):
        raise ValueError("must be none, trivial, autoaug, randaug, or randaug with a magnitude from 0 to 10 and two "
                         "operations, such as randaug-m9-n2")
    return name


ImageSize = Annotated[tuple[int, ...], AfterValidator(_height_and_width)]
AutoAugment = Annotated[str, AfterValidator(_auto_augment)]
Formats = Annotated[tuple[Literal["MINDIR", "AIR", "ONNX"], ...],
                    AfterValidator(lambda names: tuple(dict.fromkeys(names)))]
ClassWeight = Literal["none", "balanced"] | float
Share = Annotated[float, Field(ge=0, le=1)]
LossScale = Annotated[float, Field(gt=0)] | Literal["dynamic"]


def key(default: Any, help_text: str, *, bare: str | None = None, resume: Literal["fixed", "force"] | None = None,
        needs: str | None = None, **limits: Any) -> Any:
    """A key of the project.

    bare: what its flag means without a value.
    resume: "fixed" if a resumed run cannot change it, "force" if only with resume_force; None if it is free to.
    needs: KEY, KEY|KEY, KEY=VALUE or KEY=VALUE|VALUE: the setting without which the flag has no effect.
    """
    return Field(default, description=help_text, json_schema_extra={"bare": bare, "resume": resume, "needs": needs},
                 **limits)


def parts_of(kind: Any) -> tuple[Any, ...]:
    """The types and words that a type is made of: (int, NoneType) of `int | None`, ("a", "b") of Literal["a", "b"]."""
    parts = get_args(kind)
    if not parts or get_origin(kind) is Literal:
        return parts or (kind,)
    return tuple(part for item in parts for part in parts_of(item))


def choices_of(kind: Any) -> list[str]:
    """The words that a type allows."""
    return [part for part in parts_of(kind) if isinstance(part, str)]


class Keys(BaseModel):
    """A group of keys"""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True,
                              allow_inf_nan=False, defer_build=True)  # --help needs no validator, and a run only one

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A value as YAML files and command lines hold it -> as pydantic reads it."""
        kind = cls.model_fields[info.field_name].annotation
        parts = parts_of(kind)
        by_lower_case = {choice.lower(): choice for choice in choices_of(kind)}  # choices ignore case
        if isinstance(value, bool) and (int in parts or float in parts):
            raise ValueError("must be a number")  # YAML makes True of `yes` and `on`, and Python 1 of True
        if NoneType in parts and isinstance(value, str) and value.strip().lower() in NOTHING_WORDS:
            return None
        if get_origin(kind) is not tuple:
            return by_lower_case.get(str(value).strip().lower(), value)
        if isinstance(value, str):  # a list as text, with or without brackets
            value = [item for item in value.strip("[]() ").split(",") if item]
        items = value if isinstance(value, (list, tuple)) else [value]
        if len(items) > MOST_ITEMS:
            raise ValueError(f"must have at most {MOST_ITEMS} values")
        return [by_lower_case.get(str(item).strip().lower(), item) for item in items]

    @field_validator("*")
    @classmethod
    def _of_ordinary_size(cls, value: Any) -> Any:
        """No number that MindSpore's 32-bit types cannot hold, even for keys without a limit of their own."""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and not -2**31 < item < 2**31:
                raise ValueError(f"must be at most {2**31 - 1}")
            if isinstance(item, float) and item and not 1 / LARGEST <= abs(item) <= LARGEST:
                raise ValueError(f"must be 0, or at least {1 / LARGEST:g} and at most {LARGEST:g}")
        return value


class RunKeys(Keys):
    """What to do"""

    mode: Literal["train", "evaluate", "train_and_evaluate"] = key("train", "what train.py does")
    log_interval: int = key(100, "steps between two loss lines", ge=1)
    training_step_per_epoch: int = key(-1, "steps of a training epoch; -1 takes all of the data")
    eval_step_per_epoch: int = key(-1, "batches of an evaluation on each device; -1 takes every image")
    max_train_steps: int | None = key(None, "stop after N steps; the learning rates stay those of max_epoch", ge=1)
    dry_run: bool = key(False, "try it: a few steps, evaluate, save, resume; keeps no files, prints time and memory",
                        needs="mode=train|train_and_evaluate")
    profile: int = key(0, "steps that MindSpore's profiler records, after the first two; 0 is off", ge=0, le=10**4,
                       needs="mode=train|train_and_evaluate")
    skip_steps: int = key(1, "first N steps, which the throughput line at the end leaves out", ge=0)
    epochs_between_evals: int = key(1, "epochs between two evaluations in train_and_evaluate", ge=1)
    patience: int = key(0, "stop after N epochs without a better validation accuracy; 0 is off", ge=0,
                        needs="mode=train_and_evaluate")
    log_name: str = key("train.log", "name of rank 0's log in the run folder", pattern=r"^[^/\\.][^/\\]*$")


class DeviceKeys(Keys):
    """Where it runs"""

    device_target: Literal["auto", "Ascend", "GPU", "CPU"] = key("auto", "auto takes Ascend, then GPU, then CPU")
    device_id: int | None = key(None, "which card; the launcher's choice, else 0", ge=0)
    rank_size: int | None = key(None, "how many ranks the job must have; checked", ge=1)
    is_distributed: bool = key(False, "this process is one rank of a job started by msrun or a rank table")
    graph_mode: bool = key(True, "compile the network; False runs it op by op (PyNative)")
    jit_level: Literal["auto", "O0", "O1", "O2"] = key(
        "auto", "how MindSpore compiles; auto is O2 on Ascend (as always with a rank table), else MindSpore's own")
    deterministic: bool = key(False, "operations of Ascend and GPU that repeat exactly, and are slower")
    amp_level: Literal["auto", "O0", "O1", "O2", "O3"] = key(
        "auto", "auto is O2 on Ascend and GPU, O0 on CPU", resume="force")
    num_parallel_workers: int | None = key(None, "data workers of a rank; never more than its cores", ge=1)
    dataset_sink_mode: Literal["auto"] | bool = key(
        "auto", "hand many steps to the device at a time; auto does so on Ascend and GPU", bare="True")
    sink_size: int = key(-1, "steps per sink, at most; -1 is about log_interval", ge=-1)


class DataKeys(Keys):
    """Data"""

    dataset: Literal[tuple(DATASETS)] = key("cifar10", "data set: layout and transforms", resume="force")
    data_dir: str | None = key(None, "folder of the images")
    dataset_format: Literal["auto", "cifar10", "cifar100", "folder", "list", "tfrecord", "mindrecord"] = key(
        "auto", "how its images are stored; auto detects it and logs it")
    cifar100_labels: Literal["fine", "coarse"] = key("fine", "which labels of CIFAR-100: 100 or 20 classes",
                                                     needs="dataset=cifar100", resume="fixed")
    tfrecord_first_label: int = key(1, "number of the first class in TFRecord shards", ge=0, le=1)
    on_bad_image: Literal["error", "replace", "skip"] = key(
        "error", "an unreadable image ends the run, is replaced by another, or is skipped (one rank)", resume="force")
    val_split: float = key(0.0, "share of the training images kept for validation, if there are no others for it",
                           ge=0, lt=1, resume="fixed")
    num_classes: int = key(10, "number of classes; that of the data with dataset=photos", ge=2, le=MOST_CLASSES,
                           resume="fixed")
    batch_size: int = key(64, "images per step on each device", ge=1, le=MOST_BATCH)
    per_batch_size: int | None = key(None, "images per evaluation step; batch_size unless given", ge=1, le=MOST_BATCH)
    seed: int = key(1, "seed of val_split, weights, sample order, augmentation and dropout", ge=0, lt=2**31,
                    resume="force")
    buffer_size: int = key(10, "no effect: the shuffle is always that of a whole epoch", ge=1)
    synthetic_train_images: int = key(5000, "size of the generated training set", ge=1, le=MOST_DRAWN)
    synthetic_test_images: int = key(1000, "size of the generated test set", ge=1, le=MOST_DRAWN)


class AugmentKeys(Keys):
    """Augmentation of the training images"""

    augment: bool = key(True, "random crops and flips in training", resume="force")
    scale: tuple[float, ...] = key((0.08, 1.0), "smallest,largest share of a photo's area in a random crop",
                                   needs="dataset=photos|imagenet2012", resume="force")
    ratio: tuple[float, ...] = key((3 / 4, 4 / 3), "smallest,largest width over height of a random crop",
                                   needs="dataset=photos|imagenet2012", resume="force")
    crop_padding: int = key(4, "pixels by which small images are padded before a random crop", ge=0, le=16,
                            needs="dataset=cifar10|cifar100|synthetic", resume="force")
    crop_border: Literal["black", "reflect"] = key("black", "what that padding shows", resume="force",
                                                   needs="dataset=cifar10|cifar100|synthetic")
    hflip: Share | Literal["alternate"] = key(
        0.5, "probability of a flip; alternate: flip each image in every other epoch", needs="augment=True",
        resume="force")
    cutout: int = key(0, "side in pixels of a black square; 0 is off", ge=0, needs="augment=True", resume="force")
    auto_augment: AutoAugment | None = key(None, "policy of random changes: trivial, autoaug or randaug, which is "
                                           "randaug-m10-n2", needs="augment=True", resume="force")
    color_jitter: tuple[float, ...] = key(
        (0.0,), "largest change of brightness, contrast and saturation: one number, or three; a fourth is for hue; "
        "0 is off; ignored with auto_augment", needs="augment=True", resume="force")
    re_prob: float = key(0.0, "probability that a random rectangle of an image is erased", ge=0, le=1,
                         needs="augment=True", resume="force")
    mixup: float = key(0.0, "alpha of mixup; 0 is off", ge=0, le=1000,
                       needs="augment=True", resume="force")
    cutmix: float = key(0.0, "alpha of CutMix; 0 is off; with mixup, each in half of the batches", ge=0,
                        le=1000, needs="augment=True", resume="force")
    mixup_prob: float = key(1.0, "probability that a batch is mixed by mixup or cutmix", ge=0, le=1,
                            needs="mixup|cutmix", resume="force")


class ImageKeys(Keys):
    """Images"""

    image_size: ImageSize = key((224, 224), "height,width; one number is a square", resume="fixed")
    image_mean: tuple[float, ...] = key((), "R,G,B on the scale 0 to 1; the data set's unless given", resume="force")
    image_std: tuple[float, ...] = key((), "standard deviation of R,G,B on the same scale", resume="force")
    interpolation: Literal[tuple(INTERPOLATIONS)] = key("bilinear", "how images are resized", resume="force")
    resize_mode: Literal["short_side", "squash"] = key(
        "short_side", "photos in an evaluation: short_side keeps their proportions, squash makes them square, as the "
        "model zoo does", needs="dataset=photos|imagenet2012", resume="force")
    crop_pct: float = key(0.875, "share of a photo's short side in the evaluation crop", ge=0.1, le=1, resume="force")


class NetworkKeys(Keys):
    """Network"""

    network: Literal[tuple(NETWORKS)] = key("vgg16", "VGG of this depth; vgg16_bn also sets batch_norm", resume="fixed")
    batch_norm: bool = key(True, "batch normalisation after each convolution", resume="fixed")
    has_bias: bool = key(False, "bias in the convolutions", resume="fixed")
    has_dropout: bool = key(True, "dropout in the classifier", resume="force")
    dropout_rate: float = key(0.5, "share of units dropped", ge=0, lt=1, needs="has_dropout=True", resume="force")
    pad_mode: Literal["same", "pad"] = key("same", "no effect: convolutions keep the image's size", resume="force")
    padding: int | None = key(None, "no effect either; must be 1 with pad_mode=pad", ge=0, resume="force")
    initialize_mode: Literal["XavierUniform", "KaimingNormal", "Dirac"] = key("XavierUniform", "initial weights")
    include_top: bool = key(True, "False: features instead of classes, for export and infer", resume="fixed")
    width: float = key(1.0, "factor on all channel counts, for small machines and tests", gt=0, le=4, resume="fixed")
    hidden_units: int = key(4096, "units of each hidden dense layer, at width 1; 0 leaves these layers out", ge=0,
                            le=MOST_UNITS, resume="fixed")
    average_pool: bool = key(False, "pool the last feature map to 7x7, for any image size", resume="fixed")
    pre_trained: str | None = key(None, "weights to start from or to evaluate: .ckpt, .safetensors, .pth or .pt of "
                                  "this project, the model zoo, MindCV, torchvision or timm, or a name such as "
                                  "torchvision:vgg16_bn", resume="force")
    pre_trained_strict: bool = key(True, "False: train even if pre_trained lacks more than the head")
    freeze: str | None = key(None, "frozen: features, classifier, or patterns such as layers.[0-9].*", resume="fixed")


class ScheduleKeys(Keys):
    """Learning rate"""

    max_epoch: int = key(70, "epochs", ge=1, le=MOST_EPOCHS)
    lr_scheduler: Literal["step", "exponential", "multi_step", "cosine_annealing"] = key(
        "step", "how the learning rate falls: quadratically, at lr_epochs (exponential, multi_step) or as a cosine",
        resume="force")
    lr: float = key(0.01, "peak rate; with lr_scheduler=step the flag sets lr_max", gt=0, resume="force")
    lr_init: float = key(0.01, "rate at the start of the warm-up", ge=0, needs="lr_scheduler=step", resume="force")
    lr_max: float = key(0.1, "rate after the warm-up", gt=0, needs="lr_scheduler=step", resume="force")
    lr_epochs: tuple[int, ...] = key((30, 60, 90, 120), "epochs at which lr_gamma multiplies the rate",
                                     needs="lr_scheduler=exponential|multi_step", resume="force")
    lr_gamma: float = key(0.1, "factor at each of lr_epochs", gt=0, le=1,
                          needs="lr_scheduler=exponential|multi_step", resume="force")
    eta_min: float = key(0.0, "end of the cosine", ge=0, needs="lr_scheduler=cosine_annealing", resume="force")
    T_max: int | None = key(None, "epochs of the cosine; max_epoch unless given", ge=1,
                            needs="lr_scheduler=cosine_annealing", resume="force")
    lr_step_unit: Literal["epoch", "step"] = key("epoch", "how often the cosine falls",
                                                 needs="lr_scheduler=cosine_annealing", resume="force")
    lr_scale: Literal["none", "linear"] = key("none", "linear: rates times global batch / lr_base_batch",
                                               resume="force")
    lr_base_batch: int = key(64, "global batch of these rates: batch_size x devices x accumulated steps", ge=1,
                             needs="lr_scale=linear", resume="force")
    warmup_epochs: float = key(5.0, "epochs of linear warm-up; 0 is off", ge=0, le=MOST_EPOCHS, resume="force")


class LossKeys(Keys):
    """Loss and optimizer"""

    opt: Literal["momentum", "sgd", "adamw"] = key("momentum", "optimizer; sgd is momentum", resume="fixed")
    momentum: float = key(0.9, "momentum", ge=0, lt=1, needs="opt=momentum|sgd", resume="force")
    use_nesterov: bool = key(False, "Nesterov momentum", needs="opt=momentum|sgd", resume="force")
    clip_grad_norm: float = key(0.0, "largest norm of all gradients together; 0 is no limit", ge=0, resume="force")
    gradient_accumulation_steps: int = key(1, "steps whose mean gradient makes one change of the weights", ge=1,
                                           le=MOST_BATCH, resume="fixed")
    ema_decay: float = key(0.0, "decay of the moving average (EMA) of the weights, which is evaluated and saved; "
                           "0.999, for example; 0 is off", ge=0, lt=1, resume="fixed")
    head_lr_multiplier: float = key(1.0, "factor on the learning rate of the last layer", gt=0, resume="force")
    weight_decay: float = key(5e-4, "on convolution and dense weights only", ge=0, resume="force")
    loss_scale: LossScale = key(1.0, "fixed factor, or dynamic (Ascend and GPU)", resume="force")
    label_smooth: bool = key(False, "smooth the labels", needs="label_smooth_factor", resume="force")
    label_smooth_factor: float = key(0.0, "probability taken from the label", ge=0, lt=1,
                                     needs="label_smooth=True", resume="force")
    class_weights: tuple[ClassWeight, ...] = key(
        ("none",), "factors of the classes in the loss, such as 1,1,2; balanced: all classes count alike",
        resume="force")


class OutputKeys(Keys):
    """Run folder and checkpoints"""

    ckpt_path: str = key("outputs/", "root of the run folders")
    ckpt_interval: int = key(5, "epochs between two checkpoints", ge=1)
    tensorboard: bool = key(False, "write losses, rates and accuracies for TensorBoard to the run folder")
    keep_checkpoint_max: int = key(10, "number of checkpoints that are kept", ge=1)
    is_save_on_master: bool = key(True, "only rank 0 saves checkpoints")
    ckpt_interval_steps: int | None = key(None, "steps between two resume states, besides those of the epochs", ge=1)
    ckpt_interval_minutes: float | None = key(None, "minutes between two resume states", gt=0)
    on_save_error: Literal["continue", "stop"] = key("continue", "what to do if a file cannot be written")
    resume: str | None = key(None, "continue: newest (a bare --resume), a run folder or a state file", bare="newest")
    resume_force: bool = key(False, "resume even if schedule, data or batch differ", needs="resume")


class ExportKeys(Keys):
    """Export"""

    ckpt_file: str | None = key(None, "checkpoint to export; file or name, as in pre_trained")
    file_name: str | None = key(None, "exported files, without ending; else the network's name, beside the checkpoint")
    file_format: Formats = key(("MINDIR",), "one format or several, such as MINDIR,ONNX", min_length=1)
    export_batch_size: int = key(1, "images that the exported model takes at a time", ge=1, le=MOST_SIDE)
    dynamic_batch: bool = key(False, "let an ONNX file take any number of images at a time")
    parity_check: bool = key(True, "load each exported file again and compare its answers with the network's")


class PreparedKeys(Keys):
    """Inference on Ascend 310"""

    dataset_name: Literal[tuple(DATASETS)] = key("cifar10", "data set of preprocess.py and postprocess.py")
    result_path: str = key("./preprocess_Result/", "where preprocess.py writes")
    result_dir: str | None = key(None, "result files: infer.py writes them here, postprocess.py reads them")
    time_dir: str | None = key(None, "where infer.py writes how long the model took")
    label_dir: str | None = key(None, "labels that postprocess.py reads")


class InferKeys(Keys):
    """Inference"""

    model_path: str | None = key(None, "exported model (.mindir or .onnx), or a checkpoint as in pre_trained")
    input: str | None = key(None, "image, folder of images, list of images (.txt), or folder of prepared .bin files")
    engine: Literal["auto", "lite", "mindspore", "onnxruntime"] = key("auto", "what runs it; auto goes by its format")
    top: int = key(5, "number of classes named for each image", ge=1)
    save: str | None = key(None, "write the predictions here, as .csv or .json")
    annotate: str | None = key(None, "folder for the images with their predictions drawn on them")
    explain: bool = key(False, "draw a Grad-CAM heat map of the predicted class beside each image, in the folder of "
                               "annotate or else in ./predictions; for checkpoints")


class ModelArtsKeys(Keys):
    """ModelArts"""

    enable_modelarts: bool = key(False, "copy data in and results out")
    data_url: str | None = key(None, "URL of the data")
    train_url: str | None = key(None, "URL that the results are copied to")
    checkpoint_url: str | None = key(None, "URL of the checkpoint")
    data_path: str = key("/cache/data", "local folder of the data (YAML only)")
    output_path: str = key("/cache/train", "local folder of the results")
    load_path: str = key("/cache/checkpoint_path", "local folder of the checkpoint")
    need_modelarts_dataset_unzip: bool = key(True, "the data is a zip file")
    modelarts_dataset_unzip_name: str | None = key(None, "its name without .zip")


GROUPS = (RunKeys, DeviceKeys, DataKeys, ImageKeys, AugmentKeys, NetworkKeys, ScheduleKeys, LossKeys, OutputKeys,
          ExportKeys, InferKeys, PreparedKeys, ModelArtsKeys)
# What a command does, the keys that its --help shows, and the groups of which it reads the others as well. All commands
# take all keys, so that one recipe serves them.
PROGRAMS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "train.py": (
        "Train a network on the images of --data_dir; leaves a run folder in --ckpt_path.",
        "data_dir dataset val_split num_classes network pre_trained image_size batch_size max_epoch opt lr_scheduler "
        "lr warmup_epochs weight_decay auto_augment mode patience seed device_target amp_level is_distributed "
        "ckpt_path resume dry_run",
        (RunKeys, DeviceKeys, DataKeys, ImageKeys, AugmentKeys, NetworkKeys, ScheduleKeys, LossKeys, OutputKeys)),
    "eval.py": (
        "Count how many test images of --data_dir the checkpoints of --pre_trained get right.",
        "pre_trained data_dir dataset dataset_format num_classes network image_size batch_size per_batch_size "
        "interpolation resize_mode crop_pct on_bad_image eval_step_per_epoch device_target device_id "
        "num_parallel_workers is_distributed ckpt_path",
        (DeviceKeys, DataKeys, ImageKeys, NetworkKeys)),
    "export.py": (
        "Write the network of --ckpt_file as --file_name, in the formats of --file_format.",
        "ckpt_file file_name file_format export_batch_size dynamic_batch parity_check network num_classes image_size "
        "dataset device_target",
        (DeviceKeys, ImageKeys, NetworkKeys, ExportKeys)),
    "infer.py": (
        "Classify the images of --input, or the test set in --data_dir, with the model of --model_path.",
        "model_path input data_dir dataset top save annotate explain engine result_dir time_dir export_batch_size "
        "num_classes image_size device_target device_id num_parallel_workers",
        (DeviceKeys, DataKeys, ImageKeys, NetworkKeys, InferKeys)),
    "preprocess.py": (
        "Turn the test set of --data_dir into the inputs and labels of an inference on Ascend 310.",
        "data_dir dataset_name dataset model_path result_path batch_size per_batch_size network",
        (DataKeys, ImageKeys)),
    "postprocess.py": (
        "Count how many results of an inference are right: those in --result_dir.",
        "result_dir label_dir result_path dataset_name dataset model_path num_classes", ()),
}
# Keys of these groups that other commands than train.py read only if they are named above.
TRAINING = ("amp_level dataset_sink_mode sink_size on_bad_image batch_size per_batch_size buffer_size initialize_mode "
            "synthetic_train_images has_dropout dropout_rate pre_trained pre_trained_strict freeze")


def keys_for_resume(kind: Literal["fixed", "force"]) -> tuple[str, ...]:
    """The keys that a resumed run cannot change ("fixed"), or only with resume_force ("force")."""
    return tuple(name for name, field in Config.model_fields.items() if field.json_schema_extra["resume"] == kind)


def shown(value: Any) -> str:
    """A value as it is written after a flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short(value: Any) -> str:
    """The same for people: numbers with few digits, and nothing for no value."""
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)


class Config(*reversed(GROUPS)):  # reversed, so that the fields are in the order of the groups
    """One run, as data: complete, checked and frozen."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _has_own_recipe: bool = PrivateAttr(default=False)  # rather than the one that a data set has

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about how files and flags were read, to be logged once the log is open."""
        return self._notes

    def origin(self, name: str) -> str:
        """Where the value of a key came from: a flag, 'file:line' or 'default'."""
        return self._origins.get(name, "default")

    def is_flag(self, name: str) -> bool:
        return self.origin(name).startswith("-")

    def is_given(self, name: str) -> bool:
        """Whether a flag or the user's own recipe sets this key."""
        return self.is_flag(name) or self._has_own_recipe and self.origin(name) != "default"

    def taking(self, values: dict[str, Any], origin: str) -> "Config":
        """The same run with these values, which are known to be valid and came from `origin`."""
        taken = self.model_copy(update=values)
        taken._origins = self._origins | dict.fromkeys(values, origin)
        return taken

    def giving_way(self, values: dict[str, Any], owner: str) -> tuple["Config", list[str]]:
        """This Config with what a model says of itself, and what the user's recipe says differently, to be reported.

        UserError if a flag says something else.
        """
        changed = {name: value for name, value in values.items() if getattr(self, name) != value}
        for name, value in changed.items():
            if self.is_flag(name):
                raise UserError(f"{name}: {self.origin(name)} says {shown(getattr(self, name))}, but {owner} has "
                                f"{shown(value)}; give --{name}={shown(value)}, or leave the flag out")
        said = [f"{name}={shown(value)} (not {shown(getattr(self, name))}, {self.origin(name)})"
                for name, value in changed.items() if getattr(self, name) not in (None, ())
                and self.is_given(name)]
        return self.taking(values, owner), said

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        for name in ("training_step_per_epoch", "eval_step_per_epoch"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ValueError(f"{name}: must be a positive number of steps, or -1 for all")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ValueError(f"{name}: must have three values, R,G,B")
        if not all(0 <= value <= 1 for value in self.image_mean):
            raise ValueError("image_mean: must be on the scale 0 to 1")
        if not all(LEAST_STD <= value <= 1 for value in self.image_std):
            raise ValueError("image_std: must be positive and on the scale 0 to 1")
        for name in ("scale", "ratio"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] or name == "scale" and limits[1] > 1:
                raise ValueError(f"{name}: must be two positive values, the smaller first (scale: at most 1)")
        if self.cutout > min(self.image_size):
            raise ValueError(f"cutout: must be at most the {min(self.image_size)} pixels of image_size")
        jitter = self.color_jitter
        if len(jitter) not in (1, 3, 4) or min(jitter) < 0 or max(jitter) > 1 or len(jitter) == 4 and jitter[3] > 0.5:
            raise ValueError("color_jitter: must be one, three or four numbers from 0 to 1 (the fourth, hue, to 0.5), "
                             "such as 0.4")
        if list(self.lr_epochs) != sorted(self.lr_epochs) or any(epoch < 1 for epoch in self.lr_epochs):
            raise ValueError("lr_epochs: must be epochs in ascending order, such as 30,60,90")
        if NAMES_IN_RUN_FOLDER.fullmatch(self.log_name):
            raise ValueError("log_name: is the name of another file or folder in the run folder")
        words = [word for word in self.class_weights if isinstance(word, str)]
        count = 1 if words else self.known_classes or len(self.class_weights)  # of the data: build_loss compares it
        if len(self.class_weights) != count or not words and min(self.class_weights, default=0) <= 0:
            raise ValueError(f"class_weights: must be none, balanced, or {self.known_classes or 'as many'} factors "
                             "(num_classes) above 0")
        if self.pad_mode == "pad" and self.padding not in (None, 1):
            raise ValueError("padding: must be 1 with pad_mode=pad, so that a 3x3 convolution keeps the image's size")
        return self

    @property
    def photos(self) -> bool:
        return DATASETS[self.dataset].photos

    @property
    def known_classes(self) -> int | None:
        """`num_classes`; None if the data decides it."""
        return None if self.dataset == "photos" and "num_classes" not in self.model_fields_set else self.num_classes

    @property
    def preset(self) -> Preset:
        mean, std = DATASETS[self.dataset].statistics
        return Preset(self.image_size, self.image_mean or mean, self.image_std or std, self.crop_pct,
                      self.interpolation, self.resize_mode)

    @property
    def eval_batch_size(self) -> int:
        return self.per_batch_size or self.batch_size

    @property
    def effective_dropout(self) -> float:
        return self.dropout_rate if self.has_dropout else 0.0

    @property
    def smoothing(self) -> float:
        return self.label_smooth_factor if self.label_smooth else 0.0

    @property
    def schedule(self) -> str:
        return "exponential" if self.lr_scheduler == "multi_step" else self.lr_scheduler


TYPES = {"dir": "DIR", "path": "DIR", "file": "FILE", "url": "URL", "pre_trained": "FILE", "resume": "DIR",
         "file_name": "FILE", "label_dir": "FILE", "model_path": "FILE", "input": "PATH", "save": "FILE",
         "annotate": "DIR"}  # of texts, by the name of the key or its last word


def type_of(name: str) -> str:
    """The values of a key as `--help` shows them: INT, DIR, {auto,CPU} and so on."""
    kind = Config.model_fields[name].annotation
    parts, words = parts_of(kind), choices_of(kind)
    if {*parts} <= {*words, NoneType, ...}:
        return f"{{{','.join(words)}}}"
    if get_origin(kind) is tuple:
        return "LIST"
    number = next((part.__name__.upper() for part in (bool, int, float) if part in parts), None)
    return number or TYPES.get(name) or TYPES.get(name.rpartition("_")[2], "TEXT")


def keys_of(program: str) -> list[str]:
    """The keys that a command reads, in the order of the schema. Scripts that are not in the table may read any."""
    _, common, groups = PROGRAMS.get(program, ("", "", GROUPS))
    read = {name for group in (*groups, ModelArtsKeys) for name in group.model_fields}
    read -= {*TRAINING.split()} if program in PROGRAMS and program != "train.py" else set()
    return [name for name in Config.model_fields if name in read.union(common.split())]
