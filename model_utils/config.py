# SPDX-License-Identifier: Apache-2.0
"""YAML and command line -> one frozen Config. `python -m model_utils.config` prints docs/options.md."""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from model_utils import dialects, local_adapter
from model_utils.dialects import ALIASES, IGNORED, SWITCHES, Values, convert, translate_mindcv
from model_utils.errors import UserError
from model_utils.reading import brief, read_text
from model_utils.schema import DATASETS, GROUPS, NOTHING_WORDS, PROGRAMS, Config, keys_of, short, shown, type_of

ROOT = Path(__file__).resolve().parent.parent
MOST_YAML_BYTES = 2**18  # fifty times the longest recipe; PyYAML takes seconds for more
MOST_YAML_LEVELS = 20


def get_config(argv: Sequence[str] | None = None, program: str = "train.py") -> Config:
    """The Config of a command line: flags over YAML over defaults.

    Raises UserError for anything unknown or wrong; `--help` prints and exits.
    """
    flags = _parse_flags(sys.argv[1:] if argv is None else argv, program)
    for name in ("config_path", "resume"):
        if not flags.get(name, name).strip():
            raise UserError(f"--{name}: is empty; name a file or folder, or leave the flag out")
    dataset = flags.get("dataset", "")
    if program in ("preprocess.py", "postprocess.py"):
        dataset = dataset or flags.get("dataset_name", "")
    recipe = flags.pop("config_path", "") or _recipe_of_run(flags.get("resume", ""))
    path = _find_recipe(recipe, dialects.translated("dataset", dataset).lower())
    values, notes = _read_recipe(path)
    concluded = dialects.network_in_names(values, path)
    values |= _flag_values(flags, values, program)
    if "network" not in values and concluded:
        values["network"] = concluded
        notes.append(f"network: is not in the recipe; it is {concluded[0]} by {concluded[1]}")
    if program != "train.py" and not local_adapter.launcher():
        notes += _leave_out_distribution(values, program)
    try:
        config = Config.model_validate({name: value for name, (value, _) in values.items()})
    except ValidationError as error:
        raise UserError(_explain(error, values)) from None
    config._origins.update({name: origin for name, (_, origin) in values.items()})
    config._has_own_recipe = bool(recipe)
    notes += [f"--{name} is empty, which means: none" for name, text in flags.items() if not text.strip()]
    notes += [f"--{name} has no effect here: {IGNORED[name]}" for name in flags if name in IGNORED]
    notes += _idle_flags(config, program)
    config = _apply_lr_flag(config, notes) if "lr" in keys_of(program) else config
    config._notes = tuple(notes)
    return config


# The command line


def _build_parser(program: str, *, shows_all: bool) -> argparse.ArgumentParser:
    """Every key as a flag, and the names of other projects. The help shows the common keys, or all that are read."""
    description, common, _ = PROGRAMS.get(program, ("", "", ()))
    read, first = keys_of(program), common.split()
    rest = "" if shows_all else f"--help-all lists all {len(read)} keys that {program} reads. "
    parser = argparse.ArgumentParser(prog=program, usage=f"{program} [--config_path FILE] [--KEY VALUE ...]",
                                     description=description, epilog=f"{rest}docs/options.md describes every key.",
                                     allow_abbrev=False, exit_on_error=False)

    def add(section: Any, name: str, kind: str, text: str, bare: str | None, is_shown: bool) -> None:
        optional = {"nargs": "?", "const": bare} if bare else {}
        section.add_argument(f"--{name}", metavar=kind, default=argparse.SUPPRESS, **optional,
                             help=text.replace("%", "%%") if is_shown else argparse.SUPPRESS)

    parser.add_argument("--help-all", action="help", help="show all keys of this command and exit")
    parser.add_argument("-c", "--config_path", "--config", metavar="FILE", default=argparse.SUPPRESS,
                        help="recipe, which replaces the defaults; that of --dataset unless given")
    sections = {group.__doc__: group.model_fields for group in GROUPS} if shows_all else {
        "common keys": first, "other keys": [name for name in Config.model_fields if name not in first]}
    for title, names in sections.items():
        section = parser.add_argument_group(title)
        for name in names:
            field = Config.model_fields[name]
            bare = "True" if field.annotation is bool else field.json_schema_extra["bare"]
            if name not in ALIASES:  # data_path, which is another key on the command line
                add(section, name, type_of(name), _description(name, short(field.default)), bare,
                    name in (read if shows_all else first))
    section = parser.add_argument_group("Names that other projects use")
    for name in ALIASES:
        text = _meaning(name)
        is_read = not {*re.findall(r"\w+", text)}.isdisjoint(read)
        add(section, name, "VALUE", text, "True" if name in SWITCHES else None, shows_all and is_read)
    for name, reason in IGNORED.items():
        add(section, name, "VALUE", f"has no effect: {reason}", None, shows_all)
    return parser


def _description(name: str, default: str = "") -> str:
    """What a key does, and the setting without which it has no effect."""
    field = Config.model_fields[name]
    needs = f"only with {field.json_schema_extra['needs']}".replace("|", " or ").removesuffix("only with None")
    limits = "; ".join(filter(None, [default and f"default {default}", needs]))
    return field.description + f" ({limits})" * bool(limits)


def _meaning(alias: str) -> str:
    meaning = ALIASES[alias]
    return f"= {meaning}" if isinstance(meaning, str) else meaning.__doc__


def options_page() -> str:
    """docs/options.md: all keys by group, and the names of other projects."""
    read = {program: keys_of(program) for program in PROGRAMS}
    lines = ["# All keys", "", "<!-- written by `python -m model_utils.config > docs/options.md` -->", "",
             "Each key is a flag (`--max_epoch=3`) and a line of a YAML file (`max_epoch: 3`); flags win. A bare flag "
             "of the type BOOL means True. `none` stands for no value. LIST stands for values separated by commas. The "
             "recipe of the data set replaces some of these defaults."]
    for group in GROUPS:
        lines += ["", f"## {group.__doc__}", "", "| key | type | default | what it does | read by |",
                  "| --- | --- | --- | --- | --- |"]
        for name, field in group.model_fields.items():
            programs = ", ".join(program.removesuffix(".py") for program in PROGRAMS if name in read[program])
            lines.append(f"| `{name}` | {type_of(name)} | {short(field.default)} | {_description(name)} | {programs} |")
    lines += ["", "## Names that other projects use", "", "| flag | meaning |", "| --- | --- |"]
    lines += [f"| `{short}` | = {name[2:]} |" for short, name in {"-c": "--config_path", **dialects.SHORT}.items()]
    lines += [f"| `--{name}` | {_meaning(name)} |" for name in ALIASES]
    return "\n".join(lines) + "\n"


def _parse_flags(argv: Sequence[str], program: str) -> dict[str, str]:
    """What was given, as text, by our spelling of its name."""
    items = [re.sub(r"^(-[bj])=?(?=\d)", lambda found: dialects.SHORT[found[1]] + "=", dialects.SHORT.get(item, item))
             for item in argv]  # -b 8, -b8
    items = [re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), item) for item in items]
    parser = _build_parser(program, shows_all="--help_all" in items)
    try:
        given, unknown = parser.parse_known_args(["--help" if item == "--help_all" else item for item in items])
    except argparse.ArgumentError as error:
        name = str(error.argument_name).rpartition("--")[2]
        about = f": --{name}={type_of(name)}, {_description(name)}" if name in Config.model_fields else ""
        problem = f"needs a value{about}" if "expected" in error.message else error.message
        raise UserError(f"--{name}: {problem}") from None
    if unknown:
        names = dict.fromkeys(item.split("=")[0] for item in unknown if re.match("--?[A-Za-z_]", item))
        if unknown[0].split("=")[0] not in names:
            raise UserError(f"{brief(unknown[0])[1:-1]}: belongs to no flag; values are given as --name=value")
        raise UserError("\n".join(f"{brief(name)[1:-1]}: unknown flag{_nearest(name.lstrip('-'))}"
                                  for name in list(names)[:20]))
    return {name: "--" if text == [] else text for name, text in vars(given).items()}  # argparse makes [] of `--lr=--`


def _flag_values(flags: dict[str, str], recipe: Values, program: str) -> Values:
    mode = "evaluate" if program == "eval.py" else str(flags.get("mode", recipe.get("mode", ("",))[0])).lower()
    values: Values = {}
    for name, text in flags.items():
        if name == "eval_dir" and mode != "evaluate":
            raise UserError("--eval_dir: is known only with --mode=evaluate")
        meaning = ALIASES.get(name, name)
        if (program == "eval.py" and name == "ckpt_path" and "pre_trained" not in flags
                and (Path(text).suffix == ".ckpt" or Path(text).is_file())):
            meaning = "pre_trained"  # as in MindCV; a folder is the root of the run folders
        if name not in IGNORED:
            _add(values, convert(name, text, f"--{name}", meaning))
    return values


def _add(values: Values, new: Values) -> None:
    """Add what one source says; two names of one key must not disagree there."""
    for name, (value, origin) in new.items():
        value = dialects.translated(name, value)
        if name in values and str(values[name][0]) != str(value):
            raise UserError(f"{name}: is {brief(values[name][0])} by {values[name][1]} and {brief(value)} by {origin}")
        values[name] = (value, origin)


def _nearest(name: str) -> str:
    if answer := dialects.NO_KEYS.get(name):
        return f"; here it {answer}"
    close = difflib.get_close_matches(name[:99], [*Config.model_fields, *ALIASES, "config_path"], n=1, cutoff=0.75)
    if not close:
        return "; --help-all lists all keys"
    meaning = ALIASES.get(close[0], close[0])
    return f"; did you mean `{close[0] if callable(meaning) else meaning}`?"


# YAML files


class _PlainLoader(yaml.SafeLoader):
    """Keeps what may be a name as it is written: YAML 1.1 makes 8 of 010, 750 of 12:30, 1.1 of 1.10 and a date of
    2024-01-05. The schema makes numbers of texts if it wants them."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.flow_level + len(self.indents) > MOST_YAML_LEVELS:
            raise yaml.MarkedYAMLError(None, None, "it is nested too deeply", self.get_mark())
        return super().compose_node(parent, index)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        is_plain = re.fullmatch(r"-?(0|[1-9]\d*)(\.(\d|\d*[1-9]))?([eE][-+]?\d+)?", node.value)
        return value if is_plain or not math.isfinite(value) else node.value


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_number)
_PlainLoader.add_constructor("tag:yaml.org,2002:timestamp", _PlainLoader.construct_yaml_str)


def _find_recipe(name: str, dataset: str) -> Path:
    """The file in the current folder, or the project's file of this name; without a name that of the data set."""
    if not name:
        files = (f"{dataset}_config.yaml", f"configs/{dataset}.yaml") if dataset in DATASETS else ()
        return next((ROOT / file for file in files if (ROOT / file).is_file()), ROOT / "cifar10_config.yaml")
    return Path(name) if Path(name).is_file() or not (ROOT / name).is_file() else ROOT / name


def _recipe_of_run(named: str) -> str:
    """The config.yaml of the run that --resume names by its folder or a state file; empty if it names none."""
    path = Path(named)
    folder = path.parent.parent if path.is_file() else path.parent if path.name == "resume" else path
    return str(folder / "config.yaml") if named and (folder / "config.yaml").is_file() else ""


def _read_recipe(path: Path, asked_by: str = "--config_path", seen: tuple[Path, ...] = ()) -> tuple[Values, list[str]]:
    """The values of a file over those of its `base`, each with `file:line` as its origin, and lines to report."""
    layer = _read_yaml(path, asked_by)
    if path.resolve() in seen:
        raise UserError(f"{path}: is its own `base`")
    base, notes = {}, []
    if "base" in layer:
        name, origin = layer.pop("base")
        base, notes = _read_recipe(Path(os.path.normpath(path.parent / str(name))), f"`base`, {origin}",
                                   (*seen, path.resolve()))
    if "model" in layer and "network" not in layer | base:
        layer, said = translate_mindcv(layer, str(path))
        notes += said
    values: Values = {}
    for name, (value, origin) in layer.items():
        meaning = name if name in Config.model_fields else ALIASES.get(name, name)
        if name in IGNORED:
            notes.append(f"{origin}: `{name}` has no effect here: {IGNORED[name]}")
        elif meaning == name and name not in Config.model_fields:
            raise UserError(f"{origin}: unknown key `{brief(name)[1:-1]}`{_nearest(name)}")
        else:
            _add(values, convert(name, value, origin, meaning))
    return base | values, notes


def _read_yaml(path: Path, asked_by: str) -> Values:
    """The first document of a file; the model zoo's files have two more, help texts and choices."""
    try:
        text = read_text(path, most_bytes=MOST_YAML_BYTES)
        documents = [node for node in yaml.compose_all(text, Loader=_PlainLoader) if node is not None]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file (from {asked_by})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # it may be after the last line
        where = f"{path}:{min(mark.line + 1, len(text.splitlines()) or 1)}" if mark else str(path)
        raise UserError(f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not documents:
        raise UserError(f"{path}: holds no values")
    if not isinstance(documents[0], yaml.MappingNode):
        raise UserError(f"{path}:{documents[0].start_mark.line + 1}: must be `key: value` lines")
    values: Values = {}
    for key_node, value_node in documents[0].value:
        origin = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{origin}: a key must be a word, not a list or a mapping")
        name = key_node.value
        if name in values:
            raise UserError(f"{origin}: `{name}` is given again (first in {values[name][1]})")
        items = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
        if not all(isinstance(item, yaml.ScalarNode) for item in items):  # also what aliases could make huge
            raise UserError(f"{origin}: `{name}`: must be one value, or a flat list of values")
        try:
            values[name] = (_PlainLoader("").construct_object(value_node, deep=True), origin)
        except (yaml.YAMLError, ValueError, OverflowError, LookupError) as error:
            raise UserError(f"{origin}: `{name}`: {getattr(error, 'problem', None) or error}") from None
    return values


# What becomes of the values


def _explain(error: ValidationError, values: Values) -> str:
    """What pydantic found, one line per key: the key, what is allowed, the value, and where it was written."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        text = item["msg"].removeprefix("Value error, ").replace("a valid boolean", "True or False")
        text = re.split(", unable| after validation", re.sub("(Input|Tuple) should", "must", text))[0]
        name, *inner = item["loc"] or text.split(": ", 1)[:1]
        text = text.removeprefix(f"{name}: ")
        is_list = "," in str(values.get(name, ("",))[0])
        start = f"item {inner[0] + 1} " if is_list and inner and isinstance(inner[0], int) else ""
        texts = found.setdefault(name, [])  # several only if there are several allowed types
        if not texts or not start and item["type"] != "too_short":  # the only item was wrong, and is left out
            texts.append(start + text[:1].lower() + text[1:])
    lines = []
    for name, texts in found.items():
        value, origin = values.get(name, (shown(Config.model_fields[name].default), "default"))
        said = " or ".join(dict.fromkeys(texts)).replace(" or must be", " or")
        said += f", not {brief(value)}" if re.search("must|should", said) else ""
        lines.append(f"{name}: {said} (from {origin})")
    return "\n".join(lines)


def _leave_out_distribution(values: Values, program: str) -> list[str]:
    """A recipe that trains on many devices also evaluates and exports on one; only train.py insists on a launcher."""
    notes = []
    for name in ("is_distributed", "rank_size"):
        value, origin = values.get(name, (None, "-"))
        if not origin.startswith("-"):
            del values[name]
            if str(value).lower() not in ("false", "0", "no", "off", *NOTHING_WORDS):
                notes.append(f"{origin}: `{name}: {value}` is ignored: no launcher started {program}, so it runs on "
                             "one device")
    return notes


def _idle_flags(config: Config, program: str) -> list[str]:
    """Warnings about flags without effect. Keys in files are not reported: recipes carry them from one to another."""
    lines = ["--buffer_size has no effect: the shuffle is always that of a whole epoch"] * config.is_flag("buffer_size")
    read = {"mode", *keys_of(program)}  # train.py --mode=evaluate is eval.py
    for name in filter(config.is_flag, Config.model_fields):
        if name not in read:
            lines.append(f"warning: {config.origin(name)} has no effect in {program}")
            continue
        needed, _, allowed = (Config.model_fields[name].json_schema_extra["needs"] or "").partition("=")
        values = [getattr(config, other) for other in filter(None, needed.split("|"))]
        met = not needed or (str(values[0]) in allowed.split("|") if allowed else any(values))
        if getattr(config, name) and not met:
            lines.append(f"warning: {config.origin(name)} has no effect without --{needed}{allowed and '=' + allowed}")
    return lines


def _apply_lr_flag(config: Config, notes: list[str]) -> Config:
    """`--lr` with the step schedule means its peak, because `lr` itself has no part in that schedule. Files that set
    `lr_max` as well carry `lr` for the other schedules."""
    flag, file = config.origin("lr"), config.origin("lr").rpartition(":")[0]
    if config.schedule != "step" or not config.is_flag("lr"):
        if config.schedule == "step" and file and not config.origin("lr_max").startswith((f"{file}:", "-")):
            notes.append(f"warning: {flag}: `lr` has no effect with lr_scheduler=step, whose peak is lr_max "
                         f"({config.lr_max:g})")
        return config
    if config.is_flag("lr_max"):
        notes.append(f"warning: {flag} has no effect: --lr_max is the peak of the step schedule")
        return config
    peak, note = {"lr_max": config.lr}, f"{flag}={config.lr:g} sets lr_max, the peak of the step schedule"
    if config.lr < config.lr_init and not config.is_flag("lr_init"):
        peak["lr_init"] = config.lr / 10
        note += f", and lr_init, where the warm-up begins, to {config.lr / 10:g}"
    notes.append(note)
    return config.taking(peak, flag)


if __name__ == "__main__":
    print(options_page(), end="")
