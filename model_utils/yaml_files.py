# SPDX-License-Identifier: Apache-2.0
"""YAML recipes: one to three documents, a `base:` file below, and the line that each value stands on."""

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from model_utils.errors import UserError

PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.(\d|\d*[1-9]))?([eE][-+]?\d+)?")
MAX_DOCUMENTS = 3  # the model zoo's files: values, help texts, choices


class _PlainLoader(yaml.SafeLoader):
    """What may be meant as a name stays as it is written: YAML 1.1 makes 8 of 010, 750 of 12:30, 1.1 of 1.10 and a day
    of 2024-01-05; and it reads 5e-4 as text. The schema makes numbers of texts where it wants them."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        return value if PLAIN_NUMBER.fullmatch(node.value) or not math.isfinite(value) else node.value


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_number)
_PlainLoader.add_constructor("tag:yaml.org,2002:timestamp", _PlainLoader.construct_yaml_str)


def _parse(path: Path, asked_by: str) -> list[yaml.Node]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file (from {asked_by})") from None
    except (OSError, ValueError) as error:  # not UTF-8, or a name that no file can have
        raise UserError(f"{path}: cannot be read as YAML: {getattr(error, 'strerror', None) or error}") from None
    try:
        return [node for node in yaml.compose_all(text, Loader=_PlainLoader) if node is not None]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{min(mark.line + 1, len(text.splitlines()) or 1)}" if mark else str(path)  # it may lie behind
        raise UserError(f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _mapping(node: yaml.Node, path: Path) -> dict[str, tuple[Any, int]]:
    """The key -> (value, line) pairs of one document."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: must be `key: value` lines")
    values: dict[str, tuple[Any, int]] = {}
    loader = _PlainLoader("")
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in values:
            raise UserError(f"{path}:{line}: `{name}` stands here again (first in line {values[name][1]})")
        try:
            values[name] = (loader.construct_object(value_node, deep=True), line)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: `{name}`: {getattr(error, 'problem', None) or error}") from None
    return values


def read_yaml(path: Path, asked_by: str = "--config_path",
              seen: tuple[Path, ...] = ()) -> list[dict[str, tuple[Any, str]]]:
    """The values of a recipe, each with `file:line` as its origin, behind those of its base, which they override.

    Raises UserError for a file that is missing, does not parse, or is its own base.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: is its own `base`")
    documents = _parse(path, asked_by)
    if not documents:
        raise UserError(f"{path}: holds no values")
    if len(documents) > MAX_DOCUMENTS:
        raise UserError(f"{path}: holds {len(documents)} documents; up to three are known: values, help, choices")
    own = {name: (value, f"{path}:{line}") for name, (value, line) in _mapping(documents[0], path).items()}
    for node in documents[1:]:
        _mapping(node, path)
    if "base" not in own:
        return [own]
    base, line = own.pop("base")
    if "\0" in str(base):
        raise UserError(f"{line}: `base`: {base!r} is no name of a file")
    below = Path(os.path.normpath(path.parent / str(base)))
    return [*read_yaml(below, f"`base`, {line}", (*seen, path.resolve())), own]
