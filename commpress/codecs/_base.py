"""What every codec offers."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from commpress import ops
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise
from commpress.errors import SpecError, TensorError, WireError

BLOCK = 4096  # coordinates; payloads begin at multiples of it, and may be cut there


class Codec(abc.ABC):
    """A frozen, hashable map from tensors to bytes and back. Make one with :func:`commpress.codec`; ``str`` gives its canonical spec."""

    @property
    @abc.abstractmethod
    def bits(self) -> float | None:
        """Requested mean payload bits per coordinate, None where the dtype decides."""

    @property
    @abc.abstractmethod
    def unbiased(self) -> bool:
        """Whether the mean of the decoded value over keys is the input, for every finite input."""

    @property
    @abc.abstractmethod
    def lossless(self) -> bool:
        """Whether decoding gives the input back, to the bit."""

    @property
    @abc.abstractmethod
    def noise(self) -> Noise:
        """How the error goes with the coordinate: "multiplicative", "additive", "mixed" or "none" (docs/precision-scaling.md says what that means, and what it costs)."""

    @property
    def even_error(self) -> bool:
        """Whether the coordinates of a block get errors of about the same size, however different they are themselves: what noise shaping mends."""
        return False

    @abc.abstractmethod
    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        """Exact size in bytes of every payload of ``numel`` coordinates that begins at index ``offset`` of its tensor (a multiple of ``BLOCK``)."""

    def at_rate(self, rate: int) -> Codec:
        """The same codec at ``rate`` millionths of a bit per coordinate.

        Raises:
            SpecError: its rate can't be chosen, or not this one.
        """
        raise SpecError(f"the rate of {self} cannot be chosen: a bit budget needs a codec such as 'hadamard+lloyd:2'")

    def payload_nbytes_each(self, rates: np.ndarray, numels: np.ndarray) -> np.ndarray:
        """Sizes of many payloads of this codec at other rates, each from index 0 on.

        Args:
            rates: millionths of a bit per coordinate, int64 of shape (n,). numels: coordinates, likewise.

        Returns:
            Bytes, int64 of shape (n,).

        Raises:
            SpecError: as :meth:`at_rate`.
        """
        pairs = zip(rates.tolist(), numels.tolist(), strict=True)
        return np.array([self.at_rate(rate).payload_nbytes(numel) for rate, numel in pairs], dtype=np.int64)

    def runs_on(self, device: torch.device) -> bool:
        """Whether tensors on this device can be encoded and decoded: the CPU, and for some codecs CUDA devices."""
        return device.type == "cpu"

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer] | None:
        """What the CUDA kernels are told of fp32 coordinates [offset, offset + numel): rows of :func:`commpress.ops.device_table`. None: they cannot do it in one pass."""
        return None

    @property
    def needs_side(self) -> bool:
        """Whether ``decode`` needs side information."""
        return False

    def passes_on(self, world_size: int) -> bool:
        """Whether phase 2 of an all-reduce brings the owner's contribution instead of the mean: with two ranks each then has both contributions, and nothing is quantised twice.

        Not if nothing is lost anyway, and not where the result is to be what one rank could have sent (a majority vote).
        """
        return world_size == 2 and not self.lossless

    @property
    def of_second_phase(self) -> Codec:
        """What an all-reduce sends the reduced shards with: this codec, unless that cannot be."""
        return self

    @abc.abstractmethod
    def for_feedback(self) -> Codec:
        """The same codec with the least-squares scale that error feedback needs; itself where there is nothing to choose."""

    @abc.abstractmethod
    def __str__(self) -> str: ...

    def split(self, start: int, stop: int, parts: int) -> list[int]:
        """Cuts [start, stop) of a tensor into consecutive parts of about equal payload.

        Returns:
            parts + 1 positions at which payloads may begin, from ``start`` to ``stop``; parts may be empty.
        """
        blocks = -(-(stop - start) // BLOCK)
        return [min(start + part * blocks // parts * BLOCK, stop) for part in range(parts + 1)]

    def seams(self, start: int, stop: int, parts: int) -> list[int]:
        """Cuts [start, stop) into about ``parts`` parts whose payloads, one behind the other, are the payload of the whole: as :meth:`split`, unless payloads are in one piece.

        Returns:
            Positions from ``start`` to ``stop``.
        """
        return self.split(start, stop, parts)

    def check_offset(self, offset: int) -> None:
        """Raises SpecError if payloads cannot begin at ``offset``."""
        if offset < 0 or offset % BLOCK:
            raise SpecError(f"offset must be a non-negative multiple of {BLOCK}, got {offset}")

    @abc.abstractmethod
    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        """``x`` is 1-D and contiguous, ``out`` has the right size."""

    @abc.abstractmethod
    def _decode(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        """``out`` is 1-D and contiguous, ``payload`` has the right size."""

    def _decode_with(
        self,
        side: torch.Tensor,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        """``_decode`` of a codec that needs side information; the others refuse it."""
        raise TensorError(f"{self} decodes without side information: leave out side=")

    def encode(
        self, x: torch.Tensor, key: Key, *, out: torch.Tensor | None = None, offset: int = 0, gain: float = 1.0
    ) -> torch.Tensor:
        """Encodes ``gain * x``.

        Args:
            x: floating-point tensor of any shape and strides, read in row-major order, on a device that the codec :meth:`runs_on`. On CUDA nothing waits for the device.
            key: what all randomness is derived from.
            out: 1-D contiguous uint8 tensor of exactly ``payload_nbytes`` to write to, on the same device; made if None.
            offset: index of x's first coordinate in the whole tensor, a multiple of ``BLOCK``.
            gain: positive factor, free of cost.

        Returns:
            1-D uint8 tensor; its length times 8 are all the bits.

        Raises:
            TensorError: ``x`` or ``out`` is not of an accepted kind. SpecError: ``offset`` or ``gain`` is out of range.
        """
        self._check_values(x, "x", self.runs_on)
        self.check_offset(offset)
        _check_gain(gain)
        nbytes = self.payload_nbytes(x.numel(), offset=offset, dtype=x.dtype)
        if out is None:
            out = torch.empty(nbytes, dtype=torch.uint8, device=x.device)
        elif (
            out.dtype != torch.uint8
            or out.dim() != 1
            or not out.is_contiguous()
            or out.numel() != nbytes
            or out.device != x.device
        ):
            raise TensorError(
                f"out must be a contiguous 1-D uint8 tensor of {nbytes} bytes on {x.device}, got {_describe(out)}"
            )
        if x.numel():
            self._encode(x.detach().reshape(-1).contiguous(), key, out, offset, gain)
        return out

    def decode(
        self,
        payload: torch.Tensor,
        key: Key,
        *,
        out: torch.Tensor,
        accumulate: bool = False,
        offset: int = 0,
        gain: float = 1.0,
        beta: float = 1.0,
        side: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes ``gain * value`` to ``out``, or ``beta * out + gain * value`` with ``accumulate``.

        Args:
            payload: 1-D uint8 tensor of exactly ``payload_nbytes(out.numel())``.
            key: the encoder's.
            out: floating-point tensor; its number of elements is what bounds the work. On CUDA the call waits for the device.
            accumulate, gain, beta: as above; ``beta`` is ignored without ``accumulate``.
            offset: the encoder's.
            side: side information, a floating-point CPU tensor of ``out``'s shape, in any scale; needed by codecs that say so, refused by the others.

        Returns:
            ``out``.

        Raises:
            WireError: the payload has the wrong size or an invalid scale; ``out`` is untouched.
            TensorError: ``out``, ``payload`` or ``side`` is not of an accepted kind, or ``side`` is missing. SpecError: ``offset`` or ``gain`` is out of range.
        """
        self._check_values(out, "out", self.runs_on)
        self.check_offset(offset)
        _check_gain(gain)
        if payload.dtype != torch.uint8 or payload.dim() != 1 or payload.device != out.device:
            raise TensorError(f"a payload is a 1-D uint8 tensor, here on {out.device}, got {_describe(payload)}")
        nbytes = self.payload_nbytes(out.numel(), offset=offset, dtype=out.dtype)
        if payload.numel() != nbytes:
            raise WireError(f"a {self} payload of {out.numel()} coordinates has {nbytes} bytes, got {payload.numel()}")
        payload = payload.contiguous()
        if side is not None:
            self._check_values(side, "side", self.runs_on)
            if side.shape != out.shape:
                raise TensorError(f"side must have the shape of out, {tuple(out.shape)}, got {tuple(side.shape)}")
        if out.numel() == 0:
            return out
        flat = out.detach().contiguous().view(-1)
        if side is None:
            self._decode(payload, key, flat, accumulate, offset, gain, beta)
        else:
            known = side.detach().reshape(-1).contiguous()
            self._decode_with(known, payload, key, flat, accumulate, offset, gain, beta)
        if not out.is_contiguous():
            out.detach().copy_(flat.view(out.shape))
        return out

    def _check_values(self, t: torch.Tensor, name: str, on: Callable[[torch.device], bool]) -> None:
        if not isinstance(t, torch.Tensor) or not t.dtype.is_floating_point or t.layout != torch.strided:
            what = f"{t.layout} {t.dtype}" if isinstance(t, torch.Tensor) else type(t).__name__
            raise TensorError(
                f"{name} must be a dense floating-point tensor, got {what} (complex tensors: torch.view_as_real)"
            )
        if t.device.type != "cpu" and not on(t.device):
            raise TensorError(
                f"{name} is on {t.device}, where {self} has no kernels in this build (docs/cuda.md says which codecs do): move it to the CPU"
            )

    def decode_sum(
        self, payloads: Sequence[torch.Tensor], keys: Sequence[Key], *, out: torch.Tensor, offset: int = 0
    ) -> bool:
        """Writes the sum of the decoded payloads, added in their order, to ``out``.

        Args:
            payloads, keys: at least one payload of ``out.numel()`` coordinates from ``offset`` on, and the keys that encoded them.
            out: 1-D contiguous floating-point CPU tensor.

        Returns:
            Whether the sum is finite.

        Raises:
            WireError: a payload is invalid; what ``out`` then holds is undefined. TensorError, SpecError: as in :meth:`decode`.
        """
        for i, (payload, key) in enumerate(zip(payloads, keys, strict=True)):
            self.decode(payload, key, out=out, accumulate=i > 0, offset=offset)
        return bool(torch.isfinite(out.sum())) or bool(torch.isfinite(out).all())  # a finite sum says it at once

    def reduce(
        self,
        payloads: Sequence[torch.Tensor],
        keys: Sequence[Key],
        key: Key,
        *,
        values: torch.Tensor,
        out: torch.Tensor,
        offset: int = 0,
        beta: float = 1.0,
    ) -> bool:
        """The owner's part of an all-reduce: ``values = beta * values + decoded payloads`` (in their order), encoded with ``key`` to ``out`` and decoded again into ``values``.

        Args:
            payloads, keys: at least one payload of ``values.numel()`` coordinates from ``offset`` on, and the keys that encoded them.
            values: 1-D contiguous floating-point CPU tensor.
            out: 1-D uint8 tensor of exactly ``payload_nbytes``.
            beta: factor of what ``values`` holds before.

        Returns:
            Whether the result is finite.

        Raises:
            WireError: a payload is invalid; what ``values`` and ``out`` then hold is undefined. TensorError, SpecError: as in :meth:`decode`.
        """
        for i, (payload, sender) in enumerate(zip(payloads, keys, strict=True)):
            self.decode(payload, sender, out=values, accumulate=True, offset=offset, beta=1.0 if i else beta)
        self.encode(values, key, out=out, offset=offset)
        self.decode(out, key, out=values, offset=offset)
        return bool(torch.isfinite(values).all())


def _describe(t: torch.Tensor) -> str:
    return f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"


def _check_gain(gain: float) -> None:
    if not (gain > 0 and math.isfinite(gain)):
        raise SpecError(f"gain must be positive and finite, got {gain}")
