# SPDX-License-Identifier: Apache-2.0
"""HCCL rank tables (version 1.0): which device of which server is which rank."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.errors import ConfigError


class Device(NamedTuple):
    """One rank of the job."""

    rank_id: int
    device_id: int
    device_ip: str
    server_id: str


def _number(entry: dict[str, Any], field: str, where: str) -> int:
    text = str(entry.get(field, ""))
    if not text.isdigit():
        raise ConfigError(f"{where}.{field}: must be a number, not {entry.get(field)!r}")
    return int(text)


def _listed(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{where}: must be a list of entries, and not empty")
    return value


def _devices(table: dict[str, Any], path: Path) -> list[Device]:
    devices = []
    for s, server in enumerate(_listed(table.get("server_list"), f"{path}: server_list")):
        where = f"{path}: server_list[{s}]"
        server_id = server.get("server_id")
        if not isinstance(server_id, str) or not server_id:
            raise ConfigError(f"{where}.server_id: must be the server's address, not {server_id!r}")
        for d, entry in enumerate(_listed(server.get("device"), f"{where}.device")):
            at = f"{where}.device[{d}]"
            devices.append(Device(_number(entry, "rank_id", at), _number(entry, "device_id", at),
                                  str(entry.get("device_ip", "")), server_id))
    return sorted(devices)


def _check(devices: list[Device], table: dict[str, Any], path: Path) -> None:
    ranks = [device.rank_id for device in devices]
    doubled = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if doubled:
        raise ConfigError(f"{path}: rank_id {doubled[0]} stands there more than once")
    if ranks != list(range(len(ranks))):
        missing = min(set(range(len(ranks))) - set(ranks))
        raise ConfigError(f"{path}: rank_id {missing} is missing: the ranks of {len(ranks)} devices are "
                          f"0 to {len(ranks) - 1}")
    places = [(device.server_id, device.device_id) for device in devices]
    for server_id, device_id in places:
        if places.count((server_id, device_id)) > 1:
            raise ConfigError(f"{path}: device_id {device_id} of server {server_id} stands there more than once")
    servers = len({device.server_id for device in devices})
    if str(table.get("server_count", servers)) != str(servers):
        raise ConfigError(f"{path}: server_count: is {table['server_count']!r}, but {servers} server(s) are listed")


def read_rank_table(path: Path) -> list[Device]:
    """The devices in the order of their ranks; ConfigError names the field that is wrong."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the rank table cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    if not isinstance(table, dict) or "server_list" not in table:
        raise ConfigError(f"{path}: has no server_list; scripts/hccl_tools.py makes and checks rank tables")
    devices = _devices(table, path)
    _check(devices, table, path)
    return devices


def make_rank_table(servers: list[tuple[str, list[tuple[int, str]]]]) -> dict[str, Any]:
    """The table of [(server address, [(device id, device address), ...]), ...], ranks in that order."""
    rank, server_list = 0, []
    for server_id, devices in servers:
        entries = []
        for device_id, device_ip in devices:
            entries.append({"device_id": str(device_id), "device_ip": device_ip, "rank_id": str(rank)})
            rank += 1
        server_list.append({"server_id": server_id, "device": entries, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": server_list, "status": "completed"}
