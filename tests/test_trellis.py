"""`trellis`: bytes of the twin, the budget, efficiency on normal input, a mix of scales, hostile bytes."""

import heapq
import random

import numpy as np
import pytest
import torch
from _inputs import FINITE, NON_FINITE, Guarded, key_of, normal, same_bits
from test_ecsq import achieved, assert_twins, check_paths, decoded
from test_ecsq_hostile import refused

import commpress
from commpress import errors, ops, reference
from commpress.codecs._ecsq import TRELLIS_STATES, EntropyCodec
from commpress.reference import _tcq

SPECS = ["trellis:2", "trellis:4,scale=centroid", "hadamard+trellis:3"]
LONG = 17_000  # coordinates, in more than one span; above 3.9 bits their segments have a trellis
PATHS = [isa for isa in ops.Isa if ops.isa_available(isa)]


def mixed(n: int, number: int) -> np.ndarray:
    """Blocks of scales from 1/1000 to 1000, zeros, and values far off."""
    x = normal(n, number)
    x[: n // 2] *= np.float32(10.0) ** np.linspace(-3, 1, n // 2).astype(np.float32)
    x[n // 2 : n // 2 + 700] *= 1000
    x[-2100:-1000] = 0
    x[[7000, 9001, 9003, -1]] = 50, -70, 3e4, 12
    return x


@pytest.mark.parametrize("spec", SPECS)
def test_short_payloads_are_the_twins(spec):
    for number, n in enumerate((0, 1, 13, 513, 5000)):
        assert_twins(spec, normal(n, number), key_of(number), 4096 * number, (1.0, 1 / 3)[number % 2])


@pytest.mark.parametrize(
    ("spec", "n", "make"),
    [
        ("trellis:2", 2 * LONG + 77, normal),
        ("trellis:4,scale=centroid", LONG, mixed),
        ("trellis:5", LONG + 511, mixed),
        ("hadamard+trellis:4", LONG + 200, mixed),
        ("trellis:0.5", 140_001, normal),
        ("trellis:8", LONG, normal),
        ("trellis:4,states=16", LONG, mixed),
        ("trellis:4,states=256", LONG, normal),
    ],
)
def test_long_payloads_are_the_twins(spec, n, make):
    x = make(n, 5)
    assert commpress.codec(spec).encode(torch.from_numpy(x), key_of(3))[0] == 3
    assert_twins(spec, x, key_of(3), 8192, 0.7)


@pytest.mark.parametrize(
    "spec",
    ["trellis:1", "trellis:3", "hadamard+trellis:4", "trellis:6", *(f"trellis:2,states={s}" for s in TRELLIS_STATES)],
)
def test_every_code_path_gives_the_same_bytes_and_values(spec):
    codec, n = commpress.codec(spec), 70_001
    assert isinstance(codec, EntropyCodec)
    check_paths(codec, torch.from_numpy(mixed(n, 8)))


@pytest.mark.parametrize(
    ("rate", "bar"), [("0.5", 0.82), ("1", 0.935), ("1.5", 0.975), ("2", 0.988), ("3", 0.997), ("4", 0.999)]
)
@pytest.mark.parametrize("seed", [11, 202])
def test_efficiency_on_normal_input(rate, bar, seed):
    """Of theory's optimum, with all bytes counted; above that of the scalar quantiser, and not above the limit."""
    eta = achieved(f"trellis:{rate}", 1 << 20, seed)[1]
    assert bar <= eta < 1
    assert eta > achieved(f"ecsq:{rate}", 1 << 20, seed)[1]


@pytest.mark.parametrize("spec", ["trellis:0.5", "trellis:1", "trellis:2,scale=centroid", "hadamard+trellis:3"])
def test_the_budget_holds_and_is_used(spec):
    codec = commpress.codec(spec)
    for n in (1, 100, 5000, 1 << 20, (1 << 23) + 5, 1 << 40):
        nbytes = codec.payload_nbytes(n)
        assert codec.bits * n / 8 <= nbytes <= codec.bits * n / 8 * 1.001 + 64
    for make in (normal, FINITE["lognormal"]):
        payload = codec.encode(torch.from_numpy(make(1 << 18).astype(np.float32)), key_of(2))
        stream = int.from_bytes(bytes(payload[14:18].tolist()), "little")
        left = stream - 1 - int(np.flatnonzero(payload[:stream].numpy())[-1])
        assert payload[0] == 3 and left <= 0.004 * payload.numel() + 100


@pytest.mark.parametrize("spec", ["trellis:1", "trellis:4", "hadamard+trellis:2"])
def test_scales_for_averages_and_for_feedback(spec):
    x, codec = torch.from_numpy(normal(1 << 17, 4)), commpress.codec(spec)
    assert not codec.unbiased
    y = decoded(spec, codec.encode(x, key_of(1)), key_of(1), x.numel())
    assert float(x @ y / (x @ x)) == pytest.approx(1, abs=0.002)
    z = decoded(str(codec.for_feedback()), codec.for_feedback().encode(x, key_of(1)), key_of(1), x.numel())
    assert float(z @ (x - z) / (x @ x)) == pytest.approx(0, abs=0.002)
    assert float((x - z).norm()) < float((x - y).norm())


def test_a_mix_of_scales_loses_nothing_to_the_scalar_quantiser():
    x, error = torch.from_numpy(mixed(1 << 18, 3)), {}
    for family in ("trellis", "ecsq"):
        for rate in ("1", "2", "4", "6"):
            spec = f"{family}:{rate},scale=centroid"
            y = decoded(spec, commpress.codec(spec).encode(x, key_of(1)), key_of(1), x.numel())
            error[family, rate] = float((x - y).double().square().sum())
    for rate in ("1", "2", "4", "6"):
        assert error["trellis", rate] < 1.02 * error["ecsq", rate], rate


@pytest.mark.parametrize("spec", SPECS)
def test_non_finite_values_arrive_and_finite_ones_stay_finite(spec):
    n = 36_000
    for make in NON_FINITE.values():
        x = normal(n)
        x[4096:8192] = make(4096)
        out = decoded(spec, commpress.codec(spec).encode(torch.from_numpy(x), key_of(1)), key_of(1), n)
        assert torch.isfinite(out[:4096]).all() and torch.isfinite(out[8192:]).all()
        assert not torch.isfinite(out[4096:8192]).all()
    for name, make in FINITE.items():
        x = torch.from_numpy(make(n).astype(np.float32))
        out = decoded(spec, commpress.codec(spec).encode(x, key_of(1)), key_of(1), n)
        assert torch.isfinite(out).all(), name
        if not bool(x.any()):
            assert same_bits(out, np.zeros(n)), name


def test_hostile_bytes():
    spec, n, rng = "trellis:4", LONG, random.Random(4)
    good = commpress.codec(spec).encode(torch.from_numpy(mixed(n, 1)), key_of(0))
    assert good[0] == 3
    for length in range(good.numel()):
        with pytest.raises(errors.WireError):
            commpress.codec(spec).decode(good[:length], key_of(0), out=torch.empty(n))
    refusals = flips = 0
    for bit in (*range(8 * 100), *rng.sample(range(8 * good.numel()), 200)):
        flipped = good.clone()
        flipped[bit // 8] ^= 1 << bit % 8
        refusals += refused(spec, flipped, n)
        flips += 1
    assert 0 < refusals < flips
    taken = 0
    for _ in range(250):
        data = bytearray(rng.randbytes(good.numel()))
        keep = rng.choice((1, 8, 18, 23, 60, 200, 1000))
        data[:keep] = bytes(good[:keep].tolist())
        taken += not refused(spec, torch.frombuffer(data, dtype=torch.uint8), n)
    assert taken > 0


def test_hostile_bytes_are_the_twins_business_too():
    spec, n, rng, taken = "trellis:4", LONG, random.Random(5), 0
    good = commpress.codec(spec).encode(torch.from_numpy(mixed(n, 1)), key_of(0))
    for _ in range(30):
        payload = good.clone()
        payload[rng.randrange(good.numel() if rng.randrange(2) else 120)] = rng.randrange(256)
        try:
            expected = reference.decode(payload.numpy(), spec, key_of(0), n)
        except errors.WireError:
            assert refused(spec, payload, n)
            continue
        taken += 1
        assert same_bits(decoded(spec, payload, key_of(0), n), expected)
    assert taken > 5


def test_the_trellis_is_no_mode_of_ecsq():
    payload = commpress.codec("trellis:4").encode(torch.from_numpy(normal(LONG)), key_of(0))
    assert payload[0] == 3 and refused("ecsq:4", payload, LONG)
    short = commpress.codec("trellis:4").encode(torch.from_numpy(normal(5000)), key_of(0))
    assert torch.equal(short, commpress.codec("ecsq:4").encode(torch.from_numpy(normal(5000)), key_of(0)))
    out = Guarded(5000, torch.float32)
    commpress.codec("trellis:4").decode(short, key_of(0), out=out.tensor)
    assert out.intact()


def test_payloads_are_cut_at_segments_alone():
    codec, border = commpress.codec("trellis:1"), 1 << 23
    start, stop = border - 4096 * 3, border + 5000
    assert codec.seams(start, stop, 50) == [start, border, stop]
    x, key = torch.from_numpy(normal(stop - start, 1)), key_of(3)
    parts = [codec.encode(x[: 4096 * 3], key, offset=start), codec.encode(x[4096 * 3 :], key, offset=border)]
    assert torch.equal(codec.encode(x, key, offset=start), torch.cat(parts))


def test_specs():
    for spec in ("trellis:1", "hadamard+trellis:0.05", "trellis:1.5,states=64,scale=centroid"):
        assert str(commpress.codec(spec)) == spec
    assert commpress.codec("trellis:1,states=8,scale=unbiased") == commpress.codec("trellis:1")
    with pytest.raises(errors.SpecError, match="trellises of 8, 16, 32, 64, 128, 256 states"):
        commpress.codec("trellis:1,states=24")
    for bad in ("trellis", "trellis:0.01", "trellis:9", "trellis:1,scale=x", "trellis:1,length=8"):
        with pytest.raises(errors.SpecError):
            commpress.codec(bad)


def free_distance(states: int) -> int:
    """Least squared distance of two paths that part and meet again, in squared steps and at most the 16 of one step with two values of one parity.

    The code is linear, so it is that of a path of differences: 4 for a difference in parity alone, 1 where the quantisers differ (Ungerboeck 1982).
    """
    least = {0: 0}
    queue = [(4, _tcq.next_state(states, 0, 1))]
    while queue:
        distance, state = heapq.heappop(queue)
        if state == 0:
            return min(distance, 16)
        if distance >= least.get(state, 1 << 30):
            continue
        least[state] = distance
        for parity in range(2):
            step = 1 if state & 1 else 4 * parity
            heapq.heappush(queue, (distance + step, _tcq.next_state(states, state, parity)))
    raise AssertionError("no path comes back")


def test_codes_have_the_published_distances():
    """Ungerboeck 1987, part II, table I: amplitude modulation."""
    assert {states: free_distance(states) for states in TRELLIS_STATES} == {
        8: 10, 16: 11, 32: 13, 64: 14, 128: 16, 256: 16,
    }  # fmt: skip


def test_more_states_have_less_error():
    x, error = torch.from_numpy(normal(1 << 18, 2)), []
    for states in TRELLIS_STATES:
        spec = f"trellis:1.5,states={states},scale=centroid"
        y = decoded(spec, commpress.codec(spec).encode(x, key_of(1)), key_of(1), x.numel())
        error.append(float((x - y).square().sum()))
    assert error == sorted(error, reverse=True)


def test_negative_zeros_are_zeros():
    """On every path: an index of odd parity of a value that is not there has a sign, which must be one and the same."""
    x = torch.from_numpy(normal(LONG, 6))
    x[::3] *= 0
    assert bool((torch.signbit(x) & (x == 0)).any())
    assert_twins("trellis:4", x.numpy(), key_of(1), 0, 1.0)
    payloads = []
    for isa in PATHS:
        payload = torch.empty(commpress.codec("trellis:4").payload_nbytes(LONG), dtype=torch.uint8)
        codec = commpress.codec("trellis:4")
        assert isinstance(codec, EntropyCodec)
        ops.ecsq_encode(x, payload, **codec.arguments(commpress.Key(seed=1), 0, 1.0), isa=isa)
        payloads.append(payload)
    assert all(torch.equal(payload, payloads[0]) for payload in payloads)
