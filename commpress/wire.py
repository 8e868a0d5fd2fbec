"""Frames: a payload with all that is needed to decode it, checksummed. docs/frames.md defines the bytes."""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from typing import TypeAlias

import torch

from commpress.codecs import Key, codec
from commpress.errors import SpecError, TensorError, WireError

MAGIC = b"\x89CMPRS\r\n"
VERSION = 1
DTYPES = {1: torch.float32, 2: torch.float64, 3: torch.float16, 4: torch.bfloat16}
MAX_DIMENSIONS = 64
MAX_NUMEL = 2**56  # so that sizes in bytes and bits stay below 2^63 in every reader's arithmetic

_FIXED = struct.Struct("<8s H H Q Q Q I I I B B B B")
_CHECKSUM = struct.Struct("<I")
_CODES = {dtype: code for code, dtype in DTYPES.items()}

Frame: TypeAlias = torch.Tensor | bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """What a frame's header says, after validation.

    Attributes:
        spec: the codec's canonical text.
        key: the key of the encode.
        shape: the tensor's shape.
        dtype: the tensor's dtype.
        payload_start: first byte of the payload in the frame.
        payload_nbytes: its size in bytes.
    """

    spec: str
    key: Key
    shape: tuple[int, ...]
    dtype: torch.dtype
    payload_start: int
    payload_nbytes: int

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


def pack(x: torch.Tensor, codec: object, key: Key) -> torch.Tensor:
    """Encodes a tensor into a self-describing frame.

    Args:
        x: a floating-point CPU tensor of any shape and layout: float32, float64, float16 or bfloat16.
        codec: a codec (from :func:`commpress.codec`) or its spec.
        key: the key of the encode; it travels in the frame.

    Returns:
        The frame, a 1-D uint8 tensor.

    Raises:
        SpecError: the spec is malformed.
        TensorError: the tensor is not one of those above.
    """
    chosen = _codec(codec)
    if x.dtype not in _CODES:
        raise TensorError(f"a frame holds {', '.join(map(str, _CODES))}, not {x.dtype}")
    if x.dim() > MAX_DIMENSIONS:
        raise TensorError(f"a frame holds at most {MAX_DIMENSIONS} dimensions, not {x.dim()}")
    spec = str(chosen).encode("ascii")
    payload_nbytes = chosen.payload_nbytes(x.numel(), dtype=x.dtype)
    header = _FIXED.pack(
        MAGIC, VERSION, 0, payload_nbytes, x.numel(), key.seed, key.step, key.sender, key.tensor, key.phase,
        _CODES[x.dtype], x.dim(), len(spec),
    )  # fmt: skip
    header += struct.pack(f"<{x.dim()}Q", *x.shape) + spec
    end = len(header) + payload_nbytes
    frame = torch.empty(end + _CHECKSUM.size, dtype=torch.uint8)
    view = memoryview(frame.numpy())
    view[: len(header)] = header
    chosen.encode(x.detach(), key, out=frame[len(header) : end])
    view[end:] = _CHECKSUM.pack(zlib.crc32(view[:end]))
    return frame


def unpack(frame: Frame, *, max_numel: int | None = None) -> torch.Tensor:
    """Decodes a frame into a new tensor of the dtype and shape that were packed.

    Args:
        frame: the frame's bytes: a 1-D uint8 CPU tensor, or anything bytes-like.
        max_numel: refuse frames of more coordinates than this. Without it a hostile frame can make the result up to
            about 11 000 times as large as itself (codecs far below one bit), and no larger.

    Raises:
        WireError: the frame is malformed, truncated or corrupt; the message names the fault. Nothing was allocated.
    """
    view = _bytes_of(frame)
    info = parse(view, max_numel=max_numel)
    payload = view[info.payload_start : info.payload_start + info.payload_nbytes]
    # A copy unless it is a tensor's memory: what is bytes-like may be read-only, which torch doesn't know.
    source = frame if isinstance(frame, torch.Tensor) else torch.frombuffer(bytearray(view), dtype=torch.uint8)
    raw = source[info.payload_start : info.payload_start + len(payload)].contiguous()
    out = torch.empty(info.shape, dtype=info.dtype)
    _codec(info.spec).decode(raw, info.key, out=out)
    return out


def parse(frame: Frame, *, max_numel: int | None = None) -> FrameInfo:
    """Validates a frame, all but the scales inside its payload, and says what it holds. Allocates nothing of its size.

    Raises:
        WireError: as for :func:`unpack`.
    """
    view = _bytes_of(frame)
    if len(view) < _FIXED.size + _CHECKSUM.size:
        if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)]:
            raise WireError("not a commpress frame: wrong magic")
        raise WireError(f"frame truncated: {len(view)} bytes, a header alone needs {_FIXED.size}")
    magic, version, flags, payload_nbytes, numel, seed, step, sender, tensor, phase, dtype, dims, spec_nbytes = (
        _FIXED.unpack_from(view)
    )
    if magic != MAGIC:
        raise WireError("not a commpress frame: wrong magic")
    if version != VERSION:
        raise WireError(f"frame of format version {version}; this library reads version {VERSION}")
    start = _FIXED.size + 8 * dims + spec_nbytes
    total = start + payload_nbytes + _CHECKSUM.size
    if len(view) < total:
        raise WireError(f"frame truncated: {len(view)} bytes of {total}")
    if len(view) > total:
        raise WireError(f"frame has {len(view) - total} trailing bytes")
    (checksum,) = _CHECKSUM.unpack_from(view, total - _CHECKSUM.size)
    if zlib.crc32(view[: total - _CHECKSUM.size]) != checksum:
        raise WireError("frame corrupt: the checksum doesn't match")
    if flags:
        raise WireError(f"frame has unknown flags 0x{flags:04x}")
    if dtype not in DTYPES:
        raise WireError(f"frame has unknown dtype code {dtype}")
    if dims > MAX_DIMENSIONS:
        raise WireError(f"frame has {dims} dimensions, more than {MAX_DIMENSIONS}")
    shape = struct.unpack_from(f"<{dims}Q", view, _FIXED.size)
    if math.prod(max(size, 1) for size in shape) > MAX_NUMEL:
        raise WireError(f"frame's shape {shape} overflows")
    if math.prod(shape) != numel:
        raise WireError(f"frame's shape {shape} doesn't hold the {numel} coordinates that it states")
    if max_numel is not None and numel > max_numel:
        raise WireError(f"frame of {numel} coordinates, more than the {max_numel} allowed")
    try:
        spec = bytes(view[start - spec_nbytes : start]).decode("ascii")
        chosen = _codec(spec)
        key = Key(seed=seed, step=step, sender=sender, tensor=tensor, phase=phase)
    except (UnicodeDecodeError, SpecError) as error:
        raise WireError(f"frame has an unusable codec or key: {error}") from error
    if str(chosen) != spec:
        raise WireError(f"frame's codec {spec!r} is not in canonical form, {str(chosen)!r}")
    expected = chosen.payload_nbytes(numel, dtype=DTYPES[dtype])
    if payload_nbytes != expected:
        raise WireError(f"payload of {payload_nbytes} bytes; {numel} coordinates of {spec} take {expected}")
    return FrameInfo(spec, key, shape, DTYPES[dtype], start, payload_nbytes)


def _codec(spec: object):  # type: ignore[no-untyped-def]  # the codecs' base class is the codecs' own
    return codec(spec) if isinstance(spec, str) else spec


def _bytes_of(frame: Frame) -> memoryview:
    if isinstance(frame, torch.Tensor):
        if frame.dtype != torch.uint8 or frame.dim() != 1 or frame.device.type != "cpu":
            raise TensorError(
                f"a frame is a 1-D uint8 CPU tensor, not {frame.dtype} {tuple(frame.shape)} {frame.device}"
            )
        return memoryview(frame.detach().contiguous().numpy())
    return memoryview(frame).cast("B")
