# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of `benchmark.py --compare=torch`. It needs torch and nothing of this project.

The first line that comes in describes network and optimizer; the answer names torch's version and the contenders. Each
further line names a contender, runs a block of it, and is answered with its seconds per step. All lines are JSON but
the names.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

POOLED_SIDE = 7


def build_network(about: dict[str, Any]) -> nn.Sequential:
    cells: list[nn.Module] = []
    weights = iter(about["weights"])  # [out, in, 3, 3] of convolutions, then [out, in] of dense layers
    for count in about["stages"]:
        for _ in range(count):
            out, channels, *_ = next(weights)
            cells.append(nn.Conv2d(channels, out, 3, padding=1, bias=about["has_bias"]))
            cells += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)] if about["batch_norm"] else [nn.ReLU(inplace=True)]
        cells.append(nn.MaxPool2d(2))
    classifier = [nn.AdaptiveAvgPool2d(POOLED_SIDE)] if about["average_pool"] else []
    classifier.append(nn.Flatten())
    for out, units in weights:
        classifier += [nn.Linear(units, out), nn.ReLU(inplace=True), nn.Dropout(about["dropout_rate"])]
    network = nn.Sequential(*cells, *classifier[:-2] if about["include_top"] else ())
    count = sum(item.numel() for item in network.parameters())
    if count != about["parameters"]:
        raise SystemExit(f"the network has {count} parameters here and {about['parameters']} there")
    return network


def build_optimizer(network: nn.Module, about: dict[str, Any]) -> torch.optim.Optimizer:
    """Only the weights of convolutions and dense layers decay."""
    groups = [{"params": [item for item in network.parameters() if (item.ndim >= 2) == decays],
               "weight_decay": about["weight_decay"] if decays else 0.0} for decays in (True, False)]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=about["lr"], momentum=about["momentum"],
                           nesterov=about["use_nesterov"])


def build_step(about: dict[str, Any], memory_format: torch.memory_format, precision: Callable, *,
               training: bool) -> Callable[[], object]:
    """A training step or a forward pass on one fixed batch, whose result is read as ours is."""
    network = build_network(about).to(memory_format=memory_format).train(training)
    images = torch.randn(about["batch_size"], 3, *about["image_size"]).to(memory_format=memory_format)
    labels = torch.randint(0, about["num_classes"], (len(images),))
    optimizer, loss_of = build_optimizer(network, about), nn.CrossEntropyLoss(label_smoothing=about["smoothing"])

    def train() -> float:
        optimizer.zero_grad()
        with precision():
            loss = loss_of(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def forward() -> object:
        with torch.inference_mode(), precision():
            return network(images).float().numpy()

    return train if about["mode"] == "train" else forward


def build_contenders(about: dict[str, Any]) -> dict[str, Callable[[], object]]:
    layouts = {"float32": (torch.contiguous_format, nullcontext),
               "float32, channels-last": (torch.channels_last, nullcontext)}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # others emulate bfloat16: a step takes minutes
        bfloat16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        layouts["bfloat16 autocast, channels-last"] = torch.channels_last, bfloat16
    modes = {"": about["mode"] == "train", **({", training mode": True} if about["mode"] == "forward" else {})}
    return {f"PyTorch eager, {name}{mode}": build_step(about, *layout, training=training)
            for mode, training in modes.items() for name, layout in layouts.items()}


if __name__ == "__main__":
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(settings["seed"])
    contenders = build_contenders(settings)
    print(json.dumps({"torch": torch.__version__, "contenders": list(contenders)}), flush=True)
    for line in sys.stdin:
        step, start = contenders[line.strip()], time.perf_counter()
        for _ in range(settings["steps"]):
            step()
        print((time.perf_counter() - start) / settings["steps"], flush=True)
