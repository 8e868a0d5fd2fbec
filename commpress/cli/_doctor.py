"""``commpress doctor``: what this machine, or a group of ranks, lacks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commpress.doctor import Check

_EXAMPLES = """\
examples:
  commpress doctor                                              this machine
  torchrun --nproc_per_node=2 -m commpress doctor               this machine, and two ranks on it
  torchrun --nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_endpoint=10.0.0.1:29500 -m commpress doctor
  commpress doctor --json

Exit status: 0 if nothing fails (warnings are no failures), else 1. docs/doctor.md explains each check.
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine and, under torchrun, a group of ranks",
        description="Checks the extension, torch, threads, MPI, network and limits of this machine, and, under "
        "torchrun, whether its ranks fit and reach each other. Says what is wrong and how to mend it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--group",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="check the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe (default: if they are set)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="that a wait for other ranks may take (default %(default)g)",
    )
    parser.add_argument("--no-cluster", action="store_true", help="do not try to make an emulated cluster")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.doctor import Machine, check_network, gather_network, loopback_check, machine_checks, worst

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    in_group = "RANK" in os.environ and "MASTER_ADDR" in os.environ if options.group is None else options.group
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first_here = int(os.environ.get("LOCAL_RANK", "0")) == 0
    checks: list[Check] = []
    if first_here or not in_group:
        machine = Machine.here(
            world_size=world_size, local_ranks=local_ranks, with_cluster=not options.no_cluster and first_here
        )
        checks = machine_checks(machine)
    if in_group:
        checks = _with_group(checks, options.timeout)
    else:
        checks += [*check_network(gather_network()), loopback_check(timeout=options.timeout)]
    status = worst(checks)
    if rank == 0 or not in_group:
        _show(checks, as_json=options.json)
    return 0 if status != "fail" else 1


def _with_group(mine: list[Check], timeout: float) -> list[Check]:
    """This machine's checks, those of other machines that are not well, and the group's. The same on all ranks."""
    import datetime

    import torch.distributed as dist

    from commpress.doctor import Check, check_network, gather_network, group_checks

    try:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    except (RuntimeError, ValueError, OSError) as error:
        first = " ".join(str(error).split())[:300]
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        remedy = (
            "start it with torchrun on every machine; rank 0's address and port must be reachable from all, and GLOO_SOCKET_IFNAME "
            "must name the interface that connects them"
        )
        met = Check("group", "fail", f"the ranks did not meet at {where} within {timeout:g} s: {first}", remedy)
        return [*mine, *check_network(gather_network()), met]
    try:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (os.uname().nodename, mine))
        checks = list(everyone[0][1])
        for host, found in everyone[1:]:
            checks += [dataclasses.replace(one, host=host) for one in found if one.status != "ok"]
        return checks + group_checks()
    except RuntimeError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        lost = Check(
            "group",
            "fail",
            f"rank {dist.get_rank()} lost the others: {first}",
            "look at what the other ranks said; if all wait for each other, a firewall between the machines lets some ports through only",
        )
        return [*mine, *check_network(gather_network()), lost]
    finally:
        dist.destroy_process_group()


def _show(checks: list[Check], *, as_json: bool) -> None:
    from commpress._version import __version__
    from commpress.doctor import worst

    if as_json:
        found = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"commpress": __version__, "status": worst(checks), "checks": found}))
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        where = f"[{check.host}] " if check.host else ""
        print(f"{check.status:4}  {check.name.ljust(width)}  {where}{check.text}")
        if check.remedy:
            print(f"      {'to mend'.rjust(width)}  {check.remedy}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    sys.stdout.flush()
