"""How long a codec takes for a coordinate: the operations of an all-reduce, timed on one rank without any peer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from commpress.cluster import CodecCost
from commpress.codecs import Codec, Key, LinearCodec, LowRankCodec
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError

_NUMELS = (1 << 13, 1 << 18)  # of a call: two blocks, and a MiB of fp32
_MOST_REPETITIONS = 50
_MOST_PEERS = 7  # whose payloads are really decoded


def check_codec(codec: Any) -> Codec:
    """A codec whose all-reduce the cost model describes, from it or its spec.

    Raises:
        SpecError: malformed, or low-rank factors, sums of codes, or side information: their exchanges have other phases.
    """
    made = make_codec(codec) if isinstance(codec, str) else codec
    if not isinstance(made, Codec) or isinstance(made, (LinearCodec, LowRankCodec)) or made.needs_side:
        raise SpecError(f"the cost model has no exchange for {made}: it knows codecs that send one payload a shard")
    return made


def codec_cost(
    codec: Any,
    ranks: int,
    *,
    busy: float = 1.0,
    seconds: float = 0.012,
    numels: tuple[int, int] = _NUMELS,
    barrier: Callable[[], None] | None = None,
) -> CodecCost:
    """Times encode, the owner's reduction and decode at two sizes. To see caches and memory as an all-reduce finds them, all ranks of a machine do this at once.

    A call's time is what it takes alone, or its CPU time times `busy`, whichever is longer: on cores that ranks share, the clock on the wall says who had his turn meanwhile.

    Args:
        codec: or its spec. ranks: of the all-reduce, at least 2.
        busy: ranks of this machine over its cores.
        seconds: least time of each measurement at the larger size: long enough that all ranks are at it together, for two threads of one core slow each other down.
        numels: the two sizes in coordinates, ascending.
        barrier: called before each measurement.

    Raises:
        SpecError: as :func:`check_codec`, or fewer than 2 ranks.
    """
    codec = check_codec(codec)
    if ranks < 2:
        raise SpecError(f"an exchange needs at least 2 ranks, got {ranks}")
    times = []
    for numel, least in zip(numels, (seconds / 4, seconds), strict=True):
        works, prepare = _operations(codec, ranks, numel)
        found = []
        for work in works:
            if barrier is not None:
                barrier()
            found.append(_seconds_of(work, prepare, least, busy))
        times.append(found)
    few, many = numels
    slopes = [max(0.0, (b - a) / (many - few)) for a, b in zip(*times, strict=True)]
    calls = [max(0.0, b - slope * many) for b, slope in zip(times[1], slopes, strict=True)]
    second = codec.of_second_phase
    return CodecCost(
        spec=str(codec),
        bits=8 * codec.payload_nbytes(many) / many,
        encode=slopes[0],
        decode=slopes[2],
        reduce=slopes[1],
        ranks=min(ranks, _MOST_PEERS + 1),
        encode_call=calls[0],
        decode_call=calls[2],
        reduce_call=calls[1],
        bits2=8 * second.payload_nbytes(many) / many,
    ).at(ranks)


def _operations(codec: Codec, ranks: int, numel: int) -> tuple[list[Callable[[], Any]], Callable[[], Any]]:
    """Encode, reduce and decode of `numel` coordinates, as the pipeline calls them where nobody looks at the values in between; and what puts fresh values where the last
    reduction left decoded ones, which some codecs find easier or harder.
    """
    second, gain = codec.of_second_phase, 1.0 / ranks
    x = torch.randn(numel, generator=torch.Generator().manual_seed(20_261_127))
    keys = [Key(phase=1, sender=1 + peer) for peer in range(min(ranks - 1, _MOST_PEERS))]
    payloads = [codec.encode(x, keys[0], gain=gain)] * len(keys)
    sent = payloads[0].clone()
    own = Key(phase=2, sender=0)
    out = second.encode(x, own)
    values, y = x.clone(), torch.empty_like(x)

    def encode() -> None:
        codec.encode(x, keys[0], out=sent, gain=gain)

    def pass_on() -> None:
        codec.encode(x, own, out=out, gain=gain)
        codec.decode_sum([out, payloads[0]], [own, keys[0]], out=values)

    def add_both() -> None:
        codec.decode_sum([out, payloads[0]], [own, keys[0]], out=y)

    def reduce() -> None:
        codec.reduce(payloads, keys, own, values=values, out=out, beta=gain)

    def decode() -> None:
        second.decode(out, own, out=y)

    works = [encode, pass_on, add_both] if codec.passes_on(ranks) else [encode, reduce, decode]
    return works, lambda: values.copy_(x)


def _seconds_of(work: Callable[[], Any], prepare: Callable[[], Any], least: float, busy: float) -> float:
    """Of one call of `work`, without `prepare`; the first fills caches and is left out."""
    prepare()
    work()
    calls, alone, used, gone = 0, math.inf, 0.0, 0.0
    while calls < 2 or (gone < least and calls < _MOST_REPETITIONS):
        prepare()
        before, began = time.process_time(), time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        used += time.process_time() - before
        alone, gone, calls = min(alone, seconds), gone + seconds, calls + 1
    return max(alone, used / calls * busy)
