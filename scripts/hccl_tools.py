#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write an HCCL rank table (version 1.0) for Ascend servers, or check one that exists.

One server with 8 devices:    python scripts/hccl_tools.py --server_ip 10.0.0.1 --device_num "[0,8)" \\
                                  --device_ips 192.1.27.6,192.2.27.6,...
Two servers: give --server_ip and --device_ips once per server, in the order of the ranks.
Check a table:                python scripts/hccl_tools.py --check rank_table.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command, stop_quietly

stop_quietly(__name__)

import argparse
import json
import re
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from itertools import count
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

from model_utils.reading import brief, read_text
from src.utils.files import writing
from src.utils.util import listed


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


def check_rank_table(text: str | bytes, path: Path) -> RankTable:
    """The table if it is complete and consistent; else a UserError that names the field of `path` that is wrong."""
    try:
        found = RankTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise UserError(f"{path}: {where or 'the table'}: {first['msg']}, not {brief(first['input'])}") from None
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


def read_rank_table(path: Path) -> RankTable:
    """The table in a file. UserError names the field that is wrong."""
    try:
        return check_rank_table(read_text(path), path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such rank table; scripts/hccl_tools.py makes one") from None


def device_range(text: str) -> list[int]:
    """'8' is devices 0 to 7; '[0,4)' is 0 to 3; '0,2,5' is just these."""
    text = text.replace(" ", "")
    if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})+", text):
        return list(map(int, text.split(",")))
    if re.fullmatch(r"\[[0-9]{1,4},[0-9]{1,4}\)|[0-9]{1,4}", text):
        return list(range(*map(int, text.strip("[)").split(","))))
    raise UserError(f"--device_num: must be a count (8), a range ([0,8)) or a list (0,2), not {brief(text)}")


def make_rank_table(options: argparse.Namespace) -> str:
    """The table of the servers and addresses that the flags name, ranks in that order."""
    device_ids, ranks, servers = device_range(options.device_num), count(), []
    if not options.server_ip:
        raise UserError("--server_ip: is not given (or --check FILE to check a table that exists)")
    addresses = [text.split(",") for text in options.device_ips]
    if [len(found) for found in addresses] != [len(device_ids)] * len(options.server_ip):
        raise UserError(f"--device_ips: is needed once for each of {len(options.server_ip)} server(s), with "
                        f"{len(device_ids)} address(es) (`hccn_tool -i DEVICE -ip -g` shows one)")
    for server, found in zip(options.server_ip, addresses, strict=True):
        devices = [{"device_id": str(device_id), "device_ip": address.strip(), "rank_id": str(next(ranks))}
                   for device_id, address in zip(device_ids, found, strict=True)]
        servers.append({"server_id": server, "device": devices, "host_nic_ip": "reserve"})
    return json.dumps({"version": "1.0", "server_count": str(len(servers)), "server_list": servers,
                       "status": "completed"}, indent=4) + "\n"


def _run(options: argparse.Namespace) -> None:
    if options.check:
        path, table, said = options.check, read_rank_table(options.check), "is correct: "
    else:
        text = make_rank_table(options)
        table, said = check_rank_table(text, options.output or Path("the table")), ""
        path = options.output or Path(f"hccl_{table.ranks}p.json")
        with writing(path):
            path.write_text(text, encoding="utf-8")
    print(f"{path}: {said}{table.ranks} rank(s) on {len(table.server_list)} server(s)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server_ip", action="append", default=[], help="address of a server; again for each one")
    parser.add_argument("--device_ips", action="append", default=[], help="its devices' addresses, by comma")
    parser.add_argument("--device_num", default="8", help="count, [first,end) or list of device ids (default 8)")
    parser.add_argument("--output", type=Path, help="file to write (default hccl_<ranks>p.json)")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check this table instead")
    return run_command(partial(_run, parser.parse_args(argv)), "hccl_tools.py")


if __name__ == "__main__":
    sys.exit(main())
