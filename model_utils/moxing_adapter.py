# SPDX-License-Identifier: Apache-2.0
"""ModelArts: data and checkpoint are copied in before a run, results are copied out after it, once per host."""

import fcntl
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

from model_utils.errors import UserError
from model_utils.schema import Config


def _moxing(config: Config) -> ModuleType:
    try:
        import moxing
    except ImportError:
        raise UserError(f"enable_modelarts: is True (from {config.origin('enable_modelarts')}), but the Python module "
                        "moxing is not installed; it exists on ModelArts only. Elsewhere leave enable_modelarts out or "
                        "set it to False") from None
    return moxing


def _copy(moxing: ModuleType, key: str, source: str, target: str) -> None:
    """Copy a folder, or a file into a folder; `key` is that of the URL."""
    print(f"ModelArts: copying {source} to {target}", flush=True)
    try:
        if key != "train_url" and not moxing.file.exists(source):
            raise UserError(f"{key}: there is no {source}")
        if key != "train_url" and not moxing.file.is_directory(source):
            moxing.file.copy(source, f"{target}/{source.rpartition('/')[2]}")
        else:
            moxing.file.copy_parallel(source, target)
    except UserError:
        raise
    except Exception as error:  # whatever the storage answers
        raise UserError(f"{key}: {source} could not be copied to {target}: {error}") from error


def _unzip(folder: Path, name: str) -> None:
    """Unpack NAME.zip, or without a name every zip file of the folder, into the folder."""
    archives = [folder / f"{name}.zip"] if name else sorted(folder.glob("*.zip"))
    for path in filter(Path.is_file, archives):
        print(f"ModelArts: unpacking {path}", flush=True)
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if not (folder / member).resolve().is_relative_to(folder.resolve()):
                        raise UserError(f"{path}: holds {member!r}, which is outside the folder; nothing was unpacked")
                archive.extractall(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, cut short, encrypted
            raise UserError(f"{path}: cannot be unpacked: {error}") from error
    if not any(path.is_file() for path in archives):
        print(f"ModelArts: no {name or '*'}.zip in {folder}; the data is used as it is", flush=True)


def _zip_name(config: Config) -> str:
    return (config.modelarts_dataset_unzip_name or "").removesuffix(".zip")


def _copy_in(config: Config, moxing: ModuleType) -> None:
    for key, url, folder in (("data_url", config.data_url, Path(config.data_path)),
                             ("checkpoint_url", config.checkpoint_url, Path(config.load_path))):
        if url:
            folder.mkdir(parents=True, exist_ok=True)
            _copy(moxing, key, url, str(folder))
            if key == "data_url" and config.need_modelarts_dataset_unzip:
                _unzip(folder, _zip_name(config))
    Path(config.output_path).mkdir(parents=True, exist_ok=True)


def _with_local_paths(config: Config) -> Config:
    """The run with its data in data_path, and what it writes inside of output_path, which is copied out."""
    root, values = Path(config.output_path), {}
    for name in ("ckpt_path", *(["file_name"] if config.file_name else [])):
        path = Path(os.path.normpath(root / getattr(config, name)))  # an absolute path stays as it is
        values[name] = str(path if path.is_relative_to(root) else root / path.name)
    if config.data_url and not config.data_dir:
        inner = Path(config.data_path) / _zip_name(config)
        values["data_dir"] = str(inner if inner.is_dir() else config.data_path)
    return config.taking(values, "enable_modelarts")


def _is_alone(file: TextIO) -> bool:
    """Whether no other process holds the file's lock. The system frees a lock when its process ends in whatever way,
    so a job that was killed leaves nothing that could mislead the next one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def on_platform(config: Config) -> Iterator[Config]:
    """The Config to run with. On ModelArts the first rank of each host copies the data in before, while the others
    wait, and the last one copies the results out at the end, even if the run fails.

    Elsewhere, and in a launcher's scheduler, nothing happens.
    """
    if not config.enable_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        yield config
        return
    moxing, data = _moxing(config), Path(config.data_path)
    data.parent.mkdir(parents=True, exist_ok=True)
    with data.with_name(f".{data.name}.ranks").open("a") as ranks:  # every rank of this host holds a lock on it
        with data.with_name(f".{data.name}.entry").open("a") as entry:
            fcntl.flock(entry, fcntl.LOCK_EX)  # one rank at a time
            if _is_alone(ranks):
                _copy_in(config, moxing)
            fcntl.flock(ranks, fcntl.LOCK_SH)
        is_failing = True
        try:
            yield _with_local_paths(config)
            is_failing = False
        finally:
            if _is_alone(ranks):
                _copy_out(config, moxing, is_failing=is_failing)


def _copy_out(config: Config, moxing: ModuleType, *, is_failing: bool) -> None:
    if not config.train_url:
        print(f"ModelArts: train_url is not given; the results stay in {config.output_path}", flush=True)
        return
    try:
        _copy(moxing, "train_url", config.output_path, config.train_url)
    except UserError as error:
        if not is_failing:
            raise
        print(f"ModelArts: {error}", file=sys.stderr)  # the error that made the run fail is the one to report
