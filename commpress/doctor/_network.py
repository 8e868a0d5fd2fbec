"""Interfaces and names: what gloo will talk through, and whether that is what is wanted."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import final

from commpress.collectives import mtu_of
from commpress.doctor._check import Check, fail, ok, warn

_SYS = Path("/sys/class/net")
_SIOCGIFADDR = 0x8915
_VIRTUAL = ("docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "tun", "tap", "ifb", "dummy", "vnet")


@final
@dataclasses.dataclass(frozen=True)
class Interface:
    """A network interface.

    Attributes:
        name, address: IPv4, or None if it has none. up: whether it carries traffic. mtu: bytes.
        mbit: speed in Mbit/s, or None where the system does not say.
    """

    name: str
    address: str | None
    up: bool = True
    mtu: int = 1500
    mbit: int | None = None

    @property
    def loopback(self) -> bool:
        """Whether it leads nowhere."""
        return self.name == "lo" or (self.address or "").startswith("127.")

    @property
    def candidate(self) -> bool:
        """Whether ranks on other machines could be reached through it."""
        return self.up and self.address is not None and not self.loopback and not self.name.startswith(_VIRTUAL)

    def in_words(self) -> str:
        """Name, address, speed and MTU."""
        speed = "speed unknown" if self.mbit is None else f"{self.mbit:,} Mbit/s"
        return f"{self.name} {self.address or 'without address'} ({speed}, MTU {self.mtu}{'' if self.up else ', down'})"


@final
@dataclasses.dataclass(frozen=True)
class Network:
    """Facts: the interfaces; this host's name and what it resolves to; GLOO_SOCKET_IFNAME, or None."""

    interfaces: tuple[Interface, ...]
    hostname: str
    resolved: tuple[str, ...]
    chosen: str | None = None

    @staticmethod
    def here(environment: Mapping[str, str]) -> Network:
        """Those of this process's network namespace."""
        name = socket.gethostname()
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)}
        except OSError:
            found = set()
        interfaces = tuple(_look(name) for _, name in socket.if_nameindex())
        return Network(interfaces, name, tuple(sorted(found)), environment.get("GLOO_SOCKET_IFNAME") or None)

    @property
    def used(self) -> Interface | None:
        """Through which gloo talks: the one named, else the one that has the host name's address; None if there is no such."""
        if self.chosen is not None:
            names = self.chosen.split(",")
            return next((one for one in self.interfaces if one.name in names), None)
        return next((one for one in self.interfaces if one.address in self.resolved and not one.loopback), None)


def _look(name: str) -> Interface:
    return Interface(name, _address(name), _read(name, "operstate") != "down", mtu_of(name), _speed(name))


def _address(name: str) -> str | None:
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    except (ImportError, OSError):
        return None


def _read(name: str, what: str) -> str:
    try:
        return (_SYS / name / what).read_text().strip()
    except OSError:  # speed: not for every kind of interface
        return ""


def _speed(name: str) -> int | None:
    text = _read(name, "speed")
    return int(text) if text.isdigit() and int(text) > 0 else None


def check_network(net: Network, *, machines: int = 1) -> list[Check]:
    """What is to be said. With several machines a name that resolves to loopback is a failure, else a warning."""
    listed = "; ".join(one.in_words() for one in net.interfaces if one.up) or "none"
    return [Check("interfaces", "ok", listed), _check_choice(net, machines)]


def _check_choice(net: Network, machines: int) -> Check:
    candidates = sorted((one for one in net.interfaces if one.candidate), key=lambda one: -(one.mbit or 0))
    best = candidates[0].name if candidates else None
    name_it = f"export GLOO_SOCKET_IFNAME={best}" if best else "give this machine an interface with an IPv4 address"
    bad = fail if machines > 1 else warn
    used = net.used
    if net.chosen is not None:
        if used is None or used.address is None:
            why = "there is no such interface" if used is None else "it has no IPv4 address"
            return fail("gloo", f"GLOO_SOCKET_IFNAME={net.chosen}: {why}", name_it)
        if not used.up:
            return fail(
                "gloo",
                f"GLOO_SOCKET_IFNAME={net.chosen}: it is down",
                f"ip link set {used.name} up, or {name_it}",
            )
        if used.loopback and machines > 1:
            return fail("gloo", f"GLOO_SOCKET_IFNAME={net.chosen} leads to no other machine", name_it)
        return ok("gloo", f"talks through {used.in_words()}, as GLOO_SOCKET_IFNAME says")
    reach = "other machines cannot reach it" if machines > 1 else "enough for one machine; others could not reach it"
    hosts = f"or make /etc/hosts or DNS give {net.hostname} this machine's own address"
    if not net.resolved:
        return bad(
            "gloo",
            f"the host's name {net.hostname} resolves to no address, so gloo talks through loopback: {reach}",
            f"{name_it}, {hosts}",
        )
    if all(address.startswith("127.") for address in net.resolved):
        trap = " (Debian and Ubuntu write 127.0.1.1 to /etc/hosts)" if "127.0.1.1" in net.resolved else ""
        return bad(
            "gloo",
            f"the host's name {net.hostname} resolves to {', '.join(net.resolved)}{trap}: gloo talks through loopback, {reach}",
            f"{name_it}, {hosts}",
        )
    if used is None:
        return bad(
            "gloo",
            f"the host's name {net.hostname} resolves to {', '.join(net.resolved)}, which no interface here has: gloo "
            f"falls back to loopback, {reach}",
            f"{name_it}, {hosts}",
        )
    if len(candidates) > 1 and used.name != best:
        return warn(
            "gloo",
            f"talks through {used.in_words()}, whose address the host's name has; {candidates[0].in_words()} is faster",
            name_it,
        )
    if len(candidates) > 1 and any(one.mbit is None for one in candidates):
        return warn(
            "gloo",
            f"{len(candidates)} interfaces could be used, and their speeds are not known; gloo takes {used.in_words()}, whose address the host's name has",
            f"name the fast one: export GLOO_SOCKET_IFNAME={used.name}",
        )
    return ok("gloo", f"talks through {used.in_words()}")


def gather_network() -> Network:
    """`Network.here` with this process's environment."""
    return Network.here(os.environ)
