# SPDX-License-Identifier: Apache-2.0
"""One logger: plain lines on the console, the same lines with the time in the run folder."""

import logging
import os
import stat
import sys
from pathlib import Path

from tqdm import tqdm

from model_utils.errors import give_up_output

NAME = "vgg"


class Console(logging.StreamHandler):
    """Standard output. When nobody reads it any more (`| head`), or its disk is full, the run goes on and its log file
    has the rest."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):  # takes a progress bar away while the line is printed
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the library's name
        if isinstance(error := sys.exc_info()[1], OSError):
            give_up_output(error)
        else:
            super().handleError(record)


class LogFile(logging.FileHandler):
    """The log of a run. If it cannot be written (a full disk), that is said once, and the run goes on."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the library's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"error: {self.baseFilename} cannot be written: {error.strerror}; lines are missing there",
                  file=sys.stderr)


def get_logger() -> logging.Logger:
    return logging.getLogger(NAME)


def log_to_files(message: str) -> None:
    """Write to the run's log alone: the console gets the message in another way."""
    record = get_logger().makeRecord(NAME, logging.ERROR, "", 0, message, (), None)
    for handler in get_logger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def set_up_logging(rank: int = 0, file: Path | None = None) -> logging.Logger:
    """The console shows rank 0, every rank writes its own file. Calling it again replaces the earlier handlers."""
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if rank == 0 or _is_own_file(sys.stdout):
        console = Console(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(console)
    if file is not None:
        log = LogFile(file)
        log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(log)
    return logger


def _is_own_file(stream) -> bool:
    """Whether a launcher gave this process a log file of its own as standard output."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):
        return False
