# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, and texts for messages. Importing this needs no MindSpore."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspore import nn


def get_param_groups(network: nn.Cell, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups in which only the weights of convolutions and dense layers decay.

    Biases and the gamma and beta of BatchNorm have one dimension: pulling them to zero only costs accuracy.
    Parameters keep their order; frozen ones and empty groups are left out.
    """
    trainable = network.trainable_params()
    decayed = {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay}
    kept = {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decayed, kept) if group["params"]]


def listed(items: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """The first few of a list, and how many more there are."""
    items = list(items)
    return separator.join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def command(script: str, **flags: object) -> str:
    """A command of this project as it can be pasted into the shell of the current folder."""
    root = Path(__file__).resolve().parents[2]
    return shlex.join(["python", script if Path.cwd() == root else str(root / script),
                       *(f"--{name}={value}" for name, value in flags.items())])
