# SPDX-License-Identifier: Apache-2.0
"""Getting CIFAR-10, and published weights, from a server that breaks off, refuses or sends something else."""

import hashlib
import io
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, cifar_records, files_in, make_split, run_main, run_python

from model_utils.config import get_config
from src.data.cifar10 import CLASS_NAMES
from src.data.formats import build_reader
from src.utils.download import WEIGHTS

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
# The status, the content, and how much of it is sent before the server breaks off.
ANSWERS = {**dict.fromkeys(("well", "slow", "no ranges"), (200, ARCHIVE, None)), "broken": (200, ARCHIVE, 5000),
           **dict.fromkeys(("missing", "slowly missing"), (404, b"", 0)), "busy": (503, b"", 0),
           "page": (200, b"<html>please log in</html>", None)}


class Server:
    """Answers one request after the other as the list says, from where the request wants it."""

    def __init__(self, *answers: str) -> None:
        self.left = list(answers)
        self.ranges: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers["Range"])
                answer = outer.left.pop(0)
                status, content, end = ANSWERS[answer]
                start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if answer in ("well", "broken") else 0
                time.sleep(2 if "slow" in answer else 0)
                self.send_response(206 if start else status)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                self.wfile.write(content[start:end and start + end])

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
        assert server.ranges == [None, "bytes=5000-", "bytes=5000-"]
        check_set(tmp_path / "data")
        assert "was already" in download(tmp_path / "data", server.url).out


@pytest.mark.parametrize(("answers", "flags", "said"), [
    (["missing"], [], "404"), (["page"], [], "looks like a web page"),
    (["slow"], ["--retries=0", "--timeout=1"], "elsewhere and save it as")])
def test_a_download_that_fails_leaves_nothing(tmp_path, answers, flags, said):
    with Server(*answers) as server:
        outcome = download(tmp_path, server.url, *flags)
    assert outcome.status == 1 and said in outcome.err and "Traceback" not in outcome.err
    assert server.url in outcome.err and not files_in(tmp_path)


def test_the_next_call_goes_on_with_what_is_there(tmp_path):
    with Server("broken", "well") as server:
        assert download(tmp_path, server.url, "--retries=0").status == 1
        assert files_in(tmp_path) == {"cifar-10-binary.tar.gz.part"}
        assert download(tmp_path, server.url).status == 0 and server.ranges == [None, "bytes=5000-"]
    check_set(tmp_path)


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
    assert said in run_python(SCRIPT, tmp_path / "in", "--url=http://127.0.0.1:9/a.tar.gz", "--md5=").refusal()
    assert files_in(tmp_path) == {"in/a.tar.gz"}


# Published weights; the table gets a row for this server's file


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Ask for the file of this name: the command, with flags, and the file in the cache."""
    file = f"vgg-{hashlib.sha256(ARCHIVE).hexdigest()[:8]}.pth"
    monkeypatch.setitem(WEIGHTS, "torchvision:vgg", f"https://localhost/models/{file}")
    monkeypatch.setenv("VGG_CACHE", str(tmp_path / "cache"))

    def ask(server: str, *flags: str):
        monkeypatch.setenv("VGG_MIRROR", server.rpartition("/")[0])
        return run_main("scripts.download_weights", "torchvision:vgg", *flags)

    return ask, tmp_path / "cache" / file


@pytest.mark.parametrize("answers", [["broken", "well"], ["broken", "no ranges"], ["slow", "well"]])
def test_weights_are_whole_whatever_the_server_does(weights, answers):
    ask, file = weights
    with Server(*answers) as server:
        outcome = ask(server.url, "--timeout=1")
        assert outcome.status == 0 and outcome.out == f"{file}\n" and file.read_bytes() == ARCHIVE, outcome
        assert ask(server.url).status == 0 and not server.left and files_in(file.parent) == {file.name}
    file.write_bytes(b"damaged")
    assert ask(server.url).status == 1 and "remove it" in ask(server.url).err


def test_weights_that_are_not_those_wanted_are_refused(weights):
    ask, file = weights
    with Server("page") as server:
        err = ask(server.url).err
    assert file.stem[-8:] in err and hashlib.sha256(ANSWERS["page"][1]).hexdigest() in err and not files_in(file.parent)
    outcome = ask("http://127.0.0.1:9/", "--retries=1")  # nobody answers there
    assert outcome.status == 1 and f"http://127.0.0.1:9/{file.name}" in outcome.err, outcome
    assert "refused" in outcome.err and f"save it as {file}\n" in outcome.err and not files_in(file.parent)


@pytest.mark.parametrize(("answer", "status"), [("slow", 0), ("slowly missing", 1)])
def test_one_process_downloads_for_all(tmp_path, answer, status):
    with Server(answer) as server, ThreadPoolExecutor() as pool:
        code = ("import pathlib, src.utils.download as d\n"
                f"d.fetch({server.url!r}, pathlib.Path({str(tmp_path / 'file')!r}), retries=0, timeout=20)")
        outcomes = list(pool.map(lambda _: run_python("-c", code), range(3)))
    assert [outcome.status for outcome in outcomes] == [status] * 3, outcomes
    assert files_in(tmp_path) == ({"file"} if status == 0 else set())
