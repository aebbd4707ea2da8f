# SPDX-License-Identifier: Apache-2.0
"""Files from the network: checked downloads that go on where they broke off, and published weights by their names."""

import fcntl
import hashlib
import os
import re
import socket
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import Request, url2pathname, urlopen

from tqdm import tqdm

from model_utils.errors import REFUSALS, UserError
from model_utils.reading import check_regular
from src.utils.files import writing

MOST_BYTES = 2**30  # of one file: nearly twice the largest
# What torchvision and MindCV publish. The eight digits in a file's name are the first of its SHA-256, in both projects.
WEIGHTS = {f"{project}:{file.partition('-')[0]}": f"https://{folder}/{file}" for project, folder, files in (
    ("torchvision", "download.pytorch.org/models", (
        "vgg11-8a719046.pth", "vgg11_bn-6002323d.pth", "vgg13-19584684.pth", "vgg13_bn-abd245e5.pth",
        "vgg16-397923af.pth", "vgg16_bn-6c64b313.pth", "vgg19-dcbb9e9d.pth", "vgg19_bn-c79401a0.pth")),
    ("mindcv", "download.mindspore.cn/toolkits/mindcv/vgg", (
        "vgg11-ef31d161.ckpt", "vgg13-da805e6e.ckpt", "vgg16-95697531.ckpt", "vgg19-bedee7b6.ckpt"))) for file in files}


def weights_file(named: str, *, retries: int = 5, timeout: int = 30) -> Path:
    """The file of this path or, for the name of published weights, in the cache; downloaded before if it is missing.

    UserError for an unknown name, and as `fetch`.
    """
    if not named.startswith(("torchvision:", "mindcv:")):
        return Path(named)
    if named not in WEIGHTS:
        raise UserError(f"{named}: there are no such weights; published are {', '.join(WEIGHTS)}")
    folder, _, file = WEIGHTS[named].rpartition("/")
    folder = (os.environ.get("VGG_MIRROR") or folder).rstrip("/")
    cache = os.environ.get("VGG_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vgg_mindspore")
    path = Path(os.path.expanduser(cache), file)
    fetch(f"{folder}/{file}", path, path.stem.rpartition("-")[2], retries=retries, timeout=timeout)
    return path


def fetch(url: str, path: Path, digest: str = "", algorithm: str = "sha256", *, retries: int, timeout: int) -> None:
    """Download to `path`, unless it is there. It appears when it is complete and its digest begins with `digest`.

    An incomplete download stays as PATH.part, and the next call goes on with it. One process downloads, others that
    want the same file wait for it. UserError if the server refuses, sends another file, or breaks off too often.
    """
    if path.is_file():  # people may have put it there
        return _check_digest(path, digest, algorithm)
    if not re.match(r"(https?|file)://[^/@]*/", url, re.IGNORECASE):  # a password would never be sent
        raise UserError("an address (--url, VGG_MIRROR) must begin with http://, https:// or file://, without a "
                        "password (***@)")
    if url.lower().startswith("file:"):
        local = Path(url2pathname(url[7:].removeprefix("localhost")))
        if not local.exists():
            raise UserError(f"{url}: there is no file {local}")
        check_regular(local, MOST_BYTES)
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process downloads {path}; waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.is_file():
                return part.unlink(missing_ok=True)
            if not os.fstat(file.fileno()).st_nlink:  # the other process has removed it
                raise UserError(f"{url}: another process could not download it", 1)
            try:
                _download(url, path, file, retries, timeout)
                _check_digest(part, digest, algorithm, url)
                os.replace(part, path)
            finally:
                if not os.fstat(file.fileno()).st_size:
                    part.unlink(missing_ok=True)


def _check_digest(path: Path, digest: str, algorithm: str, url: str = "") -> None:
    """UserError if the digest of the file begins otherwise. A file that was just downloaded from `url` is removed."""
    check_regular(path, MOST_BYTES)
    content = path.read_bytes()
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if not found.startswith(digest.lower()):
        advice = "; it looks like a web page, as a proxy or login sends it" if content.lstrip()[:1] == b"<" else ""
        if url:
            path.unlink()
        raise UserError(f"{url or path}: is not the file wanted: {algorithm.upper()} {found} instead of {digest}, "
                        f"{len(content):,} bytes{advice}{'' if url else '; remove it'}", 1)


def _download(url: str, path: Path, file: BinaryIO, retries: int, timeout: int) -> None:
    """Append to `file` what it lacks. UserError if that fails once more than `retries` times."""
    print(f"downloading {url} to {path}", file=sys.stderr, flush=True)
    for failures in range(retries + 1):
        done = os.fstat(file.fileno()).st_size
        headers = {"User-Agent": "vgg-mindspore"} | ({"Range": f"bytes={done}-"} if done else {})
        try:
            with urlopen(Request(url, headers=headers), timeout=timeout) as response:
                if not (response.headers["Content-Range"] or "").startswith(f"bytes {done}-"):  # all of it
                    done = file.truncate(0)
                length = response.headers["Content-Length"]
                total = done + int(length) if length else MOST_BYTES
                if total > MOST_BYTES:
                    raise UserError(f"{url}: has more than {MOST_BYTES:,} bytes", 1)
                with tqdm(total=length and total, initial=done, unit="B", unit_scale=True, disable=None) as bar:
                    while done < total and (content := response.read1(2**16)):
                        done += file.write(content)
                        bar.update(len(content))
            if not length or done == total:
                return
            raise ConnectionError(f"the server broke off after {done:,} of {total:,} bytes")
        except ValueError as error:
            raise UserError(f"{url}: {error}") from None
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in REFUSALS:  # of the disk
                raise
            reason, status = str(error).strip("<>") or type(error).__name__, getattr(error, "code", 500)
            if status == 416:  # it has less than is here
                file.truncate(0)
            elif status < 500 or isinstance(getattr(error, "reason", None), socket.gaierror):  # 404, or no network
                break
        if failures < retries:
            print(f"{reason}; trying again ({failures + 1} of {retries})", file=sys.stderr, flush=True)
            time.sleep(min(2**failures, 30))
    raise UserError(f"{url}: {reason}\n  the same command continues the download; or download the file "
                    f"elsewhere and save it as {path}", 1)
