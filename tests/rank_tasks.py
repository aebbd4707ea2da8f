# SPDX-License-Identifier: Apache-2.0
"""What every rank of a job does for test_distributed.py: `rank_tasks.py FOLDER`, under a launcher or alone.

One start for all tasks, because starting the ranks is what takes the time. Each rank leaves its results in the
folder; the tests compare them with each other, with one rank and with NumPy.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import TINY  # noqa: E402

import eval as eval_script  # noqa: E402
import train as train_script  # noqa: E402
from model_utils.config import get_config  # noqa: E402
from model_utils.device_adapter import Rank, set_up_device  # noqa: E402

FLAGS = (*TINY, "--dataset=synthetic", "--num_parallel_workers=1", "--warmup_epochs=0", "--log_interval=1")
EVAL_COUNTS, EVAL_BATCH = (1, 63, 64, 65, 1000), 64
SAMPLE_COUNT, SAMPLE_BATCH = 50, 4  # 50 images: 8, 4 and 12 are left over with 1, 2 and 3 ranks
GLOBAL_BATCH, STEPS = 32, 5
PLAIN = ("--batch_norm=False", "--has_dropout=False", "--augment=False", "--initialize_mode=KaimingNormal",
         "--lr_scheduler=exponential", "--lr=0.05", f"--synthetic_train_images={GLOBAL_BATCH * STEPS}", "--max_epoch=1")
FULL = ("--mode=train_and_evaluate", "--synthetic_test_images=37", "--synthetic_train_images=50", "--batch_size=8",
        "--max_epoch=2", "--lr_scale=linear", "--lr_base_batch=8")


def evaluate_counts(folder: Path, rank: Rank) -> dict[str, np.ndarray]:
    """The counters after evaluating the first so many images, by eval.py's own function."""
    results = {}
    for count in EVAL_COUNTS:
        config = get_config([*FLAGS, f"--pre_trained={folder / 'given.ckpt'}", f"--synthetic_test_images={count}",
                             f"--per_batch_size={EVAL_BATCH}", f"--ckpt_path={folder / 'evaluations'}",
                             f"--is_distributed={rank.world_size > 1}"])
        (evaluation,) = eval_script.run_eval(config).values()
        results[f"counts_{count}"] = evaluation.counts.to_array()
    return results


def samples(rank: Rank) -> dict[str, np.ndarray]:
    """The numbers of the images that this rank trains on, epoch by epoch."""
    from src.build import build_train_data

    data = build_train_data(get_config([*FLAGS, f"--synthetic_train_images={SAMPLE_COUNT}",
                                        f"--batch_size={SAMPLE_BATCH}"]), rank)
    data.reader.labels = np.arange(SAMPLE_COUNT, dtype=np.int32)
    found = {}
    for epoch in (0, 1):
        rows = data.dataset(epoch).create_tuple_iterator(num_epochs=1, output_numpy=True)
        found[f"samples_{epoch}"] = np.concatenate([labels for _, labels in rows])
    return found


def train(folder: Path, rank: Rank, name: str, *flags: str) -> None:
    train_script.train(get_config([*FLAGS, *flags, f"--ckpt_path={folder / name}", "--is_save_on_master=False",
                                       f"--is_distributed={rank.world_size > 1}"]))


def disagreements(rank: Rank) -> dict[str, np.ndarray]:
    """Whether this rank hears of it where all have the same number, and where the last one has another."""
    from model_utils.errors import UserError
    from src.utils.ranks import check_agreed

    found = []
    for value in (7, int(rank.rank == rank.world_size - 1)):
        try:
            check_agreed([value], rank=rank.rank, world_size=rank.world_size, disagreement="they differ")
            found.append(False)
        except UserError:
            found.append(True)
    return {"disagreements": np.array(found)}


def sums(rank: Rank) -> dict[str, np.ndarray]:
    """The sum over the ranks of numbers with carries, and the mean of one that each has of its own."""
    from mindspore import Parameter, Tensor

    from src.utils.ranks import average_parameters, sum_integers

    own = Parameter(Tensor(np.float32([rank.rank + 1, -2])))
    average_parameters([own], rank.world_size)
    return {"sums": sum_integers([4095, 50_000, 2**40 + rank.rank], rank.world_size), "mean": own.asnumpy()}


def main(folder: Path, rank: Rank) -> None:
    results = evaluate_counts(folder, rank) | samples(rank) | disagreements(rank) | sums(rank)
    if GLOBAL_BATCH % rank.world_size == 0:
        train(folder, rank, "plain", *PLAIN, f"--batch_size={GLOBAL_BATCH // rank.world_size}")
    train(folder, rank, "full", *FULL)
    np.savez(folder / f"rank_{rank.rank}.npz", size=rank.world_size, **results)


if __name__ == "__main__":
    joined = set_up_device(get_config([*FLAGS, "--is_distributed=1"]))
    # A process joins a job once: the entry scripts are given what came of it.
    eval_script.set_up_device = train_script.set_up_device = lambda config: joined
    main(Path(sys.argv[1]), joined)
