# SPDX-License-Identifier: Apache-2.0
"""What every rank of a job does for test_ranks.py: `rank_tasks.py FOLDER`, started by msrun or alone.

One start for all tasks, because starting the ranks is what takes the time. Each rank leaves its results in the
folder; the tests compare them with each other, with one rank and with NumPy.
"""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import TINY, only_folder  # noqa: E402

from model_utils.config import get_config  # noqa: E402
from model_utils.device_adapter import Rank, set_up_device  # noqa: E402
from model_utils.errors import UserError  # noqa: E402
from src.utils.signals import StopSignals  # noqa: E402

FLAGS = (*TINY, "--dataset=synthetic", "--num_parallel_workers=1", "--warmup_epochs=0", "--log_interval=1")
EVAL_COUNTS, EVAL_BATCH = (1, 65), 16
GLOBAL_BATCH, STEPS = 32, 5
PLAIN = ("--batch_norm=False", "--has_dropout=False", "--augment=False", "--initialize_mode=KaimingNormal",
         "--lr_scheduler=exponential", "--lr=0.05", f"--synthetic_train_images={GLOBAL_BATCH * STEPS}", "--max_epoch=1",
         "--is_save_on_master=False")
FULL = ("--mode=train_and_evaluate", "--synthetic_test_images=37", "--synthetic_train_images=50", "--batch_size=8",
        "--max_epoch=2", "--patience=1", "--lr_scale=linear", "--lr_base_batch=16", "--gradient_accumulation_steps=2",
        "--clip_grad_norm=1", "--ema_decay=0.9", "--ckpt_interval_steps=1", "--is_save_on_master=False",
        "--mixup=0.2", "--re_prob=0.5")


def evaluate_counts(folder: Path, rank: Rank) -> dict[str, np.ndarray]:
    """The counters after evaluating the first so many images, by eval.py's own function."""
    from src.build import build_network
    from src.data.formats import build_reader
    from src.evaluation.evaluate import evaluate, evaluate_checkpoints

    results = {}
    for count in EVAL_COUNTS:
        config = get_config([*FLAGS, f"--pre_trained={folder / 'given.ckpt'}", f"--synthetic_test_images={count}",
                             f"--per_batch_size={EVAL_BATCH}", f"--ckpt_path={folder / 'evaluations'}",
                             f"--is_distributed={rank.world_size > 1}"])
        (evaluation,) = evaluate_checkpoints(config).values()
        results[f"counts_{count}"] = evaluation.counts.to_array()
    one_rank_only = SimpleNamespace(received=15 * (rank.rank == rank.world_size - 1))
    stopped = evaluate(config, rank, build_network(config, rank), build_reader(config, "test"), one_rank_only)
    results["stopped"] = np.array(stopped is None)
    return results


def train(root: Path, rank: Rank, *flags: str) -> None:
    from src.training import loop

    config = get_config([*FLAGS, *flags, f"--ckpt_path={root}", f"--is_distributed={rank.world_size > 1}"])
    loop.train(config, StopSignals("train.py"))


def resume_last_step(folder: Path, rank: Rank) -> None:
    """Go on with a copy of the full run as it was before its last step."""
    from src.utils.ranks import from_rank_0

    whole = only_folder(folder / "full")
    if rank.rank == 0:
        copy = folder / "again" / whole.name
        shutil.copytree(whole, copy)
        for path in (*copy.glob(f"resume/{max(path.name[:13] for path in copy.glob('resume/*'))}*"),
                     *copy.glob("ckpt_*/*-2_*.ckpt")):
            path.unlink()
    from_rank_0([0], rank)  # the others wait for the copy
    train(folder / "again", rank, *FULL, "--resume", "--is_save_on_master=True")


def refused(task, *args: object) -> str:
    """The message of the UserError that ends the task, if one does."""
    try:
        task(*args)
    except UserError as error:
        return str(error)
    return ""


def talk(rank: Rank) -> dict[str, np.ndarray]:
    """Sums of numbers with carries, the mean of one that each rank has of its own, and agreement on a number: where
    all have the same, and where the last rank has another."""
    from mindspore import Parameter, Tensor

    from src.utils.ranks import average_parameters, check_agreed, sum_integers

    own = Parameter(Tensor(np.float32([rank.rank + 1, -2])))
    average_parameters([own], rank.world_size)
    is_last = int(rank.rank == rank.world_size - 1)
    return {"sums": sum_integers([4095, 50_000, 2**40 + rank.rank], rank.world_size), "mean": own.asnumpy(),
            "disagreements": np.array([bool(refused(check_agreed, [value], rank, "differ")) for value in (7, is_last)])}


def main(folder: Path, rank: Rank) -> None:
    results = evaluate_counts(folder, rank) | talk(rank)
    if rank.world_size < 3:
        train(folder / "plain", rank, *PLAIN, f"--batch_size={GLOBAL_BATCH // rank.world_size}")
    if rank.world_size > 1:
        train(folder / "full", rank, *FULL)
    if rank.world_size == 2:
        resume_last_step(folder, rank)
        results["refusal"] = refused(  # because of a broken test image
            train, folder / "broken", rank, *TINY, "--dataset=imagenet2012", "--num_classes=3", "--batch_size=4",
            "--mode=train_and_evaluate", f"--data_dir={folder / 'images'}", "--max_epoch=2", "--ckpt_interval=5")
    np.savez(folder / f"rank_{rank.rank}.npz", size=rank.world_size, **results)


if __name__ == "__main__":
    joined = set_up_device(get_config([*FLAGS, "--is_distributed=1"]))

    import src.evaluation.evaluate
    import src.training.loop

    # A process joins a job once: the runs are given what came of it.
    src.evaluation.evaluate.set_up_device = src.training.loop.set_up_device = lambda config: joined
    main(Path(sys.argv[1]), joined)
