# SPDX-License-Identifier: Apache-2.0
"""The processes of one job on this host: start them together, pass signals on, end together, leave none behind."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model_utils.local_adapter import signal_when_parent_ends

POLL_SECONDS = 0.1
FAILURE_GRACE_S = 5  # a rank that waits for a dead one will hardly end by itself
LAST_LINES = 20
FRAMEWORK_LINES = ("[WARNING] ", "[INFO] ")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Process(NamedTuple):
    """One process to start: what it adds to the environment, and where its output goes."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    is_helper: bool = False  # there for the others alone: when they have ended it may go

    def __str__(self) -> str:
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.env.items()]
        return " ".join([f"{self.name}:", *settings, shlex.join(self.command), f"> {shlex.quote(str(self.log))} 2>&1"])


class Job:
    """Runs processes to their end. The first one that fails takes the others with it.

    A signal is passed on, and the processes get `grace_s` seconds to save what they have and to end.
    """

    def __init__(self, processes: Sequence[Process], *, grace_s: float, show: str | None = None) -> None:
        self._processes, self._grace_s = processes, grace_s
        self._ranks = [process for process in processes if not process.is_helper]
        self._shown = next((Tail(process.log) for process in processes if process.name == show), None)
        self._running: dict[str, subprocess.Popen] = {}
        self._signal: signal.Signals | None = None
        self._is_ending = False

    def run(self) -> int:
        """0 if every process ended well; else the status of the first that failed, or 128 + the signal passed on."""
        previous = {number: signal.signal(number, self._on_signal) for number in PASSED_ON  # ignored ones stay so
                    if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN}
        try:
            for process in self._processes:
                self._start(process)
            failed = self._wait()
            self._end()
        finally:
            self._send(signal.SIGKILL, self._processes)
            for child in self._running.values():
                child.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signal is not None:
            return 128 + self._signal
        if failed is None:
            return 0
        _report(*failed)
        return failed[1]

    def _start(self, process: Process) -> None:
        process.log.parent.mkdir(parents=True, exist_ok=True)
        with process.log.open("wb") as log:
            # A session of its own: a Ctrl-C on the terminal reaches it through us, and once.
            self._running[process.name] = subprocess.Popen(process.command, env=os.environ | process.env, stdout=log,
                                                           stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                           start_new_session=True, preexec_fn=_end_with_launcher)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._is_ending:  # asked twice: now
            self._send(signal.SIGKILL, self._processes)
        self._signal = self._signal or signal.Signals(number)

    def _wait(self) -> tuple[Process, int] | None:
        """Until all have ended, a signal has come, or one has failed: that one and its status."""
        while self._signal is None:
            alive = self._alive()  # asked first, so that nobody can fail unseen between the two questions
            self._show_new_output()
            failed = self._failed(self._processes if alive else self._ranks)
            if failed or not alive:
                return failed
            time.sleep(POLL_SECONDS)
        return None

    def _failed(self, processes: Sequence[Process]) -> tuple[Process, int] | None:
        """The first that failed, a helper only if no other did, and its status as a shell gives it."""
        for process in sorted(processes, key=lambda process: process.is_helper):
            code = self._running[process.name].poll()
            if code:
                return process, code if code > 0 else 128 - code
        return None

    def _end(self) -> None:
        """Ask those that still run to end, with the signal that came to us if one did, and give them time for it."""
        self._is_ending = True
        asked = self._signal if self._signal == signal.SIGINT else signal.SIGTERM  # the ranks heed these two
        grace_s = self._grace_s if self._signal else min(self._grace_s, FAILURE_GRACE_S)
        self._send(asked, self._alive())
        deadline = time.monotonic() + grace_s
        while self._alive() and time.monotonic() < deadline:
            self._show_new_output()
            time.sleep(POLL_SECONDS)
        self._show_new_output()
        for process in self._alive():
            print(f"{process.name} did not end within {grace_s:g} s of {asked.name}; it is killed",
                  file=sys.stderr)

    def _alive(self) -> list[Process]:
        """Those that still run, helpers aside."""
        return [process for process in self._ranks if self._running[process.name].poll() is None]

    def _send(self, number: int, processes: Sequence[Process]) -> None:
        for process in processes:
            child = self._running.get(process.name)
            if child is not None and child.poll() is None:
                os.killpg(child.pid, number)

    def _show_new_output(self) -> None:
        if self._shown is None:
            return
        try:
            sys.stdout.write(self._shown.new_lines())
            sys.stdout.flush()
        except OSError:  # nobody reads it any more, as with `| head` or a closed terminal: the ranks go on all the same
            self._shown = None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Tail:
    """A log that grows; the framework's start-up lines stay in it, what the script says is handed out once."""

    def __init__(self, log: Path) -> None:
        self._log, self._position = log, 0

    def new_lines(self) -> str:
        """The whole lines that have come since the last call."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[:text.rfind(b"\n") + 1]
        self._position += len(whole)
        return "".join(_without_framework(whole.decode("utf-8", "replace").splitlines(keepends=True)))


def _without_framework(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if not line.startswith(FRAMEWORK_LINES)]


def _end_with_launcher() -> None:
    """Runs in the child: should the launcher be killed, it can pass nothing on."""
    signal_when_parent_ends(signal.SIGKILL)


def _report(process: Process, status: int) -> None:
    lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(f"\n{process.name} failed with status {status}; the end of {process.log}:", file=sys.stderr)
    for line in (_without_framework(lines) or lines)[-LAST_LINES:]:
        print(f"  {line}", file=sys.stderr)
