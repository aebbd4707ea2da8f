# SPDX-License-Identifier: Apache-2.0
"""YAML and command line -> one frozen Config. Everything that people may call a key by is decided here."""

import difflib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from model_utils import local_adapter
from model_utils.dialects import is_mindcv, label_smoothing, translate
from model_utils.errors import UserError
from model_utils.flags import OtherName, parse_flags
from model_utils.schema import DATASETS, Config, ExportKeys, InferKeys
from model_utils.values import FALSE_WORDS, NOTHING_WORDS, Values, parse_flag
from model_utils.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATASET = "cifar10"
DTYPES = {"float32": "O0", "float16": "O2"}


def _amp(value: Any) -> dict[str, Any]:
    """sets amp_level to O2, or to O0 if False"""
    return {"amp_level": "O2" if parse_flag(value) else "O0"}


def _dtype(value: Any) -> dict[str, Any]:
    """sets amp_level, by the name of a number format"""
    level = DTYPES.get(str(value).strip().lower().removeprefix("tf."))
    if level is None:
        raise ValueError(f"must be one of {', '.join(DTYPES)}")
    return {"amp_level": level}


class Alias(NamedTuple):
    """Another project's name of a key: `meaning` is our key, or a function from the value to our keys."""

    meaning: str | Callable[[Any], dict[str, Any]]
    in_yaml: bool = True  # False: on the command line only, the name means something else in YAML files
    only_mode: str | None = None  # allowed only together with this value of `mode`
    is_flag: bool = False  # a bare --name means True


ALIASES: dict[str, Alias] = {
    "data_path": Alias("data_dir", in_yaml=False),
    "datadir": Alias("data_dir"),
    "distribute": Alias("is_distributed", is_flag=True),
    "device": Alias("device_target"),
    "model": Alias("network"),
    "epochs": Alias("max_epoch"),
    "max_epochs": Alias("max_epoch"),
    "workers": Alias("num_parallel_workers"),
    "print_freq": Alias("log_interval"),
    "display_every": Alias("log_interval"),
    "iterations_per_loop": Alias("sink_size"),
    "log_dir": Alias("ckpt_path"),
    "eval_dir": Alias("pre_trained", only_mode="evaluate"),
    "amp": Alias(_amp, is_flag=True),
    "dtype": Alias(_dtype),
    "label_smoothing": Alias(label_smoothing),
}

NOT_HONOURED: dict[str, str] = {
    "graph_ckpt": "checkpoints are always loaded into the graph",
    "log_path": "logs lie in the run folder under ckpt_path",
}

# Flags that count for nothing without another one: these, what they need, and whether a Config has it.
DEPENDENT: tuple[tuple[tuple[str, ...], str, Callable[[Config], bool]], ...] = (
    (("lr_init", "lr_max"), "lr_scheduler=step", lambda config: config.schedule == "step"),
    (("lr_epochs", "lr_gamma"), "lr_scheduler=exponential", lambda config: config.schedule == "exponential"),
    (("eta_min", "T_max"), "lr_scheduler=cosine_annealing", lambda config: config.schedule == "cosine_annealing"),
    (("lr_base_batch",), "lr_scale=linear", lambda config: config.lr_scale == "linear"),
    (("dropout_rate",), "has_dropout=True", lambda config: config.has_dropout),
    (("hflip", "cutout", "scale", "ratio"), "augment=True", lambda config: config.augment),
    (("scale", "ratio"), "dataset=imagenet2012", lambda config: config.dataset == "imagenet2012"),
    (("label_smooth_factor",), "label_smooth=1", lambda config: config.label_smooth or config.is_flag("label_smooth")
     or not config.label_smooth_factor),
    (("label_smooth",), "label_smooth_factor, such as 0.1", lambda config: config.label_smooth_factor > 0
     or not config.label_smooth),
    (("resume_force",), "resume", lambda config: config.resume is not None),
    (("lr",), "lr_scheduler=exponential or cosine_annealing, as --lr_max is given", lambda config:
     config.schedule != "step" or config.origin("lr_max") == config.origin("lr")))


def _translate(name: str, value: Any, origin: str, *, in_yaml: bool) -> Values:
    """One key as somebody wrote it -> our key or keys; an unknown name is refused."""
    alias = ALIASES.get(name)
    if alias and (alias.in_yaml or not in_yaml):
        try:
            meant = {alias.meaning: value} if isinstance(alias.meaning, str) else alias.meaning(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {error}, not {value!r} (from {origin})") from None
        return {key: (item, origin) for key, item in meant.items()}
    if name not in Config.model_fields:
        raise UserError(f"{origin}: unknown key `{name}`{_nearest(name)}")
    return {name: (value, origin)}


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, [*Config.model_fields, *ALIASES, "config_path"], n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else "; --help lists all keys"


def _merge(target: Values, new: Values) -> None:
    """Add what one source says; two names of one key must not disagree there."""
    for name, (value, origin) in new.items():
        if name in target and str(target[name][0]) != str(value):
            raise UserError(f"{name}: is {target[name][0]!r} by {target[name][1]} and {value!r} by {origin}")
        target[name] = (value, origin)


def _yaml_values(path: Path) -> tuple[Values, list[str]]:
    """The values of a file over those of its base, each file read in the dialect it is written in."""
    values: Values = {}
    notes = []
    for layer in read_yaml(path):
        own: Values = {}
        if is_mindcv(layer) and "network" not in values:
            layer, said = translate(layer, _file(layer))
            notes += said
        for name, (value, origin) in layer.items():
            if name in NOT_HONOURED:
                notes.append(f"{origin}: `{name}` has no effect here: {NOT_HONOURED[name]}")
            else:
                _merge(own, _translate(name, value, origin, in_yaml=True))
        values |= own
    return values, notes


def _file(layer: Values) -> str:
    return next(iter(layer.values()))[1].rpartition(":")[0]


def _flag_values(flags: dict[str, str], program: str) -> Values:
    values: Values = {}
    if program == "eval.py" and "pre_trained" not in flags and _is_checkpoint(flags.get("ckpt_path", "")):
        flags = {"pre_trained" if name == "ckpt_path" else name: text for name, text in flags.items()}
    if program == "infer.py" and "pre_trained" in flags:
        if "model_path" in flags:
            raise UserError("--pre_trained: is the model, and so is --model_path; give one of them")
        flags = {"model_path" if name == "pre_trained" else name: text for name, text in flags.items()}
    for name, text in flags.items():
        if name not in NOT_HONOURED:
            _merge(values, _translate(name, text, f"--{name}", in_yaml=False))
    return values


def _check_modes(flags: Collection[str], values: Values, program: str) -> None:
    """UserError for a flag that is known in one mode, in another one."""
    mode = "evaluate" if program == "eval.py" else str(values.get("mode", ("", ""))[0]).lower()
    for name in flags:
        only_mode = ALIASES[name].only_mode if name in ALIASES else None
        if only_mode and mode != only_mode:
            raise UserError(f"--{name}: is known with --mode={only_mode} alone")


def _is_checkpoint(text: str) -> bool:
    """Whether a --ckpt_path means what MindCV's validate.py means by it: a file, and not a root of run folders."""
    return Path(text).suffix == ".ckpt" or Path(text).is_file()


def _leave_out_distribution(values: Values, program: str) -> list[str]:
    """A recipe that trains on many devices also evaluates and exports on one: only train.py insists on a launcher."""
    if program == "train.py" or local_adapter.launcher():
        return []
    keys = [name for name in ("is_distributed", "rank_size") if not values.get(name, (0, "-"))[1].startswith("-")]
    asked = [(name, *values.pop(name)) for name in keys]
    return [f"{origin}: `{name}: {value}` is left aside: no launcher started {program}, so it runs on one device"
            for name, value, origin in asked if str(value).lower() not in (*FALSE_WORDS, *NOTHING_WORDS)]


def _apply_lr_flag(values: Values) -> list[str]:
    """`--lr` with the step schedule means its peak, because `lr` itself has no part in that schedule."""
    scheduler = str(values.get("lr_scheduler", ("step", ""))[0]).lower()
    lr, origin = values.get("lr", (None, ""))
    if scheduler != "step" or origin != "--lr" or values.get("lr_max", (0, ""))[1] == "--lr_max":
        return []
    try:
        peak = float(lr)
        lower = float(values.get("lr_init", (Config.model_fields["lr_init"].default, ""))[0]) > peak
    except (TypeError, ValueError):
        return []  # the schema says what is wrong with it
    if peak <= 0:
        return []
    values["lr_max"] = (lr, origin)
    if not lower or values.get("lr_init", (0, ""))[1] == "--lr_init":
        return [f"--lr={lr} sets lr_max, the peak of the step schedule"]
    values["lr_init"] = (lr, origin)
    return [f"--lr={lr} sets lr_max, the peak of the step schedule, and lowers lr_init to it"]


def _explain(error: ValidationError, values: Values) -> str:
    """What pydantic found, as lines that name key, value, what is allowed, and where it was written."""
    lines = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be").split(", unable")[0]
        name = str(item["loc"][0]) if item["loc"] else message.split(":")[0]
        message = message.removeprefix(f"{name}: ")
        value, origin = values.get(name, (item["input"], "default"))
        lines.append(f"{name}: {message[:1].lower()}{message[1:]}, not {value!r} (from {origin})")
    return "\n".join(dict.fromkeys(lines))


def build_config(values: Values, notes: Sequence[str] = ()) -> Config:
    """Check the values against the schema; UserError says what is wrong and where it was written."""
    try:
        config = Config.model_validate({name: value for name, (value, _) in values.items()})
    except ValidationError as error:
        raise UserError(_explain(error, values)) from None
    config._origins.update({name: origin for name, (_, origin) in values.items()})
    config._notes = (*notes, *_without_effect(config))
    return config


def _find_recipe(name: str) -> Path | None:
    """The file in the current folder; if there is none, the project's recipe of this name."""
    if not name:
        return None
    return Path(name) if Path(name).is_file() or not (ROOT / name).is_file() else ROOT / name


def default_recipe(dataset: str) -> Path:
    known = dataset.lower() if dataset.lower() in DATASETS else DEFAULT_DATASET
    path = ROOT / f"{known}_config.yaml"
    return path if path.is_file() else ROOT / f"{DEFAULT_DATASET}_config.yaml"


def get_config(argv: Sequence[str] | None = None, program: str = "train.py") -> Config:
    """The Config of a command line: flags over YAML over defaults.

    Raises UserError for anything unknown or wrong; `--help` prints and exits.
    """
    aliases = [OtherName(name, _meaning(alias), is_switch=alias.is_flag) for name, alias in ALIASES.items()]
    aliases += [OtherName(name, f"has no effect: {reason}") for name, reason in NOT_HONOURED.items()]
    flags, unknown = parse_flags(sys.argv[1:] if argv is None else argv, program, aliases=aliases)
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise UserError(f"{name}: belongs to no flag; values are given as --name=value")
        raise UserError(f"{name}: unknown flag{_nearest(name.lstrip('-').replace('-', '_'))}")
    names = ("dataset", "dataset_name") if program in ("preprocess.py", "postprocess.py") else ("dataset",)
    dataset = next((flags[name] for name in names if name in flags), DEFAULT_DATASET)
    for name in ("config_path", "resume"):
        if not flags.get(name, name).strip():
            raise UserError(f"--{name}: is empty; name a file or folder, or leave the flag out")
    recipe = _find_recipe(flags.pop("config_path", "")) or default_recipe(dataset)
    values, notes = _yaml_values(recipe)
    values.update(_flag_values(flags, program))
    _check_modes(flags, values, program)
    notes += _idle_flags(flags, values, program)
    notes += [*_apply_lr_flag(values), *_leave_out_distribution(values, program)]
    return build_config(values, notes)


def _idle_flags(flags: Mapping[str, str], values: Values, program: str) -> list[str]:
    """What to say of flags that do nothing here, whatever the others are."""
    lines = [f"--{name} has no effect here: {reason}" for name, reason in NOT_HONOURED.items() if name in flags]
    lines += [f"--{name} is empty, which means: not given" for name, text in flags.items() if not text.strip()]
    if "buffer_size" in flags:
        lines.append("--buffer_size has no effect: the shuffle is always that of a whole epoch")
    if program in ("train.py", "eval.py"):
        others = {**ExportKeys.__annotations__, **InferKeys.__annotations__}
        lines += [f"warning: --{name} has no effect here: it is for exporting or inference" for name in flags
                  if name in others]
    if program != "train.py" and "log_name" in flags:
        lines.append("warning: --log_name has no effect here: it is for training")
    if program == "train.py" and str(values.get("mode", ("train", ""))[0]).lower() == "train":
        lines += [f"warning: --{name} has no effect without --mode=train_and_evaluate"
                  for name in ("eval_step_per_epoch", "epochs_between_evals") if name in flags]
    return lines


def _without_effect(config: Config) -> list[str]:
    """What to say of flags that have no part in the run. Of keys in a file nothing: recipes carry them from one to
    another."""
    return [f"warning: {config.origin(name)} has no effect without --{needed}"
            for names, needed, is_met in DEPENDENT for name in names if config.is_flag(name) and not is_met(config)]


def _meaning(alias: Alias) -> str:
    return f"= {alias.meaning}" if isinstance(alias.meaning, str) else str(alias.meaning.__doc__)
