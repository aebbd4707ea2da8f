# SPDX-License-Identifier: Apache-2.0
"""Rank tables: what hccl_tools writes is what the launcher reads, and a malformed one is refused by its field."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from model_utils.errors import UserError
from scripts import hccl_tools
from scripts.rank_table import Device, read_rank_table

ROOT = Path(__file__).resolve().parent.parent
ONE_SERVER = ("--server_ip=10.0.0.1", "--device_num=[0,2)", "--device_ips=192.1.27.6,192.2.27.6")
TWO_SERVERS = ("--server_ip=10.0.0.1", "--device_ips=192.1.27.6,192.2.27.6",
               "--server_ip=10.0.0.2", "--device_ips=192.1.28.6,192.2.28.6", "--device_num=4,6")


def make(folder: Path, *flags: str) -> Path:
    path = folder / "table.json"
    assert hccl_tools.main([*flags, f"--output={path}"]) == 0
    return path


@pytest.fixture
def table(tmp_path) -> dict:
    """A good table of two servers with two devices each."""
    return json.loads(make(tmp_path, *TWO_SERVERS).read_text())


def refusal(folder: Path, table: object) -> str:
    path = folder / "bad.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    with pytest.raises(UserError) as error:
        read_rank_table(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


# --- hccl_tools.py


def test_a_table_is_written_as_hccl_wants_it(tmp_path):
    assert json.loads(make(tmp_path, *ONE_SERVER).read_text()) == {
        "version": "1.0", "server_count": "1", "status": "completed",
        "server_list": [{"server_id": "10.0.0.1", "host_nic_ip": "reserve", "device": [
            {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"},
            {"device_id": "1", "device_ip": "192.2.27.6", "rank_id": "1"}]}]}


def test_what_is_written_is_read(tmp_path):
    assert read_rank_table(make(tmp_path, *TWO_SERVERS)) == [
        Device(0, 4, "192.1.27.6", "10.0.0.1"), Device(1, 6, "192.2.27.6", "10.0.0.1"),
        Device(2, 4, "192.1.28.6", "10.0.0.2"), Device(3, 6, "192.2.28.6", "10.0.0.2")]


def test_the_file_is_named_after_the_number_of_ranks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hccl_tools.main(TWO_SERVERS) == 0
    assert hccl_tools.main(["--check", "hccl_4p.json"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "hccl_4p.json: 4 rank(s) on 2 server(s)", "hccl_4p.json: is in order: 4 rank(s) on 2 server(s)"]


@pytest.mark.parametrize("text, devices", [("8", list(range(8))), ("[0,4)", [0, 1, 2, 3]), ("[4, 6)", [4, 5]),
                                           ("0,2,5", [0, 2, 5]), ("1", [0])])
def test_ranges_of_devices(text, devices):
    assert hccl_tools.device_range(text) == devices


@pytest.mark.parametrize("flags, message", [
    ([], "--server_ip: is not given"),
    (["--server_ip=10.0.0.1"], "--device_ips: given 0 time(s) for 1 server(s)"),
    (["--server_ip=10.0.0.1", "--device_ips=192.1.1.1"], "--device_ips: 1 address(es) for 8 device(s) of server"),
    (["--server_ip=10.0.0.1", "--device_num=1", "--device_ips=192.1.1"], "--device_ips: '192.1.1' is not an IP"),
    (["--server_ip=server1", "--device_num=1", "--device_ips=192.1.1.1"], "--server_ip: 'server1' is not an IP"),
    (["--server_ip=10.0.0.1", "--device_num=2", "--device_ips=192.1.1.1,192.1.1.1"], "device_ip: 192.1.1.1 stands"),
    (["--server_ip=10.0.0.1", "--device_num=[4,4)", "--device_ips=192.1.1.1"], "--device_num: must be a count (8)"),
    (["--server_ip=10.0.0.1", "--device_num=0", "--device_ips=192.1.1.1"], "--device_num: must be a count (8)"),
    (["--server_ip=10.0.0.1", "--device_num=1,1", "--device_ips=192.1.1.1,192.1.1.2"], "device_id: 1 stands"),
    (["--check=absent.json"], "absent.json: the rank table cannot be read: No such file"),
])
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert hccl_tools.main(flags) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_script_too():
    command = [sys.executable, ROOT / "scripts" / "hccl_tools.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--device_ips" in done.stdout


# --- reading


def test_numbers_may_be_numbers_and_a_single_server_needs_little(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"server_list": [{"server_id": "10.0.0.1", "device": [
        {"device_id": 1, "rank_id": 1}, {"device_id": 0, "rank_id": 0}]}]}))
    assert read_rank_table(path) == [Device(0, 0, "", "10.0.0.1"), Device(1, 1, "", "10.0.0.1")]


@pytest.mark.parametrize("text, message", [
    ("", "is not JSON: "),
    ('{"server_list": [', "is not JSON: "),
    ("[]", "has no server_list"),
    ('{"version": "1.0"}', "has no server_list"),
    ('{"server_list": {}}', "server_list: must be a list"),
    ('{"server_list": []}', "server_list: must be a list of entries, and not empty"),
    ('{"server_list": ["10.0.0.1"]}', "server_list: must be a list of entries"),
    ('{"server_list": [{"device": []}]}', "server_list[0].server_id: must be the server's address, not None"),
    ('{"server_list": [{"server_id": "a"}]}', "server_list[0].device: must be a list"),
])
def test_what_is_no_table_is_refused(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


DAMAGES = [  # (where, value, the beginning of the message)
    (("server_count",), "3", "server_count: is '3', but 2 server(s) are listed"),
    (("status",), "initializing", "status: must be 'completed', not 'initializing'"),
    (("server_list", 1, "server_id"), "10.0.0.1", "server_list[1].server_id: 10.0.0.1 stands there more than once"),
    (("server_list", 1, "device", 0, "rank_id"), "1", "server_list[1].device[0].rank_id: 1 stands there more than once"
                                                      ", also in server_list[0].device[1]"),
    (("server_list", 1, "device", 1, "rank_id"), "7", "rank_id: 3 is missing; the ranks of 4 devices are 0 to 3"),
    (("server_list", 0, "device", 0, "rank_id"), "-1", "server_list[0].device[0].rank_id: must be a number, not '-1'"),
    (("server_list", 0, "device", 0, "rank_id"), "²", "server_list[0].device[0].rank_id: must be a number, not '²'"),
    (("server_list", 0, "device", 1, "device_id"), None, "server_list[0].device[1].device_id: must be a number"),
    (("server_list", 0, "device", 1, "device_id"), "4", "server_list[0].device[1].device_id: 4 stands there more"),
    (("server_list", 1, "device", 0, "device_ip"), "192.2.27.6", "server_list[1].device[0].device_ip: 192.2.27.6 stan"),
    (("server_list", 1, "device", 0, "device_ip"), None, "server_list[1].device[0].device_ip: is missing"),
    (("server_list", 1, "device"), [], "server_list[1].device: must be a list of entries, and not empty"),
]


@pytest.mark.parametrize("place, value, message", DAMAGES, ids=[message[:45] for _, _, message in DAMAGES])
def test_a_malformed_table_is_refused_by_its_field(tmp_path, table, place, value, message):
    read_rank_table(make(tmp_path, *TWO_SERVERS))  # it is good before
    damaged = copy.deepcopy(table)
    *path, last = place
    entry = damaged
    for step in path:
        entry = entry[step]
    entry[last] = value
    assert refusal(tmp_path, damaged).startswith(message)
