#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write an HCCL rank table for Ascend servers, or check one that exists.

One server with 8 devices:    python scripts/hccl_tools.py --server_ip 10.0.0.1 --device_num "[0,8)" \\
                                  --device_ips 192.1.27.6,192.2.27.6,...
Two servers: give --server_ip and --device_ips once per server, in the order of the ranks.
Check a table:                python scripts/hccl_tools.py --check rank_table.json
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command  # noqa: E402
from scripts.rank_table import Device, check_rank_table, make_rank_table, read_rank_table  # noqa: E402
from src.utils.files import write_atomically  # noqa: E402
from src.utils.util import writing  # noqa: E402


def device_range(text: str) -> list[int]:
    """'8' is devices 0 to 7; '[0,4)' is 0 to 3; '0,2,5' is just these."""
    interval = re.fullmatch(r"\[(\d+),(\d+)\)", text.replace(" ", ""))
    if interval:
        devices = list(range(int(interval[1]), int(interval[2])))
    elif text.isdigit():
        devices = list(range(int(text)))
    elif re.fullmatch(r"\d+(,\d+)+", text):
        devices = [int(item) for item in text.split(",")]
    else:
        devices = []
    if not devices:
        raise UserError(f"--device_num: must be a count (8), a range ([0,8)) or a list (0,2), not {text!r}")
    return devices


def _address(text: str, flag: str) -> str:
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not an IP address") from None


def _servers(options: argparse.Namespace) -> list[tuple[str, list[tuple[int, str]]]]:
    devices = device_range(options.device_num)
    if len(options.server_ip) != len(options.device_ips):
        raise UserError(f"--device_ips: given {len(options.device_ips)} time(s) for {len(options.server_ip)} "
                          "server(s), but needed once for each (`hccn_tool -i DEVICE -ip -g` shows an address)")
    servers = []
    for server, addresses in zip(options.server_ip, options.device_ips, strict=True):
        ips = [_address(item, "--device_ips") for item in addresses.split(",")]
        if len(ips) != len(devices):
            raise UserError(f"--device_ips: {len(ips)} address(es) for {len(devices)} device(s) of server {server}")
        servers.append((_address(server, "--server_ip"), list(zip(devices, ips, strict=True))))
    return servers


def _describe(devices: list[Device]) -> str:
    return f"{len(devices)} rank(s) on {len({device.server_id for device in devices})} server(s)"


def _run(options: argparse.Namespace) -> None:
    if options.check:
        print(f"{options.check}: is in order: {_describe(read_rank_table(options.check))}")
        return
    if not options.server_ip:
        raise UserError("--server_ip: is not given (or --check FILE to look at a table that exists)")
    table = make_rank_table(_servers(options))
    path = options.output or Path(f"hccl_{sum(len(server['device']) for server in table['server_list'])}p.json")
    devices = check_rank_table(table, path)
    with writing(path):
        write_atomically(path, json.dumps(table, indent=4) + "\n")
    print(f"{path}: {_describe(devices)}")


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
