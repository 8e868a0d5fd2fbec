"""Memory that the ranks of one node can all look at: anonymous, so that nothing is left behind however a process ends."""

from __future__ import annotations

import collections
import itertools
import mmap
import os
import secrets
import threading
import weakref
from collections.abc import Sequence
from typing import Any, final

import torch

from commpress.errors import PeerError

_PROBE_NBYTES = 16
_MOST_MAPPINGS = 1024
_numbers = itertools.count()


@final
class Segment:
    """Memory of this rank that others may map.

    Attributes:
        values: the tensor in it. name: what others open it by: process, descriptor, and a number that tells it from earlier ones.
    """

    def __init__(self, numel: int, dtype: torch.dtype) -> None:
        nbytes = max(numel, 1) * dtype.itemsize
        descriptor = os.memfd_create("commpress", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)  # mappings stay
        os.ftruncate(descriptor, nbytes)
        process = os.readlink("/proc/self")  # its number as /proc has it, which need not be os.getpid()
        self.name = f"{process}/{descriptor}/{next(_numbers)}"
        self.values = torch.frombuffer(mmap.mmap(descriptor, nbytes), dtype=dtype, count=max(numel, 1))[:numel]


@final
class Mappings:
    """Segments of other ranks, by name; the least recently used are let go of."""

    def __init__(self) -> None:
        self._known: collections.OrderedDict[str, torch.Tensor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """The tensor in the segment of that name. Raises PeerError."""
        with self._lock:
            found = self._known.get(name)
            if found is None:
                found = self._known[name] = self._map(name, numel, dtype)
                while len(self._known) > _MOST_MAPPINGS:
                    self._known.popitem(last=False)
            self._known.move_to_end(name)
            return found

    @staticmethod
    def _map(name: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
        nbytes = max(numel, 1) * dtype.itemsize
        try:
            with open(_path(name), "r+b") as file:
                if os.fstat(file.fileno()).st_size != nbytes:
                    raise OSError("another size")
                return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=dtype, count=max(numel, 1))[:numel]
        except OSError as error:
            raise PeerError(f"the memory that process {name.split('/')[0]} shares cannot be mapped: {error}") from None


def _path(name: str) -> str:
    process, descriptor, _ = name.split("/")
    return f"/proc/{process}/fd/{descriptor}"


@final
class Probe:
    """A few bytes in shared memory, by which ranks find out whether they see each other's. Kept until all have looked.

    Attributes:
        facts: what others need for looking; None where there is no such memory.
    """

    def __init__(self) -> None:
        self.facts: list[str] | None = None
        self._segment: Any = None
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            secret = secrets.token_bytes(_PROBE_NBYTES)
            self._segment = Segment(_PROBE_NBYTES, torch.uint8)
            self._segment.values.copy_(torch.frombuffer(bytearray(secret), dtype=torch.uint8))
            self.facts = [self._segment.name, secret.hex()]

    @staticmethod
    def sees(others: Sequence[list[str] | None]) -> bool:
        """Whether this rank sees the memory of all of them."""
        try:
            return all(
                facts is not None
                and bytes(Mappings().get(facts[0], _PROBE_NBYTES, torch.uint8).numpy()).hex() == facts[1]
                for facts in others
            )
        except PeerError:
            return False
