# SPDX-License-Identifier: Apache-2.0
"""The command line: every key of the schema as a flag, in its groups."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from model_utils.schema import GROUPS
from model_utils.values import Choices

PROGRAMS = {  # what each does with the keys, which are the same for all: one recipe serves them
    "train.py": "Train a network on the images of --data_dir; leaves a run folder in --ckpt_path.",
    "eval.py": "Count how many test images of --data_dir the checkpoints of --pre_trained get right.",
    "export.py": "Write the network of --ckpt_file as --file_name, in the formats of --file_format.",
    "infer.py": "Let the model of --model_path name the images of --input, or of the test set in --data_dir.",
    "preprocess.py": "Turn the test set of --data_dir into the inputs and labels of an inference on Ascend 310.",
    "postprocess.py": "Count how many results of an inference are right: those in --result_dir.",
}


class OtherName(NamedTuple):
    """A further name that the command line takes."""

    name: str
    help_text: str
    is_switch: bool = False  # a bare --name means True


def _shown_default(default: Any) -> str:
    if default is None or default == ():
        return "none"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _help(field: Any) -> str:
    choices = next((item for item in field.metadata if isinstance(item, Choices)), None)
    allowed = f" [{'|'.join(choices)}]" if choices else ""
    return f"{field.description}{allowed} (default {_shown_default(field.default)})".replace("%", "%%")


def _bare_value(field: Any) -> str | None:
    """What the flag means without a value; None where it needs one."""
    return "True" if field.annotation is bool else (field.json_schema_extra or {}).get("bare")


def _add(section: Any, name: str, help_text: str, *, bare: str | None) -> None:
    switch = {"nargs": "?", "const": bare} if bare else {}
    section.add_argument(f"--{name}", metavar="V", default=argparse.SUPPRESS, help=help_text, **switch)


def build_parser(program: str, aliases: Sequence[OtherName] = ()) -> argparse.ArgumentParser:
    """The parser of an entry script; an alias stands in for a key of the same name."""
    parser = argparse.ArgumentParser(prog=program, usage=f"{program} [--config_path FILE] [--KEY V ...]",
                                     description=PROGRAMS.get(program), allow_abbrev=False)
    parser.add_argument("-c", "--config_path", "--config", metavar="FILE", default=argparse.SUPPRESS,
                        help="recipe; <dataset>_config.yaml beside the script unless given")
    taken = {alias.name for alias in aliases}
    for group in GROUPS:
        section = parser.add_argument_group(group.__doc__)
        for name in group.__annotations__:
            if name not in taken:
                field = group.model_fields[name]
                _add(section, name, _help(field), bare=_bare_value(field))
    section = parser.add_argument_group("Names that other projects use")
    for alias in aliases:
        _add(section, alias.name, alias.help_text, bare="True" if alias.is_switch else None)
    return parser


def _same_dashes(argument: str) -> str:
    """`--max-epoch=3` is `--max_epoch=3`; values stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def parse_flags(argv: Sequence[str], program: str,
                aliases: Sequence[OtherName] = ()) -> tuple[dict[str, str], list[str]]:
    """What was given, as text, and the arguments that nobody knows."""
    parser = build_parser(program, aliases)
    given, unknown = parser.parse_known_args([_same_dashes(argument) for argument in argv])
    flags = {name: "--" if text == [] else text for name, text in vars(given).items()}  # as argparse hands `--lr=--` on
    return flags, unknown
