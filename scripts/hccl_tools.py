#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write an HCCL rank table (version 1.0) for Ascend servers, or check one that exists.

This server with 8 devices:   python scripts/hccl_tools.py --device_num "[0,8)"
Any server:                   python scripts/hccl_tools.py --server_ip 10.0.0.1 --device_ips 192.1.27.6,192.2.27.6,...
Several servers, merged:      python scripts/hccl_tools.py hccl_a.json hccl_b.json --output=hccl_16p.json
Check a table:                python scripts/hccl_tools.py --check rank_table.json

Ranks are numbered in the order of the servers' addresses as text, which MindSpore requires.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_address
from itertools import count, pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command
from model_utils.reading import brief, first_problem, read_text
from src.utils.files import writing
from src.utils.util import listed

HCCN_CONF = Path("/etc/hccn.conf")


def _address(text: str) -> str:
    return str(ip_address(text.strip())) if text else ""


class Device(BaseModel):
    """One device of a server, and the rank that runs on it."""

    rank_id: NonNegativeInt
    device_id: NonNegativeInt
    device_ip: Annotated[str, AfterValidator(_address)] = ""


class Server(BaseModel):
    server_id: Annotated[str, Field(min_length=1)]  # its address
    device: Annotated[list[Device], Field(min_length=1)]


class RankTable(BaseModel):
    """Which device of which server is which rank."""

    status: Literal["completed"] = "completed"
    server_count: NonNegativeInt | None = None
    server_list: Annotated[list[Server], Field(min_length=1)]

    @property
    def ranks(self) -> int:
        return sum(len(server.device) for server in self.server_list)


def check_rank_table(text: str, path: Path) -> RankTable:
    """The table if it is complete and consistent; else a UserError that names the field of `path` that is wrong."""
    try:
        found = RankTable.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    servers = found.server_list
    if found.server_count not in (None, len(servers)):
        raise UserError(f"{path}: server_count: is {found.server_count}, but server_list has {len(servers)} server(s)")
    devices = [device for server in servers for device in server.device]
    addresses = [device.device_ip for device in devices if device.device_ip or len(servers) > 1]
    for field, values in (("server_id", [server.server_id for server in servers]), ("device_ip", addresses),
                          *(("device_id", [device.device_id for device in server.device]) for server in servers)):
        if len(set(values)) < len(values) or "" in values:
            raise UserError(f"{path}: {field}: must be there once for each, not {listed(map(str, values), 16)}")
    if (ranks := sorted(device.rank_id for device in devices)) != list(range(found.ranks)):
        raise UserError(f"{path}: rank_id: must be 0 to {found.ranks - 1}, not {listed(map(str, ranks), 16)}")
    return found


def read_rank_table(path: Path, *, any_order: bool = False) -> RankTable:
    """The table in a file. UserError names the field that is wrong. `any_order` allows ranks that do not ascend with
    the servers."""
    try:
        table = check_rank_table(read_text(path), path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such rank table; scripts/hccl_tools.py makes one") from None
    for one, two in pairwise(sorted(table.server_list, key=lambda server: server.server_id)):
        if not any_order and max(item.rank_id for item in one.device) > min(item.rank_id for item in two.device):
            raise UserError(f"{path}: rank_id: must ascend with server_id as text, and {one.server_id} comes before "
                            f"{two.server_id}; hccl_tools.py {path} --output=FILE numbers the ranks anew")
    return table


def device_range(text: str) -> list[int]:
    """'8' is devices 0 to 7; '[0,4)' is 0 to 3; '0,2,5' is just these."""
    text = text.replace(" ", "")
    if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})+", text):
        return list(map(int, text.split(",")))
    if re.fullmatch(r"\[[0-9]{1,4},[0-9]{1,4}\)|[0-9]{1,4}", text):
        return list(range(*map(int, text.strip("[)").split(","))))
    raise UserError(f"--device_num: must be a count (8), a range ([0,8)) or a list (0,2), not {brief(text)}")


def host_address() -> str:
    """The address of this host towards others; nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation
        return probe.getsockname()[0]
    raise UserError("--server_ip: is not given, and this host has no network address")


def device_address(device_id: int) -> str:
    """The address of a device of this host."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["hccn_tool", "-i", str(device_id), "-ip", "-g"], capture_output=True, text=True,
                              timeout=60).stdout
        if found := re.search(r"ipaddr:\s*(\S+)", said):
            return found[1]
    with suppress(OSError):
        if found := re.search(rf"^\s*address_{device_id}\s*=\s*(\S+)", HCCN_CONF.read_text(), re.MULTILINE):
            return found[1]
    raise UserError(f"--device_ips: is not given, and neither `hccn_tool -i {device_id} -ip -g` nor {HCCN_CONF} knows "
                    f"device {device_id} (--check FILE checks a table that exists)")


def server_by_flags(options: argparse.Namespace) -> tuple[str, list[tuple[int, str]]]:
    """The address of the server, and ids and addresses of its devices. What the flags leave out is asked for on this
    host."""
    device_ids = device_range(options.device_num)
    if options.visible_devices:
        try:
            device_ids = [int(options.visible_devices.split(",")[number]) for number in device_ids]
        except (ValueError, IndexError):
            raise UserError("--visible_devices: must be device ids such as 4,5,6,7, in which --device_num counts from "
                            f"0, not {brief(options.visible_devices)}") from None
    server = options.server_ip or host_address()
    addresses = options.device_ips.split(",") if options.device_ips else list(map(device_address, device_ids))
    if len(addresses) != len(device_ids):
        raise UserError(f"--device_ips: must be {len(device_ids)} address(es), not {len(addresses)} "
                        "(`hccn_tool -i DEVICE -ip -g` shows one)")
    return server, list(zip(device_ids, addresses, strict=True))


def _run(options: argparse.Namespace) -> None:
    if options.check:
        path, table, said = options.check, read_rank_table(options.check), "is correct: "
    else:
        merged = [(server.server_id, [(device.device_id, device.device_ip) for device in
                                      sorted(server.device, key=lambda device: device.rank_id)])
                  for path in options.tables for server in read_rank_table(path, any_order=True).server_list]
        ranks, servers = count(), []
        for server, devices in sorted(merged or [server_by_flags(options)]):
            numbered = [{"device_id": str(device_id), "device_ip": address.strip(), "rank_id": str(next(ranks))}
                        for device_id, address in devices]
            servers.append({"server_id": server, "device": numbered, "host_nic_ip": "reserve"})
        text = json.dumps({"version": "1.0", "server_count": str(len(servers)), "server_list": servers,
                           "status": "completed"}, indent=4) + "\n"
        table, said = check_rank_table(text, options.output or Path("the table")), ""
        path = options.output or Path(f"hccl_{table.ranks}p.json")
        with writing(path):
            path.write_text(text, encoding="utf-8")
    print(f"{path}: {said}{table.ranks} rank(s) on {len(table.server_list)} server(s)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, metavar="FILE", help="tables to merge into one")
    parser.add_argument("--server_ip", help="address of the server (default: of this one)")
    parser.add_argument("--device_ips", help="its devices' addresses, by comma (default: asked for on this server)")
    parser.add_argument("--device_num", default="8", help="count, [first,end) or list of device ids (default 8)")
    parser.add_argument("--visible_devices", default="", help="device ids by comma; --device_num then counts in them")
    parser.add_argument("--output", type=Path, help="file to write (default hccl_<ranks>p.json)")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check this table instead")
    return run_command(_run, "hccl_tools.py", parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
