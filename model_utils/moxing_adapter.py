# SPDX-License-Identifier: Apache-2.0
"""ModelArts: data and checkpoint are copied in before a run, results are copied out after it, once per host."""

import fcntl
import hashlib
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from model_utils import local_adapter
from model_utils.errors import UserError
from model_utils.schema import Config

SECONDS_FOR_OTHERS = 60  # how long the rank that copies the results waits for the other ranks of its host to end


def _moxing(config: Config) -> ModuleType:
    try:
        import moxing
    except ImportError:
        raise UserError(f"enable_modelarts: is True (from {config.origin('enable_modelarts')}), but the Python module "
                        "moxing is not installed; it exists on ModelArts only. Elsewhere leave enable_modelarts out or "
                        "set it to False") from None
    return moxing


def _mark_file(config: Config) -> Path:
    """A file beside the local data that all ranks of this job on this host share, and no other job has."""
    pid = os.getppid() if local_adapter.launcher() else os.getpid()
    stat = Path(f"/proc/{pid}/stat")
    started = stat.read_text(errors="replace").rpartition(")")[2].split()[19] if stat.is_file() else ""
    job = f"{os.environ.get('JOB_ID', '')} {pid} {started} {config.data_url} {config.checkpoint_url}"
    folder = Path(config.data_path)
    return folder.with_name(f".{folder.name}.job-{hashlib.sha256(job.encode()).hexdigest()[:16]}")


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
    for name in ("ckpt_path", "file_name"):
        path = Path(os.path.normpath(root / getattr(config, name)))  # an absolute path stays as it is
        values[name] = str(path if path.is_relative_to(root) else root / path.name)
    if config.data_url and not config.data_dir:
        inner = Path(config.data_path) / _zip_name(config)
        values["data_dir"] = str(inner if inner.is_dir() else config.data_path)
    return config.taking(values, "enable_modelarts")


@contextmanager
def on_platform(config: Config) -> Iterator[Config]:
    """The Config to run with. On ModelArts its data is copied in before, and its results are copied out at the end,
    even if the run fails. Elsewhere, and in a launcher's scheduler, nothing happens."""
    if not config.enable_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        yield config
        return
    moxing, mark = _moxing(config), _mark_file(config)
    mark.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the first rank copies; the others wait here and find its mark
        is_first = mark.stat().st_size == 0
        if is_first:
            _copy_in(config, moxing)
        file.write("started\n")
    is_failing = True
    try:
        yield _with_local_paths(config)
        is_failing = False
    finally:
        with mark.open("a") as file:
            file.write("ended\n")
        if is_first:
            _copy_out(config, moxing, mark, is_failing=is_failing)


def _copy_out(config: Config, moxing: ModuleType, mark: Path, *, is_failing: bool) -> None:
    give_up = time.monotonic() + (0 if is_failing else SECONDS_FOR_OTHERS)
    while time.monotonic() < give_up and mark.read_text().count("started") > mark.read_text().count("ended"):
        time.sleep(0.1)
    mark.unlink()
    if not config.train_url:
        print(f"ModelArts: train_url is not given; the results stay in {config.output_path}", flush=True)
        return
    try:
        _copy(moxing, "train_url", config.output_path, config.train_url)
    except UserError as error:
        if not is_failing:
            raise
        print(f"ModelArts: {error}", file=sys.stderr)  # the error that made the run fail is the one to report
