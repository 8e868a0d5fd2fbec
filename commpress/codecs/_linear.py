"""What a codec offers whose codes can be added without being decoded."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch

from commpress.codecs._base import Codec
from commpress.codecs._key import Key


class LinearCodec(Codec):
    """A codec with which an all-reduce adds codes: the ranks agree on scales, each sends codes, owners add those of their shard, and everybody decodes the sums.

    The result is that of the workers' codes alone: sums are not quantised again. Scales are per block, so those of a range that begins at a multiple of ``BLOCK`` are
    a range of the scales. All payloads here may be cut, and joined, at multiples of ``BLOCK``.
    """

    def passes_on(self, world_size: int) -> bool:
        return False  # sums are not quantised

    @abc.abstractmethod
    def check_workers(self, workers: int) -> None:
        """Raises SpecError if so many codes cannot be added."""

    @abc.abstractmethod
    def scales_nbytes(self, numel: int) -> int:
        """Exact size of the scales of ``numel`` coordinates."""

    @abc.abstractmethod
    def codes_nbytes(self, numel: int) -> int:
        """Exact size of one worker's codes."""

    @abc.abstractmethod
    def sums_nbytes(self, numel: int, workers: int) -> int:
        """Exact size of the sums of ``workers`` workers' codes."""

    @abc.abstractmethod
    def own_scales(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the scales that ``x`` (1-D, contiguous) alone would need to ``out``, uint8."""

    @abc.abstractmethod
    def agree(self, scales: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Writes the scales that serve all workers to ``out``, which may be one of ``scales``. Raises WireError."""

    @abc.abstractmethod
    def finite(self, scales: torch.Tensor) -> bool:
        """Whether no worker had a NaN or an infinity where these agreed scales hold. Raises WireError."""

    @abc.abstractmethod
    def encode_codes(self, x: torch.Tensor, scales: torch.Tensor, key: Key, *, out: torch.Tensor, offset: int) -> None:
        """Writes worker ``key.sender``'s codes. Raises WireError if the scales are not those of an agreement with this worker."""

    @abc.abstractmethod
    def add_codes(self, codes: Sequence[torch.Tensor], *, out: torch.Tensor, numel: int) -> None:
        """Writes the sums of the codes of all workers."""

    @abc.abstractmethod
    def decode_sums(
        self,
        sums: torch.Tensor,
        scales: torch.Tensor,
        key: Key,
        *,
        workers: int,
        out: torch.Tensor,
        offset: int,
        gain: float,
    ) -> None:
        """Writes ``gain`` times the sum of what workers 0 .. ``workers - 1`` encoded. Raises WireError."""

    @abc.abstractmethod
    def payload_of(self, scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The payload, as of ``encode``, that holds these: ``decode`` with the worker's key gives what its codes say."""
