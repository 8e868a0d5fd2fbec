"""The header that precedes payloads: 512 bytes, the same size for ever, so that any two versions can read enough of each other to say what differs.

Layout (little-endian):
    0   8s   magic "CPRSHDR" and a zero
    8   u16  header version      10  u16  status (0 well, 1 failed)      12  u32  rank     16  u32  world size
    20  u8   operation (0 sum, 1 mean; 2 and 3: those of a reduce-scatter; 4 all-gather)      21  u8   dtype of the work buffer (0 fp32, 1 fp64)      22  u16  zero
    24  u64  sequence number     32  u64  numel      40  u64  seed      48  u32  step      52  u32  tensor
    56  u32  link speed, KiB/s, rounded to a power of two; 0 unknown      60  u32  zero
    64  16s  BLAKE2b of the full texts (codec of phase 1, codec of phase 2, plan), which follow cut to what fits:
    80  32s  library version     112 96s codec of phase 1      208 96s codec of phase 2     304 80s plan      384 128s reason of a failure
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import torch

from commpress.errors import MismatchError, WireError

HEADER_NBYTES = 512
HEADER_VERSION = 1
_MAGIC = b"CPRSHDR\0"
_STRUCT = struct.Struct("<8sHHIIBBHQQQIIII16s32s96s96s80s128s")
assert _STRUCT.size == HEADER_NBYTES
_NUMBERS = struct.Struct("<QQQIII")
_RANK_LINK = struct.Struct("<I40xI")
_OPS = ("sum", "mean", "reduce-scatter sum", "reduce-scatter mean", "all-gather")
_DTYPES = (torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a rank is about to reduce. See the module's text for widths."""

    rank: int
    world_size: int
    op: str
    dtype: torch.dtype
    sequence: int
    numel: int
    seed: int
    step: int
    tensor: int
    version: str
    codec1: str
    codec2: str
    plan: str
    digest: bytes
    link: int = 0
    failed: bool = False
    reason: str = ""
    header_version: int = HEADER_VERSION


def digest(codec1: str, codec2: str, plan: str) -> bytes:
    """16 bytes that stand for the full texts."""
    return hashlib.blake2b("\0".join((codec1, codec2, plan)).encode(), digest_size=16).digest()


def _cut(text: str, width: int) -> bytes:
    return text.encode("utf-8", "replace")[:width]


def write(header: Header, out: torch.Tensor) -> None:
    """Packs `header` into `out` (uint8, HEADER_NBYTES)."""
    data = _STRUCT.pack(
        _MAGIC,
        header.header_version,
        int(header.failed),
        header.rank,
        header.world_size,
        _OPS.index(header.op),
        _DTYPES.index(header.dtype),
        0,
        header.sequence,
        header.numel,
        header.seed,
        header.step,
        header.tensor,
        header.link,
        0,
        header.digest,
        _cut(header.version, 32),
        _cut(header.codec1, 96),
        _cut(header.codec2, 96),
        _cut(header.plan, 80),
        _cut(header.reason, 128),
    )
    out.numpy()[:] = memoryview(data)


def renumber(out: memoryview, sequence: int, numel: int, seed: int, step: int, tensor: int, link: int) -> None:
    """Changes the numbers of the header that `out` holds."""
    _NUMBERS.pack_into(out, 24, sequence, numel, seed, step, tensor, link)


def link_if_same(header: memoryview, mine: memoryview, rank: int) -> int:
    """The link speed in the header that `rank` sent if it agrees with mine in everything that must agree; otherwise, or in doubt, -1."""
    if header[:12] != mine[:12] or header[16:56] != mine[16:56] or header[60:] != mine[60:]:
        return -1
    sender, link = _RANK_LINK.unpack_from(header, 12)
    return link if sender == rank else -1


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "replace")


def read(data: torch.Tensor, rank: int) -> Header:
    """Parses the header that came from `rank`.

    Raises:
        WireError: it is no header, or its fields have no meaning.
        MismatchError: another header version.
    """
    fields = _STRUCT.unpack(data.numpy().tobytes())
    (magic, version, status, sender, size, op, dtype, _, sequence, numel, seed, step, tensor, link, _) = fields[:15]
    hashed, library, codec1, codec2, plan, reason = fields[15:]
    if magic != _MAGIC:
        raise WireError(f"what rank {rank} sent is not a header: it begins with {magic!r}")
    if version != HEADER_VERSION:
        raise MismatchError(
            f"rank {rank} speaks header version {version} (commpress {_text(library) or 'unknown'}), this rank version {HEADER_VERSION}"
        )
    if op >= len(_OPS) or dtype >= len(_DTYPES) or status > 1 or sender != rank:
        raise WireError(
            f"the header from rank {rank} is corrupt (operation {op}, dtype {dtype}, status {status}, rank {sender})"
        )
    return Header(
        rank=sender,
        world_size=size,
        op=_OPS[op],
        dtype=_DTYPES[dtype],
        sequence=sequence,
        numel=numel,
        seed=seed,
        step=step,
        tensor=tensor,
        version=_text(library),
        codec1=_text(codec1),
        codec2=_text(codec2),
        plan=_text(plan),
        digest=hashed,
        link=link,
        failed=bool(status),
        reason=_text(reason),
    )


_COMPARED = (
    ("version", "commpress version"),
    ("world_size", "world size"),
    ("plan", "plan"),
    ("codec1", "codec"),
    ("codec2", "codec of phase 2"),
    ("op", "operation"),
    ("numel", "number of elements"),
    ("dtype", "dtype"),
    ("seed", "seed"),
    ("step", "step"),
    ("tensor", "tensor"),
    ("sequence", "sequence number"),
    ("digest", "plan or codec beyond what a header shows (digest)"),
)


def compare(headers: list[Header]) -> None:
    """Checks that all ranks are about to do the same.

    Args:
        headers: one per rank, in rank order: so every rank finds, and says, the same.

    Raises:
        MismatchError: they differ. The message names every field that does, with each value's ranks.
    """
    differences = []
    for attribute, name in _COMPARED:
        values: dict[object, list[int]] = {}
        for header in headers:
            values.setdefault(getattr(header, attribute), []).append(header.rank)
        if len(values) > 1:
            parts = []
            for value, ranks in values.items():
                shown = value.hex() if isinstance(value, bytes) else repr(value)
                parts.append(f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}: {shown}")
            if attribute == "codec2" and all(header.codec1 == header.codec2 for header in headers):
                continue  # the same news as for phase 1
            differences.append(f"{name} ({'; '.join(parts)})")
    if len(differences) > 1:  # the digest says nothing new when a text differs
        differences = [text for text in differences if not text.startswith(_COMPARED[-1][1])] or differences
    if differences:
        raise MismatchError("ranks disagree on " + " and ".join(differences))
