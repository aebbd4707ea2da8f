# SPDX-License-Identifier: Apache-2.0
"""Getting CIFAR-10 from a server that breaks off, refuses or sends something else."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, cifar_records, files_in, make_split, run_python

from model_utils.config import get_config
from src.data.cifar10 import CLASS_NAMES
from src.data.formats import build_reader

SCRIPT = ROOT / "scripts/download_cifar10.py"
RECORDS = 40


def make_archive(*links: str, without: str = "") -> bytes:
    """The official archive in small: one folder with all six files, the names of the classes, a page, and links, which
    must not be followed or unpacked."""
    files = {f"data_batch_{number}.bin": cifar_records(make_split(RECORDS, seed=number)).tobytes()
             for number in range(1, 6)}
    files |= {"test_batch.bin": cifar_records(make_split(RECORDS, seed=9)).tobytes(),
              "batches.meta.txt": "\n".join(CLASS_NAMES).encode() + b"\n\n", "readme.html": b"<html></html>"}
    files.pop(without, None)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(info)
    return buffer.getvalue()


ARCHIVE = make_archive("x", "../../outside")
ANSWERS = {"well": (200, ARCHIVE, len(ARCHIVE)), "broken": (200, ARCHIVE[:5000], len(ARCHIVE)),
           "busy": (503, b"", 0), "missing": (404, b"", 0), "page": (200, b"<html>please log in</html>", 26)}


class Server:
    """Answers one request after the other as the list says."""

    def __init__(self, *answers: str) -> None:
        self.left = list(answers)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content, length = ANSWERS[outer.left.pop(0)]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/some/cifar-10-binary.tar.gz"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()


def download(dest: Path, url: str, *flags: str):
    """The command as users call it, in a process of its own."""
    return run_python(SCRIPT, dest, f"--url={url}", f"--md5={hashlib.md5(ARCHIVE).hexdigest()}", "--timeout=5", *flags)


def check_set(dest: Path) -> None:
    expected = {f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)}
    expected |= {"cifar-10-verify-bin/test_batch.bin", "cifar-10-batches-bin/batches.meta.txt"}
    assert files_in(dest) - {"cifar-10-binary.tar.gz"} == expected
    train, test = (build_reader(get_config([f"--data_dir={dest}"]), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5 * RECORDS, RECORDS)
    assert test.labels.tolist() == make_split(RECORDS, seed=9).labels.tolist()


def test_a_set_is_complete_after_failures_and_then_left_alone(tmp_path):
    with Server("broken", "busy", "well") as server:
        outcome = download(tmp_path / "data", server.url)
        assert outcome.status == 0 and "--data_dir=" in outcome.out and not server.left, outcome
        check_set(tmp_path / "data")
        assert "was already" in download(tmp_path / "data", server.url).out


@pytest.mark.parametrize(("answers", "flags", "said"), [
    (["missing"], [], "404"), (["page"], [], "looks like a web page"),
    (["broken"], ["--retries=0"], "can also be downloaded elsewhere")])
def test_a_download_that_fails_leaves_nothing(tmp_path, answers, flags, said):
    with Server(*answers) as server:
        outcome = download(tmp_path, server.url, *flags)
    assert outcome.status == 1 and said in outcome.err and "Traceback" not in outcome.err
    assert server.url in outcome.err and not files_in(tmp_path)


def test_an_archive_that_is_there_is_unpacked_without_a_network(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE)
    assert download(tmp_path, "http://127.0.0.1:9/cifar-10-binary.tar.gz").status == 0
    check_set(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cifar-10-binary.tar.gz").write_bytes(b"no archive")
    outcome = download(tmp_path / "other", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    assert outcome.status == 1 and "other/cifar-10-binary.tar.gz: is not the file wanted" in outcome.err


@pytest.mark.parametrize(("archive", "said"), [
    (make_archive("data_batch_2.bin", without="data_batch_2.bin"), "data_batch_2.bin"),
    (make_archive(without="data_batch_2.bin"), "data_batch_2.bin"), (ARCHIVE[:9000], "cannot be unpacked")],
    ids=["link", "file missing", "cut short"])
def test_an_archive_that_is_wrong_leaves_no_half_set(tmp_path, archive, said):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar.gz").write_bytes(archive)
    outcome = run_python(SCRIPT, tmp_path / "in", "--url=http://127.0.0.1:9/a.tar.gz", "--md5=")
    assert outcome.status == 2 and said in outcome.err and "Traceback" not in outcome.err
    assert files_in(tmp_path) == {"in/a.tar.gz"}
