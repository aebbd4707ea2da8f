# SPDX-License-Identifier: Apache-2.0
"""ModelArts: data and checkpoint copied in before a run, results copied out behind it, once per host."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_utils import local_adapter
from model_utils.archives import extract
from model_utils.errors import UserError
from model_utils.schema import Config

Process = list[int]  # process number and start time, which no other process of this host ever had together


def _moxing(config: Config) -> Any:
    try:
        import moxing
    except ImportError:
        raise UserError(f"enable_modelarts: is True (from {config.origin('enable_modelarts')}), but the Python "
                            "module moxing is not installed; it exists on ModelArts alone. Elsewhere leave "
                            "enable_modelarts out or set it to False") from None
    return moxing.file


def _say(text: str) -> None:
    print(f"ModelArts: {text}", flush=True)


# Which process is which


def _start_time(pid: int) -> int:
    """When a process began, in ticks of the system; -1 if it is not there, 0 where the system does not say."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return -1
        except PermissionError:
            pass
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def _identify(pid: int) -> Process:
    return [pid, _start_time(pid)]


def _is_alive(process: Process) -> bool:
    return _start_time(process[0]) == process[1]


def _job() -> str:
    """What the processes of one job on one host have in common, and no later job has."""
    parent = os.getppid() if local_adapter.launcher() else os.getpid()
    return f"{os.environ.get('JOB_ID', '')}:{_identify(parent)}"


class Desk:
    """Where the processes of a job on one host agree on who copies: the first one in, and the last one out.

    What they know of each other lies in a file beside the local data, guarded by a lock. It holds only as long as a
    process that wrote it lives, so that what a dead job has left behind makes no later one skip its work.
    """

    def __init__(self, config: Config) -> None:
        places = json.dumps([config.data_url, config.data_path, config.checkpoint_url, config.load_path,
                             config.train_url, config.output_path])
        self._me, self._job = _identify(os.getpid()), _job() + hashlib.sha256(places.encode()).hexdigest()
        local = Path(config.data_path)
        self._mark = local.with_name(f".{local.name}.vgg-job.json")
        self._lock = local.with_name(f".{local.name}.vgg-job.lock")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a")
        except OSError as error:
            raise UserError(f"data_path: {self._lock.parent} cannot be written: {error.strerror}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the system, should this process die
            yield

    def _present(self) -> list[Process]:
        """The living processes of this job that are in; none if the mark is not of this job."""
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            members = mark["members"] if mark["job"] == self._job else []
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [member for member in members if member != self._me and _is_alive(member)]

    @contextmanager
    def entering(self) -> Iterator[bool]:
        """Whether this process has to do the work; it counts as done for the others when the block ends well."""
        with self._locked():
            present = self._present()
            yield not present
            text = json.dumps({"job": self._job, "members": [*present, self._me]})
            self._mark.write_text(text, encoding="utf-8")

    @contextmanager
    def leaving(self) -> Iterator[bool]:
        """Whether this process is the last one of the job on this host."""
        with self._locked():
            present = self._present()
            if present:
                self._mark.write_text(json.dumps({"job": self._job, "members": present}), encoding="utf-8")
            else:
                self._mark.unlink(missing_ok=True)
            yield not present


# Copying


def _copy_in(file: Any, key: str, url: str, target: Path) -> None:
    """A folder as a folder, a file into it. UserError if it is not there."""
    exists, is_folder = getattr(file, "exists", None), getattr(file, "is_directory", None)
    _say(f"copying {url} to {target}")
    try:
        if exists and not exists(url):
            raise UserError(f"{key}: there is no {url}")
        target.mkdir(parents=True, exist_ok=True)
        if is_folder and not is_folder(url):
            file.copy(url, str(target / url.rstrip("/").rsplit("/", 1)[-1]))
        else:
            file.copy_parallel(url, str(target))
    except UserError:
        raise
    except Exception as error:  # whatever the storage answers
        raise UserError(f"{key}: {url} could not be copied to {target}: {error}") from error


def _zip_stem(config: Config) -> str:
    """The zip file's name without its ending, and the folder's in it; empty where every zip is meant."""
    return (config.modelarts_dataset_unzip_name or "").removesuffix(".zip")


def _unzip(config: Config) -> None:
    folder, name = Path(config.data_path), _zip_stem(config)
    found = [folder / f"{name}.zip"] if name else sorted(folder.glob("*.zip"))
    archives = [path for path in found if path.is_file()]
    if not archives:
        _say(f"no zip file to unpack in {folder}" + (f" ({found[0].name})" if found else "") + "; the data is used as "
             "it lies there")
    for path in archives:
        _say(f"unpacking {path}")
        extract(path, folder)


def _bring_in(config: Config, file: Any) -> None:
    if config.data_url:
        _copy_in(file, "data_url", config.data_url, Path(config.data_path))
        if config.need_modelarts_dataset_unzip:
            _unzip(config)
    if config.checkpoint_url:
        _copy_in(file, "checkpoint_url", config.checkpoint_url, Path(config.load_path))
    Path(config.output_path).mkdir(parents=True, exist_ok=True)


def _bring_out(config: Config, file: Any) -> None:
    if not config.train_url:
        _say(f"train_url is not given; the results stay in {config.output_path}")
        return
    _say(f"copying {config.output_path} to {config.train_url}")
    try:
        file.copy_parallel(config.output_path, config.train_url)
    except Exception as error:
        raise UserError(f"train_url: {config.output_path} could not be copied to {config.train_url}: "
                            f"{error}") from error


def _in_output(config: Config, name: str) -> str:
    """The path of a key inside of the folder that is copied out."""
    root, path = Path(config.output_path), Path(getattr(config, name))
    inside = Path(os.path.normpath(root / path))  # an absolute path stays as it is
    return str(inside if inside.is_relative_to(root) else root / inside.name)


def _on_this_host(config: Config) -> Config:
    """The run with its paths where things lie here."""
    values = {name: _in_output(config, name) for name in ("ckpt_path", "file_name")}
    if config.data_url and not config.data_dir:
        inner = Path(config.data_path) / _zip_stem(config)
        values["data_dir"] = str(inner if inner.is_dir() else config.data_path)
    return config.taking(values, "enable_modelarts")


@contextmanager
def on_platform(config: Config) -> Iterator[Config]:
    """The Config to run with. Inside ModelArts its data is there, and its results are copied out at the end, also when
    the run fails. Elsewhere, and in a launcher's scheduler, nothing happens."""
    if not config.enable_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        yield config
        return
    file, desk = _moxing(config), Desk(config)
    with desk.entering() as is_first:
        if is_first:
            _bring_in(config, file)
    try:
        yield _on_this_host(config)
    except BaseException:
        _leave(config, file, desk, is_failing=True)
        raise
    _leave(config, file, desk, is_failing=False)


def _leave(config: Config, file: Any, desk: Desk, *, is_failing: bool) -> None:
    with desk.leaving() as is_last:
        try:
            if is_last:
                _bring_out(config, file)
        except UserError as error:
            if not is_failing:
                raise
            print(f"ModelArts: {error}", file=sys.stderr)  # what made the run fail is the error to report
