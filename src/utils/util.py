# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, and texts for messages. Importing this needs no MindSpore."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspore import Parameter, nn


def get_param_groups(network_or_parameters: nn.Cell | Iterable[Parameter],
                     weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Optimizer groups in which only the weights of convolutions and dense layers decay.

    Biases and the gamma and beta of BatchNorm have one dimension: pulling them to zero only costs accuracy.
    Parameters keep their order; frozen ones and empty groups are left out. Without `weight_decay` the decaying group
    takes the optimizer's own.
    """
    if hasattr(network_or_parameters, "get_parameters"):
        network_or_parameters = network_or_parameters.get_parameters()
    trainable = [parameter for parameter in network_or_parameters if parameter.requires_grad]
    decayed: dict[str, Any] = {"params": [parameter for parameter in trainable if parameter.ndim >= 2]}
    if weight_decay is not None:
        decayed["weight_decay"] = weight_decay
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


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """The text of the error for a name that is not in a table: what was given, what is allowed, what is near."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
    return f"{kind} {name!r} is unknown, allowed: {', '.join(by_lower.values())}{hint}"
