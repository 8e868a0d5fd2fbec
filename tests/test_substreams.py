"""Substreams of long entropy-coded segments: bytes of the twin, independence of each other, threads, hostile entries."""

import math
import struct

import numpy as np
import pytest
import torch
from _inputs import key_of, normal, same_bits
from test_ecsq import assert_twins, check_paths, decoded, uneven
from test_ecsq_hostile import refused

import commpress
from commpress import errors, reference
from commpress.reference._ecsq_format import ENTRY, parse, payload_nbytes, substreams

BLOCK, UNIT = 512, 32


def patchy(n: int, number: int) -> np.ndarray:
    """Classes far apart, blocks of zeros and of NaN, values without a symbol on both sides of every seam."""
    x = normal(n, number)
    x[n // 5 : n // 4] *= 0.003
    x[n // 3 : n // 3 + 40_000] *= 200
    x[n // 2 : n // 2 + 9_000] = 0
    x[-30_000:-29_000] = np.nan
    x[:: n // 50] = 3e3
    return x


@pytest.mark.parametrize(
    ("spec", "n", "make", "count"),
    [
        ("ecsq:8,substream=64", 140_000, patchy, 2),
        ("ecdq:8,substream=64", 140_000, normal, 2),
        ("hadamard+ecsq:6,substream=64,scale=centroid", 290_003, patchy, 3),
        ("ecsq:3,substream=8", 70_000, patchy, 3),
        ("trellis:8,substream=64", 200_001, normal, 3),
        ("trellis:3,substream=20", 150_000, patchy, 2),
        ("trellis:4,substream=8", 90_001, patchy, 3),
    ],
)
def test_bytes_and_values_are_the_twins(spec, n, make, count):
    assert len(substreams(parse(spec), n)) == count
    x = make(n, 4)
    mode = commpress.codec(spec).encode(torch.from_numpy(x), key_of(2))[0]
    assert mode == (3 if spec.startswith("trellis") else 1)
    assert_twins(spec, x, key_of(2), 4096, 0.7)


@pytest.mark.parametrize("spec", ["ecsq:2", "ecsq:7", "ecdq:4", "hadamard+ecdq:5", "trellis:2", "hadamard+trellis:6"])
def test_every_code_path_gives_the_same_bytes_and_values(spec):
    check_paths(commpress.codec(spec + ",substream=48"), uneven(1_200_007))


@pytest.mark.parametrize("size", [8, 64, 1000])
@pytest.mark.parametrize("rate", [0.05, 0.7, 1, 3.3, 8])
@pytest.mark.parametrize("n", [1, 512, 262_144, 262_145, 1_000_000, (1 << 23) - 5, 1 << 23])
def test_substreams_cover_the_blocks_and_are_as_long_as_they_should_be(size, rate, n):
    spec = parse(f"ecsq:{rate},substream={size}")
    nbytes, found = payload_nbytes(spec, n, 0), substreams(spec, n)
    assert len(substreams(parse(f"ecsq:{rate}"), n)) == 1
    assert found[0][0] == 0 and found[-1][1] == -(-n // BLOCK)
    assert all(last == first for (_, last), (first, _) in zip(found, found[1:], strict=False))
    sizes = [last - first for first, last in found]
    assert len(set(sizes[:-1])) <= 1 and 0 < sizes[-1] <= sizes[0]
    if nbytes < size << 11:
        assert len(found) == 1
    else:
        assert sizes[0] % UNIT == 0
        # Whole groups of 32 blocks, so the share of one may be larger, but by less than such a group's.
        assert size << 10 <= nbytes * sizes[0] / sum(sizes) < (size << 11) + UNIT * BLOCK * rate / 8


@pytest.mark.parametrize("spec", ["ecsq:4,substream=64", "ecdq:4,substream=64", "trellis:4,substream=64"])
def test_damage_stays_in_its_substream(spec):
    n, rng = 700_000, np.random.default_rng(5)
    codec = commpress.codec(spec)
    good = codec.encode(uneven(n), key_of(1))
    blocks = substreams(parse(spec), n)
    assert len(blocks) == 5
    whole, found = decoded(spec, good, key_of(1), n), places(good, len(blocks))
    for s, (first, last) in enumerate(blocks):
        payload = good.clone()
        begin, end = found[s], (*found, good.numel())[s + 1]
        payload[torch.from_numpy(rng.integers(begin, end, 60))] ^= 0x55
        out = decoded(spec, payload, key_of(1), n)
        here = slice(first * BLOCK, last * BLOCK)
        assert not torch.equal(out[here], whole[here])
        out[here] = whole[here]
        assert torch.equal(out, whole)


def places(payload: torch.Tensor, count: int) -> list[int]:
    """Where streams begin: that of the first from the header, of the others from the entries, found by their values."""
    data = payload.numpy().tobytes()
    first = struct.unpack("<I", data[14:18])[0]
    for at in range(22, first - ENTRY * (count - 1)):
        found = [struct.unpack("<IIIH", data[at + ENTRY * i : at + ENTRY * (i + 1)]) for i in range(count - 1)]
        begins = [first, *(begin for begin, _, _, _ in found)]
        met = [0, *(before for _, before, _, _ in found), struct.unpack("<I", data[10:14])[0]]
        if sorted(begins) == begins and begins[-1] < len(data) and sorted(met) == met and begins[1] - first > 128:
            return begins
    raise AssertionError("no entries")


def test_threads_decode_the_same_values():
    n = 900_000
    for spec in ("ecsq:5,substream=64", "hadamard+ecdq:5,substream=8", "trellis:5,substream=70"):
        payload, before, results = commpress.codec(spec).encode(uneven(n), key_of(1)), torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                out = torch.ones(n)
                commpress.codec(spec).decode(payload, key_of(1), out=out, accumulate=True, beta=0.5)
                results.append(out)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("spec", ["ecsq:8,substream=64", "trellis:8,substream=64"])
def test_hostile_entries(spec):
    """Streams that overlap or lie outside, escapes that run backwards, classes that do not fit: refused, by the twin too."""
    n = 200_001
    good = commpress.codec(spec).encode(torch.from_numpy(normal(n, 1)), key_of(0))
    begins, data = places(good, 3), good.numpy().tobytes()
    at = data.index(struct.pack("<I", begins[1]))
    refusals = 0
    for where, field, values in [
        (at, "<I", [0, begins[0], begins[0] + 127, begins[2] - 127, begins[2] + 1, len(data), 2**32 - 1]),
        (at + ENTRY, "<I", [0, begins[1] + 127, len(data) - 127, len(data)]),
        (at + 4, "<I", [1 << 20, 2**32 - 1]),
        (at + 8, "<I", [0, begins[0], 2**32 - 1]),
        (at + 12, "<H", [0, 65535]),
        (14, "<I", [0, begins[1] - 127, begins[1], len(data) - 128]),
        (10, "<I", [2**32 - 1, 1 << 20]),
    ]:
        for value in values:
            payload = good.clone()
            payload[where : where + struct.calcsize(field)] = torch.tensor(
                list(struct.pack(field, value)), dtype=torch.uint8
            )
            try:
                expected = reference.decode(payload.numpy(), spec, key_of(0), n)
            except errors.WireError:
                assert refused(spec, payload, n)
                refusals += 1
                continue
            assert same_bits(decoded(spec, payload, key_of(0), n), expected)
    assert refusals >= 20


def test_what_they_cost():
    """About 110 bytes each."""
    n = 1 << 20
    x = torch.from_numpy(normal(n, 6))
    for base, rate in (("ecsq", 2), ("trellis", 2), ("hadamard+ecdq", 3)):
        errors_found = []
        for spec in (f"{base}:{rate}", f"{base}:{rate},substream=16"):
            out = decoded(spec, commpress.codec(spec).encode(x, key_of(9)), key_of(9), n)
            errors_found.append(float((out - x).square().mean()))
        count = len(substreams(parse(f"{base}:{rate},substream=16"), n))
        lost = math.log2(errors_found[1] / errors_found[0]) / 2 * n / 8 / count
        assert 60 < lost < 160, (base, lost)


def test_specs():
    for spec in (
        "ecsq:2,substream=64",
        "hadamard+trellis:1.5,states=64,substream=8,scale=centroid",
        "ecdq:0.5,substream=4096",
    ):
        assert str(commpress.codec(spec)) == spec
    assert str(commpress.codec("ecsq:2,scale=unbiased,substream=0")) == "ecsq:2"
    for option in ("substream=7", "substream=4097", "substream=x", "substream=-8", "substream=", "substreams=8"):
        with pytest.raises(errors.SpecError):
            commpress.codec(f"ecsq:2,{option}")
