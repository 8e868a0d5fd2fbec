"""What an emulated cluster could leave behind, as the host sees it: processes, network namespaces, interfaces, qdiscs, mounts, names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import time
from typing import Any

import pytest

from commpress.cluster import Cluster, Topology
from commpress.errors import ClusterError

_SLAB = pathlib.Path("/sys/kernel/slab/net_namespace")
_SECONDS = 20.0


def need_cluster() -> None:
    """Skips, with a reason, where no cluster can be made."""
    try:
        with Cluster(Topology(2)):
            pass
    except ClusterError as error:
        print(f"skipped: {error}")
        pytest.skip(str(error))


def namespaces(settle: float = 0.2) -> int | None:
    """Network namespaces of the whole kernel that no process or mount can be seen to hold, and one or two that are gone; None where the kernel does not tell.

    What others hold at the same time is left out, so that tests may run beside each other. A kernel may keep the memory of a namespace that is gone until it takes the next one down (6.13 and
    newer do), so this makes one that comes after, and waits `settle` seconds for that.
    """
    try:
        subprocess.run(["unshare", "--net", "true"], check=True, timeout=20)
        time.sleep(settle)
        (_SLAB / "shrink").write_text("1")  # else objects that are free are counted too
        return int((_SLAB / "objects").read_text().split()[0]) - len(_held())
    except OSError:
        return None


def _held() -> set[str]:
    """Network namespaces that can be seen: those of processes, behind their descriptors, and mounted ones."""
    found = set(re.findall(r" (net:\[\d+\]) ", pathlib.Path("/proc/self/mountinfo").read_text()))
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                found.add(os.readlink(folder / "ns/net"))
                links = [os.readlink(folder / "fd" / name) for name in os.listdir(folder / "fd")]
                found.update(link for link in links if link.startswith("net:["))
    return found


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.splitlines()


def processes(*words: str) -> list[str]:
    """Command lines that hold one of these words: keepers name their owner in theirs, ranks what a test gave them. Zombies have none."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(word in line for word in words):
                found.append(f"{folder.name}: {line}")
    return found


@dataclasses.dataclass(frozen=True)
class Host:
    """The host's own side, and how many namespaces there are."""

    interfaces: list[str]
    qdiscs: list[str]
    names: list[str]
    mounts: list[str]
    namespaces: int | None

    @classmethod
    def now(cls, settle: float = 0.2) -> Host:
        links = [line.split()[1] for line in _lines("ip", "-o", "link", "show")]
        mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
        return cls(links, _lines("tc", "qdisc", "show"), _lines("ip", "netns", "list"), mounts, namespaces(settle))


def remains(before: Host, *words: str) -> dict[str, Any]:
    """What is there now and was not before; empty if nothing is."""
    now, found = Host.now(0.05), {}
    for field in ("interfaces", "qdiscs", "names", "mounts"):
        if more := [line for line in getattr(now, field) if line not in getattr(before, field)]:
            found[field] = more
    if now.namespaces is not None and before.namespaces is not None and now.namespaces > before.namespaces:
        found["namespaces"] = now.namespaces - before.namespaces
    if running := processes(*words):
        found["processes"] = running
    return found


def assert_nothing_left(before: Host, *words: str) -> None:
    """The kernel takes network namespaces down in the background, so they get a while; all else is given the same."""
    deadline = time.monotonic() + _SECONDS
    while found := remains(before, *words):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
