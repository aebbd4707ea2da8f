# SPDX-License-Identifier: Apache-2.0
"""Looks at every image of a data set: can it be decoded, how large is it, is it there twice?"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from src.deploy.images import ImageError, size_of
from src.data.base import Reader
from src.data.formats import Source
from src.data.parallel import cut, open_source, run
from src.data.broken_images import image_problem
from model_utils.errors import UserError

PARTS_PER_PROCESS = 8  # so that no process is idle at the end


class Fact(NamedTuple):
    """What was seen of one image; without a size where it is broken."""

    index: int
    problem: str | None
    width: int
    height: int
    digest: bytes  # of the stored bytes


def look(reader: Reader, index: int) -> Fact:
    try:
        content = reader.read(index)
    except UserError as error:
        return Fact(index, str(error), 0, 0, b"")
    digest = hashlib.blake2b(content.tobytes(), digest_size=12).digest()
    if not reader.encoded:
        return Fact(index, None, content.shape[1], content.shape[0], digest)
    problem = image_problem(content)
    if problem:
        return Fact(index, f"{reader.name(index)}: {problem}", 0, 0, digest)
    try:
        return Fact(index, None, *size_of(content.tobytes()), digest)
    except ImageError as error:
        return Fact(index, f"{reader.name(index)}: {error}", 0, 0, digest)


def look_at(reader: Reader, on_image: Callable[[], None], indices: Sequence[int]) -> list[Fact]:
    facts = []
    for index in indices:
        facts.append(look(reader, index))
        on_image()
    return facts


def inspect(source: Source, *, processes: int, what: str) -> list[Fact]:
    """A fact for each image, in their order."""
    count = len(open_source(source))
    parts = cut(range(count), min(count, PARTS_PER_PROCESS * processes))
    results = run(source, look_at, [(part,) for part in parts], total=count, processes=processes, what=what)
    return [fact for result in results for fact in result]


def broken(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if fact.problem]


def sizes(facts: Sequence[Fact]) -> np.ndarray:
    """Width and height of the images that can be decoded, a row each."""
    return np.array([(fact.width, fact.height) for fact in facts if not fact.problem]).reshape(-1, 2)
