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

POLL_SECONDS = 0.1
LAST_LINES = 20
FRAMEWORK_LINES = ("[WARNING] ", "[INFO] ")


class Process(NamedTuple):
    """One process to start: what it adds to the environment, and where its output goes."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path

    def __str__(self) -> str:
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in self.env.items())
        return f"{self.name}: {settings} {shlex.join(self.command)} > {shlex.quote(str(self.log))} 2>&1"


class Job:
    """Runs processes to their end. The first one that fails takes the others with it, within `grace_s` seconds."""

    def __init__(self, processes: Sequence[Process], *, grace_s: float, show: str | None = None) -> None:
        self._processes, self._grace_s, self._show = processes, grace_s, show
        self._running: dict[str, subprocess.Popen] = {}
        self._signal: int | None = None
        self._deadline = float("inf")  # once a signal was passed on
        self._shown = 0

    def run(self) -> int:
        """0 if every process ended well; else the status of the first that failed, or 128 + the signal passed on."""
        previous = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for process in self._processes:
                self._start(process)
            failed = self._wait()
            if failed:
                self._report(*failed)
            self._end_rest()
        finally:
            self._signal_all(signal.SIGKILL)
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signal is not None:
            return 128 + self._signal
        return failed[1] if failed else 0

    def _start(self, process: Process) -> None:
        process.log.parent.mkdir(parents=True, exist_ok=True)
        with process.log.open("wb") as log:
            # A session of its own: a Ctrl-C on the terminal reaches it through us, and once.
            self._running[process.name] = subprocess.Popen(process.command, env=os.environ | process.env, stdout=log,
                                                           stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                           start_new_session=True)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._signal_all(signal.SIGKILL if self._signal is not None else number)
        self._signal, self._deadline = number, time.monotonic() + self._grace_s

    def _signal_all(self, number: int) -> None:
        for child in self._running.values():
            if child.poll() is None:
                os.killpg(child.pid, number)

    def _wait(self) -> tuple[Process, int] | None:
        """Until all have ended, one has failed (that one and its status), or a signal was not heeded in time."""
        while True:
            self._show_new_output()
            status = [self._running[process.name].poll() for process in self._processes]
            failed = next((index for index, code in enumerate(status) if code), None)
            if failed is not None:
                code = status[failed]
                return self._processes[failed], code if code > 0 else 128 - code
            if all(code == 0 for code in status) or time.monotonic() > self._deadline:
                return None
            time.sleep(POLL_SECONDS)

    def _end_rest(self) -> None:
        if self._signal is None:
            self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and any(child.poll() is None for child in self._running.values()):
            time.sleep(POLL_SECONDS)
        self._show_new_output()

    def _show_new_output(self) -> None:
        log = next((process.log for process in self._processes if process.name == self._show), None)
        if log is None or not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._shown)
            text = file.read()
        self._shown += len(text)
        # The framework's start-up lines stay in the log; what the script says goes on to the console.
        lines = text.decode("utf-8", "replace").splitlines(keepends=True)
        sys.stdout.write("".join(line for line in lines if not line.startswith(FRAMEWORK_LINES)))
        sys.stdout.flush()

    def _report(self, process: Process, status: int) -> None:
        if self._signal is not None:
            return
        print(f"\n{process.name} failed with status {status}; the end of {process.log}:", file=sys.stderr)
        for line in process.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
            print(f"  {line}", file=sys.stderr)
