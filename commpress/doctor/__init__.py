"""What a machine and a group of ranks lack for compressed training, and how to mend it. `commpress doctor` is its command.

Facts and judgements are apart: `Machine.here()` and the functions `gather_*` look; the functions `check_*` judge facts that they are given, and so can be tested with faulty ones.
"""

from commpress.doctor._check import Check, worst
from commpress.doctor._exchange import exchange_check, loopback_check
from commpress.doctor._group import RankFacts, check_ranks, group_checks
from commpress.doctor._machine import Machine, machine_checks
from commpress.doctor._network import Interface, Network, check_network, gather_network

__all__ = [
    "Check",
    "Interface",
    "Machine",
    "Network",
    "RankFacts",
    "check_network",
    "check_ranks",
    "exchange_check",
    "gather_network",
    "group_checks",
    "loopback_check",
    "machine_checks",
    "worst",
]
