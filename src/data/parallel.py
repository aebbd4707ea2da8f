# SPDX-License-Identifier: Apache-2.0
"""Work on all images of a data set, in several processes that each open it for themselves."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

from src.data.base import Reader
from src.data.formats import Source, open_reader
from src.utils.progress import Progress

FEW = 400  # so many images are done before another process has started
POLL_S = 0.2

Work = Callable[..., Any]  # (reader, on_image, *arguments); must be found by its name in a module


@functools.cache
def open_source(source: Source) -> Reader:
    """The reader of a source; opened once in each process."""
    return open_reader(source.data_dir, source.split, source.wanted, dataset_format=source.dataset_format,
                       candidates=source.candidates)


class _Process:
    """What one of the processes knows."""

    reader: Reader
    done: Any  # how many images all processes have finished

    @classmethod
    def start(cls, source: Source, done: Any) -> None:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        cls.reader, cls.done = open_source(source), done

    @classmethod
    def count(cls) -> None:
        with cls.done.get_lock():
            cls.done.value += 1

    @classmethod
    def call(cls, work: Work, arguments: tuple) -> Any:
        return work(cls.reader, cls.count, *arguments)


def _end_with_the_parent() -> None:
    """A parent that was killed can end nobody."""
    multiprocessing.parent_process().join()
    os._exit(1)


def cut(indices: Sequence[int], count: int) -> list[list[int]]:
    """`count` runs of nearly equal length, in order."""
    return [list(indices[len(indices) * part // count:len(indices) * (part + 1) // count]) for part in range(count)]


def run(source: Source, work: Work, arguments: Sequence[tuple], *, total: int, processes: int, what: str) -> list[Any]:
    """The results of `work` for each of the arguments, in their order; the first error ends it all."""
    with Progress(what, total, "images") as progress:
        if processes == 1 or total <= FEW:
            return _run_here(open_source(source), work, arguments, progress)
        return _run_there(source, work, arguments, min(processes, len(arguments)), progress)


def _run_here(reader: Reader, work: Work, arguments: Sequence[tuple], progress: Progress) -> list[Any]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress.show(done)

    return [work(reader, count, *item) for item in arguments]


def _run_there(source: Source, work: Work, arguments: Sequence[tuple], processes: int, progress: Progress) -> list[Any]:
    context = multiprocessing.get_context("spawn")  # a copy of a process that has loaded MindSpore would hang
    done = context.Value("q", 0)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_Process.start,
                             initargs=(source, done)) as pool:
        futures = [pool.submit(_Process.call, work, item) for item in arguments]
        try:
            left = set(futures)
            while left:
                finished, left = wait(left, timeout=POLL_S, return_when=FIRST_COMPLETED)
                progress.show(done.value)
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
