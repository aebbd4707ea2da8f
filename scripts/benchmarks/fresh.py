# SPDX-License-Identifier: Apache-2.0
"""What only a fresh process can tell: how long the start takes, how much memory is used, what more ranks bring.

This file is also the program of these processes: `fresh.py KIND STARTED STEPS RESULT_FILE [any train.py flag ...]`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from model_utils.config import get_config  # noqa: E402
from model_utils.device_adapter import guard_this_machine  # noqa: E402
from model_utils.errors import UserError  # noqa: E402
from model_utils.local_adapter import usable_cores  # noqa: E402
from model_utils.schema import Config  # noqa: E402
from scripts.benchmarks.measure import (  # noqa: E402
    USERS_ENVIRONMENT,
    Contender,
    Contenders,
    Task,
    last_line,
    seconds_per_call,
)
from scripts.launch import free_port  # noqa: E402

WARM_UP_STEPS = 2
LONGEST_S = 1800  # that a process may take; ranks that wait for each other would wait for ever
PHASES = ("importing", "building the network and its optimizer", "compiling and the first step")


# What the process that measures does


def startup(task: Task) -> Contenders:
    """A bare training step from nothing, in parts, and train.py from its command to its first loss."""
    parts: list[float] = []

    def bare() -> float:
        parts[:] = in_fresh_process("startup", task)
        return sum(parts)

    second = partial(Contender, kind="s, start-up")
    return {"bare: import, build, compile, first step": second(bare),
            **{f"of this: {name}": second(lambda index=index: parts[index]) for index, name in enumerate(PHASES)},
            "train.py, until its first loss": second(lambda: first_loss_s(task.flags))}


def memory(task: Task) -> Contenders:
    """The most memory that training steps take."""
    return {title: Contender(partial(in_fresh_process, kind, task), kind="MiB", warms_up=False)
            for title, kind in (("bare TrainOneStepCell, one fixed batch", "memory of bare steps"),
                                ("train.py's loop, real pipeline", "memory of the loop"))}


def scaling(task: Task) -> Contenders:
    """Training steps of CPU ranks that have a core each; last, for comparison, one rank that has all cores."""
    cores, size = usable_cores(), task.config.batch_size
    counts = sorted({1, cores} | {2**power for power in range(cores.bit_length()) if 2**power <= cores})
    contender = partial(Contender, warms_up=False)
    contenders = {f"{ranks} rank{'s on a core each' if ranks > 1 else ' on one core'}": contender(
        partial(in_fresh_process, "bound rank", task, ranks=ranks), images=ranks * size, cores=ranks)
        for ranks in counts}
    if cores > 1:
        contenders[f"1 rank on {cores} cores"] = contender(partial(in_fresh_process, "rank", task), images=size,
                                                           cores=cores)
    return contenders


def in_fresh_process(kind: str, task: Task, *, ranks: int = 1) -> Any:
    """What a process of this kind finds out; with several ranks, what their rank 0 does. UserError if it fails."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "worker_0.log"  # msrun writes the latter
        job = ["--is_distributed=1", "--device_target=CPU"] if ranks > 1 else []
        command = [*(msrun(ranks, folder) if ranks > 1 else [sys.executable]), __file__, kind, str(time.time()),
                   str(task.steps), str(result), *task.flags, *job]
        try:
            done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            raise UserError(f"{kind}: took more than {LONGEST_S} s; ask for fewer --steps") from None
        if not result.is_file():
            said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else done.stdout
            raise UserError(f"{kind}: the process that measures it failed: {last_line(said)}")
        return json.loads(result.read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    """The user's; msrun starts the `python` that it finds first, and that must be this one."""
    return {**USERS_ENVIRONMENT, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}


def msrun(ranks: int, log_folder: str) -> list[str]:
    beside = Path(sys.executable).with_name("msrun")
    program = str(beside) if beside.is_file() else shutil.which("msrun")
    if program is None:
        raise UserError("--scaling: msrun, which comes with MindSpore, is not found")
    return [program, f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True",
            f"--master_port={free_port()}", f"--log_dir={log_folder}"]


def first_loss_s(flags: Sequence[str]) -> float:
    """Seconds from train.py's command to its first loss line, behind which it is killed."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        command = [sys.executable, "-u", str(ROOT / "train.py"), *flags, "--mode=train", "--log_interval=1",
                   f"--ckpt_path={folder}"]
        start, line = time.perf_counter(), ""
        with subprocess.Popen(command, env=USERS_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True) as process:
            for line in process.stdout:
                if "loss is" in line:
                    seconds = time.perf_counter() - start
                    process.kill()
                    return seconds
        raise UserError(f"startup: train.py ended before its first loss: {line.strip()}")


# What the fresh process does


def _startup(config: Config, started: float, _steps: int) -> list[float]:
    """Seconds of each of the PHASES."""
    guard_this_machine()  # must come before the import
    import mindspore  # noqa: F401

    from scripts.benchmarks.training import random_batch, set_up, train_cell
    from src import build, build_weights  # noqa: F401

    imported = time.time()
    bench = set_up(config, 1, with_data=False)
    cell = train_cell(bench)
    built = time.time()
    cell(*random_batch(config)).asnumpy()
    return [imported - started, built - imported, time.time() - built]


def _peak_mib() -> float:
    """Not getrusage, whose peak counts the process that this one was forked from as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)[1]) / 1024


def _memory_of_bare_steps(config: Config, _started: float, steps: int) -> float:
    from scripts.benchmarks.training import bare_step, random_batch, set_up

    bare_step(set_up(config, steps, with_data=False), random_batch(config))()
    return _peak_mib()


def _memory_of_loop(config: Config, _started: float, steps: int) -> float:
    from scripts.benchmarks.training import set_up, train_loop

    train_loop(set_up(config, steps))()
    return _peak_mib()


def _rank(config: Config, _started: float, steps: int) -> float | None:
    """Seconds per step, from rank 0 alone: the ranks wait for each other in every step."""
    from scripts.benchmarks.training import random_batch, set_up, train_cell

    bench = set_up(config, steps, with_data=False)
    cell, batch = train_cell(bench), random_batch(config)
    seconds_per_call(lambda: cell(*batch).asnumpy(), WARM_UP_STEPS)
    seconds = seconds_per_call(lambda: cell(*batch).asnumpy(), steps)
    return seconds if bench.rank.rank == 0 else None


def _bound_rank(config: Config, started: float, steps: int) -> float | None:
    """A rank with one core; bound before MindSpore counts them."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("DEVICE_ID", 0)) % len(cores)]})
    return _rank(config, started, steps)


KINDS: dict[str, Callable[[Config, float, int], Any]] = {
    "startup": _startup, "memory of bare steps": _memory_of_bare_steps, "memory of the loop": _memory_of_loop,
    "rank": _rank, "bound rank": _bound_rank}


def main(argv: Sequence[str]) -> int:
    kind, started, steps, result, *flags = argv
    try:
        found = KINDS[kind](get_config(flags, "train.py"), float(started), int(steps))
    except Exception as error:
        if getattr(error, "exit_status", None) is None:
            raise
        print(error, file=sys.stderr)
        return error.exit_status
    if found is not None:
        Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
