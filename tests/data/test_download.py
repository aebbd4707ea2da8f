# SPDX-License-Identifier: Apache-2.0
"""Getting CIFAR-10: from a server that breaks off, refuses, lies or is slow; and unpacking what must not be trusted."""

import fcntl
import hashlib
import io
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, cifar_records, make_split, run_python

from src.data.cifar10 import CLASS_NAMES, Cifar10Reader

SCRIPT = ROOT / "scripts/download_cifar10.py"
RECORDS = 40


def make_archive(names=None) -> bytes:
    """The official archive in small: one folder with all six files, the names of the classes and a page."""
    files = {f"data_batch_{number}.bin": cifar_records(make_split(RECORDS, seed=number)).tobytes()
             for number in range(1, 6)}
    files |= {"test_batch.bin": cifar_records(make_split(RECORDS, seed=9)).tobytes(),
              "batches.meta.txt": "\n".join(CLASS_NAMES).encode() + b"\n\n", "readme.html": b"<html></html>"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names or files:
            add(archive, f"cifar-10-batches-bin/{name}", files[name])
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


class Server:
    """Answers one request after the other as the list says; the last kind of answer goes on."""

    def __init__(self, content: bytes, *answers: str) -> None:
        self.content, self.answers, self.asked = content, list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                outer.asked.append(self.headers.get("Range"))
                getattr(outer, f"_{answer}")(self)

            def log_message(self, *args) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/some/cifar-10-binary.tar.gz"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _begin(self, request) -> bytes:
        """The head of an answer that knows ranges; returns the body."""
        start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        if start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return b""
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        return self.content[start:]

    def _well(self, request) -> None:
        request.wfile.write(self._begin(request))

    def _broken(self, request) -> None:
        body = self._begin(request)
        request.wfile.write(body[:max(1, len(body) // 2)])

    def _slow(self, request) -> None:
        body = self._begin(request)
        for part in range(0, len(body), len(body) // 8 + 1):
            request.wfile.write(body[part:part + len(body) // 8 + 1])
            time.sleep(0.1)

    def _stuck(self, request) -> None:
        body = self._begin(request)
        request.wfile.write(body[:len(body) // 3])
        request.wfile.flush()
        time.sleep(1.5)

    def _whole(self, request) -> None:
        """Of a server that does not know ranges."""
        request.send_response(200)
        request.end_headers()
        request.wfile.write(self.content)

    def _missing(self, request) -> None:
        request.send_error(404)

    def _busy(self, request) -> None:
        request.send_error(503)

    def _page(self, request) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"<html>please log in</html>")


ARCHIVE = make_archive()


def download(dest: Path, server: Server, *flags: str, md5: str | None = None):
    """The command as users call it, in a process of its own."""
    wanted = hashlib.md5(ARCHIVE).hexdigest() if md5 is None else md5
    return run_python(SCRIPT, dest, f"--url={server.url}", f"--md5={wanted}", "--timeout=1", *flags)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_set(dest: Path) -> None:
    expected = {f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)}
    expected |= {"cifar-10-verify-bin/test_batch.bin", "cifar-10-batches-bin/batches.meta.txt",
                 "cifar-10-verify-bin/batches.meta.txt"}
    assert files_in(dest) == expected
    train, test = Cifar10Reader(dest, "train"), Cifar10Reader(dest, "test")
    assert (len(train), len(test)) == (5 * RECORDS, RECORDS)
    assert test.labels.tolist() == make_split(RECORDS, seed=9).labels.tolist()


@pytest.mark.parametrize(("answers", "requests"), [
    (["well"], 1), (["slow"], 1), (["broken", "broken", "well"], 3), (["busy", "well"], 2), (["stuck", "well"], 2),
    (["broken", "whole"], 2)])
def test_a_server_that_breaks_off_or_is_slow_is_asked_for_the_rest(tmp_path, answers, requests):
    with Server(ARCHIVE, *answers) as server:
        outcome = download(tmp_path / "data", server)
    assert outcome.status == 0, outcome
    check_set(tmp_path / "data")
    assert len(server.asked) == requests and server.asked[0] is None
    if answers[0] in ("broken", "stuck"):
        assert all(asked and asked != "bytes=0-" for asked in server.asked[1:])
    assert "100 %" in outcome.out or answers[-1] == "whole"
    assert "--data_dir=" in outcome.out


def test_a_command_that_gave_up_goes_on_when_it_is_given_again_and_a_complete_set_is_left_alone(tmp_path):
    with Server(ARCHIVE, "broken", "busy") as server:
        outcome = download(tmp_path, server, "--retries=1")
    assert outcome.status == 1 and "goes on from here" in outcome.err
    half = (tmp_path / ".cifar-10-binary.tar.gz.part").stat().st_size
    assert half == len(ARCHIVE) // 2 and not list(tmp_path.glob("cifar-10-*"))
    with Server(ARCHIVE, "well") as server:
        assert download(tmp_path, server).status == 0
        assert server.asked == [f"bytes={half}-"]
        check_set(tmp_path)
        assert "was already" in download(tmp_path, server).out
        assert len(server.asked) == 1


def test_a_part_that_is_complete_is_not_fetched_again(tmp_path):
    (tmp_path / ".cifar-10-binary.tar.gz.part").write_bytes(ARCHIVE)
    with Server(ARCHIVE, "well") as server:
        assert download(tmp_path, server, "--keep_archive").status == 0
    assert server.asked == [f"bytes={len(ARCHIVE)}-"]
    assert (tmp_path / "cifar-10-binary.tar.gz").read_bytes() == ARCHIVE


def test_a_part_of_another_file_is_thrown_away(tmp_path):
    (tmp_path / ".cifar-10-binary.tar.gz.part").write_bytes(b"something else")
    with Server(ARCHIVE, "well") as server:
        assert download(tmp_path, server).status == 0
    assert server.asked == ["bytes=14-", None]
    check_set(tmp_path)


@pytest.mark.parametrize(("answer", "said"), [("missing", "404"), ("page", "looks like a web page"),
                                              ("page", "MD5 ")])
def test_a_missing_or_a_wrong_file_is_said_at_once_and_nothing_stays(tmp_path, answer, said):
    with Server(ARCHIVE, answer) as server:
        outcome = download(tmp_path, server)
    assert outcome.status == 1 and said in outcome.err and "Traceback" not in outcome.err
    assert server.url in outcome.err and len(server.asked) == 1
    assert not files_in(tmp_path)


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    outcome = run_python(SCRIPT, tmp_path, "--url=file:///absent")
    os.close(lock)
    assert outcome.status == 1 and f"another process is loading into {tmp_path}" in outcome.err


def test_nobody_there(tmp_path):
    outcome = run_python(SCRIPT, tmp_path, "--url=http://127.0.0.1:9/x.tar.gz", "--retries=0")
    assert outcome.status == 1 and "refused" in outcome.err.lower()


def test_an_archive_that_lacks_a_file_leaves_no_half_set(tmp_path):
    content = make_archive(["data_batch_1.bin", "test_batch.bin"])
    with Server(content, "well") as server:
        outcome = download(tmp_path, server, md5="")
    assert outcome.status == 2 and "data_batch_2.bin" in outcome.err
    assert not list(tmp_path.glob("cifar-10-*")) and not (tmp_path / ".unpacked").exists()


def test_an_address_that_is_none_and_a_folder_that_cannot_be_written(tmp_path):
    assert run_python(SCRIPT, tmp_path, "--url=cifar10").status == 2
    (tmp_path / "file").write_text("in the way")
    outcome = run_python(SCRIPT, tmp_path / "file/below", "--url=http://127.0.0.1:9/x")
    assert outcome.status == 2 and "Traceback" not in outcome.err
