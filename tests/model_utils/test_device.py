# SPDX-License-Identifier: Apache-2.0
"""Which device, which rank, how many workers, on faked machines and in faked environments."""

import mindspore
import pytest
from helpers import TINY, run_main, run_python

from model_utils import device_adapter, local_adapter
from model_utils.config import get_config
from model_utils.device_adapter import GUARD_VARIABLE, choose_card, choose_target, guard_cpu_convolution, set_up_device
from model_utils.errors import UserError

AVX512 = "flags : fpu sse4_2 avx2 avx512f avx512bw"
AVX2 = "flags : fpu sse4_2 avx2"

MSRUN = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4"}
RANK_TABLE = {"RANK_TABLE_FILE": "/etc/hccl.json", "RANK_SIZE": "16", "LOCAL_RANK_SIZE": "8", "RANK_ID": "11",
              "DEVICE_ID": "3"}


@pytest.mark.parametrize(("version", "flags", "machine", "before", "after"), [
    ((2, 8), AVX512, "x86_64", None, None), ((2, 9), AVX512, "x86_64", None, "AVX2"),
    ((2, 10), AVX512, "AMD64", None, "AVX2"), ((2, 10), AVX2, "x86_64", None, None),
    ((2, 10), AVX512, "aarch64", None, None), ((2, 10), "", "x86_64", None, None),
    ((2, 10), AVX512, "x86_64", "ALL", "ALL"), ((2, 10), AVX512, "x86_64", "", "")])  # of the user: kept
def test_the_guard_is_set_only_where_it_is_needed(version, flags, machine, before, after):
    env = {} if before is None else {GUARD_VARIABLE: before}
    line = guard_cpu_convolution(env, mindspore=version, cpu_flags=flags, machine=machine)
    assert env.get(GUARD_VARIABLE) == after
    assert ("ONEDNN_MAX_CPU_ISA=AVX2" in line) if before != after else line is None


def test_the_guard_comes_before_mindspore_is_loaded():
    code = """
import sys
from model_utils import config, device_adapter
device_adapter.guard_cpu_convolution = lambda env, **machine: f"loaded: {'mindspore' in sys.modules}"
print(device_adapter.set_up_device(config.get_config(["--device_target=CPU"])).notes)
"""
    assert run_python("-c", code).out == "('loaded: False',)\n"


@pytest.mark.parametrize(("asked", "there", "chosen"), [
    ("auto", {"Ascend", "GPU"}, "Ascend"), ("auto", {"GPU"}, "GPU"), ("auto", set(), "CPU"),
    ("GPU", {"Ascend", "GPU"}, "GPU"), ("CPU", {"Ascend"}, "CPU")])
def test_auto_takes_ascend_then_gpu_then_cpu_and_says_so(monkeypatch, asked, there, chosen):
    monkeypatch.setattr(device_adapter, "obstacle", lambda name: None if name in there else "")
    target, line = choose_target(asked)
    assert target == chosen
    assert line.endswith(chosen) if asked == "auto" else line is None
    monkeypatch.setattr(device_adapter, "obstacle", {"Ascend": None, "GPU": ""}.get)
    with pytest.raises(UserError, match="there is no GPU here\n.*--device_target=Ascend"):
        choose_target("GPU")


def test_a_card_that_mindspore_cannot_use_is_named_with_what_it_needs(monkeypatch, tmp_path):
    for name in ("Ascend", "GPU"):
        monkeypatch.setitem(device_adapter.DEVICE_FILES, name, (f"{tmp_path}*",))
        monkeypatch.setattr(getattr(mindspore.device_context, name.lower()), "is_available", lambda: False)
    target, line = choose_target("auto")
    assert target == "CPU" and "warning: Ascend: " in line and "LD_LIBRARY_PATH" in line
    for name, advice in (("Ascend", "set_env.sh"), ("GPU", "cuDNN 8")):
        outcome = run_main("train", *TINY, f"--device_target={name}", f"--ckpt_path={tmp_path}/runs")
        assert outcome.status == 2 and advice in outcome.err and "--device_target=CPU" in outcome.err, outcome
    monkeypatch.setitem(device_adapter.DEVICE_FILES, "Ascend", ())
    assert device_adapter.obstacle("Ascend") == ""
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")  # MindSpore's dry run needs CANN and no card
    assert "set_env.sh" in device_adapter.obstacle("Ascend")


@pytest.mark.parametrize(("flags", "target", "table", "level"), [
    ("", "Ascend", "", "O2"), ("", "GPU", "", None), ("", "CPU", "", None), ("--graph_mode=0", "Ascend", "", None),
    ("--jit_level=o1", "GPU", "", "O1"), ("--jit_level=O0", "Ascend", "", "O0"),
    ("--jit_level=O0", "Ascend", "/etc/hccl.json", "O2")])
def test_the_jit_level_is_set_before_the_job_is_joined(monkeypatch, flags, target, table, level):
    calls = []
    monkeypatch.setenv("RANK_TABLE_FILE", table)
    monkeypatch.setattr(device_adapter, "choose_target", lambda asked: (target, None))
    monkeypatch.setattr(device_adapter, "_join_job", lambda *args: calls.append("joined") or (0, 1))
    monkeypatch.setattr(mindspore, "set_device", lambda *args: calls.append("device"))
    monkeypatch.setattr(mindspore, "set_deterministic", calls.append)
    monkeypatch.setattr(mindspore, "set_context", lambda **settings: calls.append(settings.get("jit_config", "mode")))
    notes = set_up_device(get_config([*flags.split(), "--deterministic"])).notes
    assert calls == ["device", "mode", *([{"jit_level": level}] if level else []), True, "joined"]
    assert (f"jit_level: {level}" in notes) == (level is not None)


@pytest.mark.parametrize(("env", "launcher", "size", "local_ranks", "card"), [
    ({}, None, 1, 1, None), ({"DEVICE_ID": "2"}, None, 1, 1, 2),
    ({"RANK_SIZE": "8", "RANK_ID": "1"}, None, 1, 1, None),  # left over in a shell: no launcher
    (MSRUN, "msrun", 4, 4, None), ({**MSRUN, "MS_ROLE": "MS_SCHED"}, "msrun", 4, 4, None),
    ({**MSRUN, "DEVICE_ID": "3"}, "msrun", 4, 4, 3),
    (RANK_TABLE, "rank table", 16, 8, 3),
    ({"MINDSPORE_HCCL_CONFIG_PATH": "/a.json", "RANK_SIZE": "2"}, "rank table", 2, 1, None),
    ({**RANK_TABLE, **MSRUN}, "msrun", 4, 4, 3)])
def test_the_environment_of_a_launcher(env, launcher, size, local_ranks, card):
    assert local_adapter.launcher(env) == launcher
    assert local_adapter.launched_size(env) == size
    assert local_adapter.launched_size(env, on_this_host=True) == local_ranks
    assert local_adapter.local_device_id(env) == card


@pytest.mark.parametrize(("flags", "env", "card", "is_said"), [
    ([], {}, 0, False), ([], {"DEVICE_ID": "2"}, 2, False), (["--device_id=6"], {}, 6, False),
    (["--device_id=6"], {"DEVICE_ID": "2"}, 6, False), (["--device_id=6"], MSRUN, 6, False),
    (["--device_id=6"], {**MSRUN, "DEVICE_ID": "3"}, 3, True),
    (["--device_id=3"], {**MSRUN, "DEVICE_ID": "3"}, 3, False),
    (["--device_id=6"], RANK_TABLE, 3, True)])
def test_no_two_ranks_use_one_card(flags, env, card, is_said):
    chosen, said = choose_card(get_config(flags), env)
    assert chosen == card
    assert (said is not None) == is_said and (not said or "device_id: 6 (from --device_id)" in said)


@pytest.mark.parametrize(("requested", "cores", "ranks", "workers"), [
    (None, 1, 1, 1), (None, 2, 1, 2), (None, 192, 1, 8), (None, 192, 8, 8), (None, 16, 8, 2), (None, 4, 8, 1),
    (3, 4, 1, 3), (4, 4, 8, 4), (64, 4, 1, 4), (1, 192, 1, 1)])
def test_the_workers_are_never_more_than_the_cores(requested, cores, ranks, workers):
    assert local_adapter.data_workers(requested, cores=cores, ranks=ranks) == workers


def test_one_process_is_rank_0_of_1(request):
    request.addfinalizer(lambda: mindspore.set_context(mode=mindspore.GRAPH_MODE))
    for flag, mode in (("--graph_mode=False", mindspore.PYNATIVE_MODE), ("--graph_mode=True", mindspore.GRAPH_MODE)):
        rank = set_up_device(get_config(["--device_target=CPU", "--rank_size=1", "--device_id=5", flag]))
        assert (rank.rank, rank.world_size, rank.device_target) == (0, 1, "CPU")
        assert (mindspore.get_context("device_target"), mindspore.get_context("mode")) == ("CPU", mode)
    with pytest.raises(UserError, match="rank_size: is 3 .*1 rank"):
        set_up_device(get_config(["--device_target=CPU", "--rank_size=3"]))
