# SPDX-License-Identifier: Apache-2.0
"""HCCL rank tables (version 1.0): which device of which server is which rank."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.errors import UserError


class Device(NamedTuple):
    """One rank of the job."""

    rank_id: int
    device_id: int
    device_ip: str
    server_id: str


def _number(entry: dict[str, Any], field: str, where: str) -> int:
    text = str(entry.get(field, ""))
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{where}.{field}: must be a number, not {entry.get(field)!r}")
    return int(text)


def _listed(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{where}: must be a list of entries, and not empty")
    return value


def _servers(table: dict[str, Any], path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Address -> where in the file, and the entry."""
    servers: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, server in enumerate(_listed(table["server_list"], f"{path}: server_list")):
        where, server_id = f"{path}: server_list[{index}]", server.get("server_id")
        if not isinstance(server_id, str) or not server_id:
            raise UserError(f"{where}.server_id: must be the server's address, not {server_id!r}")
        if server_id in servers:
            raise UserError(f"{where}.server_id: {server_id} stands there more than once")
        servers[server_id] = where, server
    count = table.get("server_count", len(servers))
    if str(count) != str(len(servers)):
        raise UserError(f"{path}: server_count: is {count!r}, but {len(servers)} server(s) are listed")
    return servers


def _devices(table: dict[str, Any], path: Path) -> list[tuple[str, Device]]:
    """Every device, and where in the file it stands."""
    servers = _servers(table, path)
    devices = []
    for server_id, (where, server) in servers.items():
        for index, entry in enumerate(_listed(server.get("device"), f"{where}.device")):
            at = f"{where}.device[{index}]"
            device_ip = str(entry.get("device_ip") or "")
            if len(servers) > 1 and not device_ip:
                raise UserError(f"{at}.device_ip: is missing; devices of different servers meet at their addresses")
            devices.append((at, Device(_number(entry, "rank_id", at), _number(entry, "device_id", at), device_ip,
                                       server_id)))
    return devices


UNIQUE = {  # field -> what no two devices may have in common; None where it does not count
    "rank_id": lambda device: device.rank_id,
    "device_id": lambda device: (device.server_id, device.device_id),
    "device_ip": lambda device: device.device_ip or None,
}


def _check_unique(devices: list[tuple[str, Device]]) -> None:
    for field, identity in UNIQUE.items():
        seen = {}
        for where, device in devices:
            value = identity(device)
            if value in seen:
                raise UserError(f"{where}.{field}: {getattr(device, field)} stands there more than once, "
                                  f"also in {seen[value].split(': ')[-1]}")
            if value is not None:
                seen[value] = where


def check_rank_table(table: Any, path: Path) -> list[Device]:
    """The devices in the order of their ranks; UserError names the field of `path` that is wrong."""
    if not isinstance(table, dict) or "server_list" not in table:
        raise UserError(f"{path}: has no server_list; scripts/hccl_tools.py makes and checks rank tables")
    status = table.get("status", "completed")
    if status != "completed":
        raise UserError(f"{path}: status: must be 'completed', not {status!r}")
    found = _devices(table, path)
    _check_unique(found)
    devices = sorted(device for _, device in found)
    missing = set(range(len(devices))) - {device.rank_id for device in devices}
    if missing:
        raise UserError(f"{path}: rank_id: {min(missing)} is missing; the ranks of {len(devices)} devices are "
                          f"0 to {len(devices) - 1}")
    return devices


def read_rank_table(path: Path) -> list[Device]:
    """The devices of a file in the order of their ranks; UserError names the field that is wrong."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the rank table cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    return check_rank_table(table, path)


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
