"""One message between two ranks: a verdict, then a payload."""

from __future__ import annotations

import struct
from typing import final

import torch

VERDICT_NBYTES = 128
_VERDICT = struct.Struct("<4sBBHQ112s")
assert _VERDICT.size == VERDICT_NBYTES
_MAGIC = b"CPRV"

Piece = tuple[int, int, torch.Tensor]  # start, stop, payload


@final
class Message:
    """A buffer for one message: verdict prefix, then the payload of coordinates [start, stop).

    Attributes:
        data: the whole message, uint8. whole: [(start, stop, payload view)], or nothing. pieces: the same in parts whose values fit into a second-level cache, for work in
            several passes. nbytes_payload: without the prefix.
    """

    __slots__ = ("_memory", "data", "nbytes_payload", "pieces", "whole")

    def __init__(self, data: torch.Tensor, pieces: list[Piece]) -> None:
        self.data = data
        self.pieces = pieces
        self.whole = [(pieces[0][0], pieces[-1][1], self.payload)] if pieces else []
        self.nbytes_payload = data.numel() - VERDICT_NBYTES
        self._memory = memoryview(data.numpy())[:VERDICT_NBYTES]

    @property
    def payload(self) -> torch.Tensor:
        """All of it, without the prefix."""
        return self.data[VERDICT_NBYTES:]

    def write_verdict(self, sequence: int, *, failed: bool, nonfinite: bool, origin: int, reason: str) -> None:
        """Fills the prefix: whether the sender met a failure (its own or one it was told of; `origin` is the rank where it began)."""
        text = reason.encode("utf-8", "replace")[:112] if failed else b""
        _VERDICT.pack_into(self._memory, 0, _MAGIC, failed, nonfinite, origin, sequence, text)

    def read_verdict(self) -> tuple[bool, bool, int, int, str]:
        """(failed, nonfinite, origin, sequence, reason); a prefix that is none counts as a failure."""
        magic, failed, nonfinite, origin, sequence, text = _VERDICT.unpack_from(self._memory, 0)
        if magic != _MAGIC:
            return True, False, -1, sequence, "a message without verdict arrived"
        return bool(failed), bool(nonfinite), origin, sequence, text.rstrip(b"\0").decode("utf-8", "replace")
