"""Typed wrappers of the C++ operators, and their fake kernels. Everything about a codec's meaning is in :mod:`commpress.codecs`."""

from __future__ import annotations

import enum
import pathlib

import torch

_LIBRARY = pathlib.Path(__file__).with_name("_C.abi3.so")
if not _LIBRARY.exists():
    raise ImportError(
        f"commpress's extension {_LIBRARY} is missing: build it with `pip install .` (or `make`) in a checkout of commpress"
    )
torch.ops.load_library(str(_LIBRARY))

_ops = torch.ops.commpress


class Isa(enum.IntEnum):
    """Code paths of the CPU kernels. All give the same bytes; ``BEST`` is chosen at run time."""

    BEST = -1
    PLAIN = 0
    AVX2 = 1
    AVX512 = 2


def isa_available(isa: Isa) -> bool:
    """Whether this machine can run the code path."""
    return isa is Isa.BEST or _ops.isa_available(int(isa))


def payload_nbytes(family: int, rate: int, centroid: bool, offset: int, numel: int) -> int:
    """Exact size in bytes of a payload; ``rate`` in millionths of a bit per coordinate."""
    return _ops.payload_nbytes(family, rate, centroid, offset, numel)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def encode(
    x: torch.Tensor,
    payload: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    gain: float,
    isa: Isa = Isa.BEST,
) -> None:
    """Writes the payload of ``gain * x``. ``x``: 1-D contiguous float32; ``payload``: 1-D uint8 of exactly ``payload_nbytes``. Releases the GIL."""
    _ops.encode(x, payload, family, rate, centroid, _signed(seed), *words, offset, gain, int(isa))


def decode(
    payload: torch.Tensor,
    out: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    words: tuple[int, int, int],
    offset: int,
    accumulate: bool,
    gain: float,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """Decodes into ``out`` (1-D contiguous float32). Returns -1, or the first block with an invalid scale, and then has written nothing. Releases the GIL."""
    return _ops.decode(
        payload, out, family, rate, centroid, _signed(seed), *words, offset, accumulate, gain, beta, int(isa)
    )


def reduce(
    payloads: list[torch.Tensor],
    values: torch.Tensor,
    out: torch.Tensor,
    *,
    family: int,
    rate: int,
    centroid: bool,
    seed: int,
    senders: list[int],
    words: tuple[int, int, int],
    offset: int,
    beta: float,
    isa: Isa = Isa.BEST,
) -> int:
    """``values = beta * values + sum of the payloads``, encoded to ``out`` and decoded again in place, in one pass over memory.

    ``senders``: word 2 of each payload's key; ``words``: of the key that encodes. Returns -1, -2 if the result is not finite, or the position of the first invalid payload,
    and then has written nothing. Releases the GIL.
    """
    return _ops.reduce(
        payloads, senders, values, out, family, rate, centroid, _signed(seed), *words, offset, beta, int(isa)
    )


# torch calls these in place of the kernels when it traces: the kernels write to their arguments and give back a number at most.
def _wrote_argument(*_: object) -> None:
    return None


def _reported_success(*_: object) -> int:
    return -1


torch.library.register_fake("commpress::encode")(_wrote_argument)
torch.library.register_fake("commpress::decode")(_reported_success)
torch.library.register_fake("commpress::reduce")(_reported_success)
