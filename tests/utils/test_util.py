# SPDX-License-Identifier: Apache-2.0
"""Parameter groups and the helpers for messages."""

import errno
import os

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from model_utils.errors import UserError, explain
from src.utils.files import replaced_when_whole, write_atomically
from src.utils.util import get_param_groups, nearest, unknown_name
from src.vgg import vgg11


@pytest.fixture(scope="module")
def network() -> nn.Cell:
    return vgg11(10, image_size=(32, 32), width=0.125, has_bias=True)


def names(group: dict) -> list[str]:
    return [parameter.name for parameter in group["params"]]


def test_only_conv_and_dense_weights_decay(network: nn.Cell) -> None:
    decayed, kept = get_param_groups(network, 5e-4)
    assert decayed["weight_decay"] == 5e-4 and kept["weight_decay"] == 0.0
    assert len(names(decayed)) == 8 + 3 and all(name.endswith(".weight") for name in names(decayed))
    assert len(names(kept)) == 8 * 3 + 3
    assert {name.rpartition(".")[2] for name in names(kept)} == {"bias", "gamma", "beta"}
    trainable = {parameter.name for parameter in network.trainable_params()}
    assert {*names(decayed), *names(kept)} == trainable


def test_groups_from_a_list_leave_out_frozen_parameters_and_empty_groups() -> None:
    weight, other = (Parameter(Tensor(np.ones((2, 2), np.float32)), name=name) for name in ("w", "other"))
    other.requires_grad = False
    assert get_param_groups([other, weight], 0.1) == [{"params": [weight], "weight_decay": 0.1}]
    assert get_param_groups([other], 0.1) == []


def test_without_weight_decay_the_optimizer_decides(network: nn.Cell) -> None:
    decayed, kept = get_param_groups(network)
    assert "weight_decay" not in decayed and kept["weight_decay"] == 0.0


def test_momentum_takes_the_groups_and_decays_weights_only() -> None:
    layer = nn.Dense(2, 2, weight_init="ones", bias_init="ones")
    optimizer = nn.Momentum(get_param_groups(layer, 0.5), learning_rate=1.0, momentum=0.0)
    zeros = [Tensor(np.zeros(parameter.shape, np.float32)) for parameter in optimizer.parameters]
    optimizer(tuple(zeros))
    assert np.all(layer.weight.asnumpy() == 0.5) and np.all(layer.bias.asnumpy() == 1.0)


def test_input_error_is_a_value_error_with_the_exit_status_of_bad_usage() -> None:
    assert issubclass(UserError, ValueError) and UserError("x").exit_status == 2


def test_nearest_name() -> None:
    assert nearest("VGG61", ["vgg11", "vgg16"]) == "vgg16"
    assert nearest("resnet", ["vgg11", "vgg16"]) is None
    text = unknown_name("network", "vgg61", ["vgg11", "vgg16"])
    assert text == "network 'vgg61' is unknown, allowed: vgg11, vgg16; did you mean vgg16?"
    assert "did you mean" not in unknown_name("network", "resnet", ["vgg11"])


def test_what_a_link_names_is_replaced_and_not_the_link(tmp_path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "latest.txt").symlink_to("real.txt")
    write_atomically(tmp_path / "latest.txt", "new")
    assert (tmp_path / "real.txt").read_text() == "new" and (tmp_path / "latest.txt").is_symlink()


def test_nothing_takes_the_place_of_a_device_or_pipe(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    write_atomically(pipe, "said")
    assert os.read(end, 9) == b"said" and pipe.is_fifo()
    os.close(end)


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path, capsys) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as caught, replaced_when_whole(tmp_path / "a.json"):
        raise full
    assert explain(caught.value, "infer.py") == 2
    assert capsys.readouterr().err == f"infer.py: error: {tmp_path / 'a.json'}: No space left on device\n"
