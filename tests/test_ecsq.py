"""Entropy-coded quantisers: bytes of the twin, the budget, the figures of theory, unbiasedness, a real gradient, hostile bytes."""

import functools
import pathlib

import numpy as np
import pytest
import torch
from _inputs import FINITE, INPUTS, NON_FINITE, Guarded, key_of, normal, same_bits
from _reducers import Record, World, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import commpress
from commpress import errors, ops, reference
from commpress.codecs import LayeredCodec
from commpress.collectives import _layout
from commpress.reference import _entropy_model as model

SPECS = ["ecsq:2", "ecsq:0.5,scale=centroid", "ecsq:8", "ecdq:1", "ecdq:4", "hadamard+ecsq:4", "hadamard+ecdq:0.05"]
PATHS = [isa for isa in ops.Isa if ops.isa_available(isa)]
GRADIENT = pathlib.Path(__file__).parent / "data/gradient.npz"


def decoded(spec: str, payload: torch.Tensor, key: commpress.Key, n: int, **options) -> torch.Tensor:
    return commpress.codec(spec).decode(payload, key, out=torch.full((n,), 7.0), **options)


def assert_twins(spec: str, x: np.ndarray, key: commpress.Key, offset: int = 0, gain: float = 1.0) -> None:
    payload = commpress.codec(spec).encode(torch.from_numpy(x), key, offset=offset, gain=gain)
    expected = reference.encode(x, spec, key, offset, gain)
    assert payload.numel() == reference.payload_nbytes(spec, x.size, offset)
    differing = np.flatnonzero(payload.numpy() != expected)
    assert differing.size == 0, f"{spec} n={x.size} offset={offset}: bytes differ from {differing[:1]} on"
    out = Guarded(x.size, torch.float32)
    commpress.codec(spec).decode(payload, key, out=out.tensor, offset=offset, gain=gain)
    assert out.intact()
    assert same_bits(out.tensor, reference.decode(expected, spec, key, x.size, offset, gain))


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_and_values_are_the_twins(spec):
    for number, n in enumerate((0, 1, 13, 127, 300, 512, 513, 1000, 5000)):
        assert_twins(
            spec, normal(n, number), key_of(number), 4096 * (0, 1, 2**20)[number % 3], (1.0, 1 / 3, 640.0)[number % 3]
        )
    for number, make in enumerate(INPUTS.values()):
        assert_twins(spec, make((2500, 700)[number % 2]).astype(np.float32), key_of(number))


@pytest.mark.parametrize("spec", ["ecsq:2", "ecdq:2"])
def test_a_segment_with_32_lanes_is_the_twins(spec):
    x = normal(140_000, 3)
    x[60_000:60_100] *= 100  # escapes and several classes
    x[100_000:] *= 0.01
    assert_twins(spec, x, key_of(1))


PATH_SPECS = ["ecsq:0.1", "ecsq:0.3", "ecsq:2", "ecsq:4", "ecsq:6", "ecsq:8", "ecdq:0.5", "ecdq:2", "ecdq:7"]
PATH_SPECS += ["hadamard+ecsq:1", "hadamard+ecsq:8", "hadamard+ecdq:3", "trellis:2"]


def uneven(n: int) -> torch.Tensor:
    """Classes whose scales differ by orders of magnitude, values without a symbol, zeros and heavy tails."""
    x = torch.from_numpy(normal(n, 8))
    x[: n // 70] *= 30
    x[n // 6 : n // 6 + 3] = 400.0
    x[n // 3 : n // 2] *= torch.logspace(0, -3, n // 2 - n // 3)
    x[n // 2 : n // 2 + n // 20] = 0
    x[-n // 4 :] *= x[-n // 4 :].abs() ** 2
    return x


def check_paths(codec, x: torch.Tensor) -> None:
    """Every code path of this machine writes the same bytes for `x`, and reads the same values from them."""
    common = codec.arguments(commpress.Key(seed=5, step=1, sender=2, tensor=3), 4096, 0.5)
    results = []
    for isa in PATHS:
        payload = torch.empty(codec.payload_nbytes(x.numel()), dtype=torch.uint8)
        ops.ecsq_encode(x, payload, **common, isa=isa)
        out = torch.ones(x.numel())
        assert ops.ecsq_decode(payload, out, **common, accumulate=True, beta=0.5, isa=isa) == -1
        results.append((payload, out))
    assert len(results) > 1
    for payload, out in results[1:]:
        assert torch.equal(payload, results[0][0])
        assert torch.equal(out, results[0][1])


@pytest.mark.parametrize("spec", PATH_SPECS)
def test_every_code_path_gives_the_same_bytes_and_values(spec):
    codec = commpress.codec(spec)
    for n in (511, 5000, 20_000, 300_000, 512 * 300 + 17):
        check_paths(codec, uneven(n))


@pytest.mark.parametrize("spec", ["ecsq:2", "ecsq:7", "ecdq:2", "ecdq:7", "trellis:2"])
def test_every_code_path_reads_damaged_streams_alike(spec):
    """The vector loops hand over to the others before the stream's end; words beyond it are zeros."""
    codec, n, rng = commpress.codec(spec), 200_000, np.random.default_rng(3)
    common = codec.arguments(key_of(4), 0, 1.0)
    good, taken = codec.encode(uneven(n), key_of(4)), 0
    for round in range(12):
        payload = good.clone()
        stream = int.from_bytes(bytes(payload[14:18].tolist()), "little")
        places = rng.integers(stream + 128, payload.numel(), 40) if round % 2 else payload.numel() - 1 - np.arange(900)
        payload[torch.from_numpy(places)] = torch.from_numpy(rng.integers(0, 256, places.size, dtype=np.uint8))
        if round % 3 == 0:  # it begins later, and ends too soon
            later = int(rng.integers(stream, payload.numel() - 128))
            payload[14:18] = torch.tensor(list(later.to_bytes(4, "little")), dtype=torch.uint8)
        results = []
        for isa in PATHS:
            out = Guarded(n, torch.float32)
            taken += ops.ecsq_decode(payload, out.tensor, **common, accumulate=False, beta=0.0, isa=isa) == -1
            assert out.intact()
            results.append(out.tensor.clone())
        assert all(torch.equal(result, results[0]) for result in results)
    assert taken > 4 * len(PATHS)


def achieved(spec: str, n: int, seed: int) -> tuple[float, float, float, float]:
    """(rate, eta, 1 - G, vNMSE) on N(0,1)."""
    x, key = torch.randn(n, generator=torch.Generator().manual_seed(seed)), commpress.Key(seed=seed)
    payload = commpress.codec(spec).encode(x, key)
    y, x = decoded(spec, payload, key, n).double(), x.double()
    rate = 8 * payload.numel() / n
    g = float((x @ y) ** 2 / (x @ x) / (y @ y))
    return rate, g / (1 - 4**-rate), 1 - g, float(((x - y) ** 2).sum() / (x @ x))


@pytest.mark.parametrize(
    ("spec", "eta"),
    [("ecsq:0.1", 0.7067), ("ecsq:0.25", 0.7189), ("ecsq:0.5", 0.7653), ("ecsq:1", 0.8690), ("ecsq:1.5", 0.9399)]
    + [("ecsq:2", 0.9718), ("ecsq:3", 0.9933), ("ecsq:4", 0.9983), ("ecsq:8", 0.99999)]
    + [("ecdq:1.5", 0.9395), ("ecdq:2", 0.9718), ("ecdq:3", 0.9933), ("ecdq:4", 0.9983)]
    + [("hadamard+ecsq:2", 0.9718), ("hadamard+ecdq:2", 0.9718)],
)
def test_efficiency_on_normal_input(spec, eta):
    """Of theory's optimum, with all bytes counted."""
    assert achieved(spec, 1 << 20, 11)[1] == pytest.approx(eta, abs=0.006)


def test_distortions_of_theory():
    for spec, d in (("ecsq:1", 0.34826), ("ecsq:2", 0.08893), ("ecsq:4", 0.00556)):
        assert achieved(spec, 1 << 22, 12)[2] == pytest.approx(d, rel=0.005)
    assert achieved("ecdq:2", 1 << 22, 12)[3] == pytest.approx(0.09764, rel=0.005)


@pytest.mark.parametrize("spec", SPECS)
def test_the_budget_holds_and_is_used(spec):
    codec = commpress.codec(spec)
    for n in (1, 100, 5000, 1 << 20, (1 << 23) + 5, 1 << 40):
        nbytes = codec.payload_nbytes(n)
        assert codec.bits * n / 8 <= nbytes <= codec.bits * n / 8 * 1.001 + 64
    n = 1 << 19
    for make in (normal, FINITE["lognormal"]):
        payload = codec.encode(torch.from_numpy(make(n).astype(np.float32)), key_of(2))
        # the last zero bytes before the stream are what is left over
        stream = int.from_bytes(bytes(payload[14:18].tolist()), "little")
        body = payload[:stream].numpy()
        left = stream - 1 - int(np.flatnonzero(body)[-1])
        assert payload[0] == 1 and left <= 0.005 * payload.numel()


def test_the_unbiased_scale_is_as_long_as_the_input_and_the_centroid_one_shrinks():
    x = torch.from_numpy(normal(1 << 17, 4))
    for rate in ("0.1", "1", "3"):
        for family in ("ecsq", "hadamard+ecsq"):
            y = decoded(
                f"{family}:{rate}", commpress.codec(f"{family}:{rate}").encode(x, key_of(1)), key_of(1), x.numel()
            )
            assert float(x @ y / (x @ x)) == pytest.approx(1, abs=0.002)
            codec = commpress.codec(f"{family}:{rate}").for_feedback()
            z = codec.decode(codec.encode(x, key_of(1)), key_of(1), out=torch.empty_like(x))
            assert float(z @ (x - z) / (x @ x)) == pytest.approx(0, abs=0.002)  # what is left is orthogonal
            assert float((x - z).norm()) < float((x - y).norm())


def biased(codec: commpress.codecs.Codec, x: torch.Tensor, keys: int = 64) -> float:
    """|mean - x|^2 in units of vNMSE / keys |x|^2."""
    total, squares = torch.zeros_like(x, dtype=torch.float64), 0.0
    for step in range(keys):
        key = commpress.Key(seed=77, step=step)
        y = codec.decode(codec.encode(x, key), key, out=torch.empty_like(x)).double()
        total += y
        squares += float(((y - x) ** 2).sum())
    return float(((total / keys - x) ** 2).sum()) / (squares / keys / keys)


@pytest.mark.parametrize("spec", ["ecdq:0.5", "ecdq:2", "ecdq:4", "hadamard+ecdq:1"])
def test_subtractive_dither_is_unbiased(spec):
    assert commpress.codec(spec).unbiased
    x = torch.from_numpy(normal(20_000, 1))
    scaled = x * torch.linspace(0.01, 3, x.numel())
    assert biased(commpress.codec(spec), x) <= 1.3
    assert biased(commpress.codec(spec), scaled) <= 1.3
    control = commpress.codec(spec.replace("ecdq", "ecsq"))
    assert not control.unbiased
    assert biased(control, scaled) > (1.3 if spec.startswith("hadamard") else 10)


def test_dithers_of_coordinates_and_keys_differ():
    """The quantisation errors are those of independent uniform numbers."""
    codec, x = commpress.codec("ecdq:3"), torch.from_numpy(normal(1 << 16, 2))
    errors_of = [codec.decode(codec.encode(x, key), key, out=torch.empty_like(x)) - x for key in map(key_of, range(4))]
    unit = [e.double() / e.double().norm() for e in errors_of]
    for i in range(4):
        for j in range(i):
            assert abs(float(unit[i] @ unit[j])) < 5.5 / x.numel() ** 0.5
        for distance in (1, 16, 17, 32, 48, 64, 512):
            assert abs(float(unit[i][distance:] @ unit[i][:-distance])) < 5.5 / x.numel() ** 0.5
    # an error of uniform numbers: fourth moment 9/5 of the squared second
    e = errors_of[0].double()
    assert float((e**4).mean() / (e**2).mean() ** 2) == pytest.approx(1.8, rel=0.02)


@functools.cache
def gradient() -> tuple[np.ndarray, np.ndarray]:
    data = np.load(GRADIENT)
    bits = data["high"].astype(np.uint32) << 24 | data["low"].astype(np.uint32) << 16
    return bits.view(np.float32), data["sizes"]


def ideal_nmse(x: np.ndarray, sizes: np.ndarray, rate: float) -> float:
    """A uniform quantiser of one step and the best of several dead zones, centroids per layer and level, and an ideal entropy code per layer.

    The code of a layer costs the empirical entropy of that layer's symbols: it knows each layer's own distribution at no cost.
    """
    layers, energy = np.split(x.astype(np.float64), np.cumsum(sizes)[:-1]), float((x.astype(np.float64) ** 2).sum())

    def at(step: float, offset: float) -> tuple[float, float]:
        bits = error = 0.0
        for layer in layers:
            q = (np.floor(np.abs(layer) / step + offset) * np.sign(layer)).astype(np.int64)
            _, place, counts = np.unique(q, return_inverse=True, return_counts=True)
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
            error += float((layer**2).sum() - (np.bincount(place, layer) ** 2 / counts).sum())
        return bits / x.size, error / energy

    least = 1.0
    for offset in (0.25, 0.35, 0.45):
        low, high = 1e-9, 1.0
        for _ in range(14):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if at(middle, offset)[0] > rate else (low, middle)
        least = min(least, at(high, offset)[1])
    return least


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_real_gradient_bucket(rate):
    """Layers whose scales differ by orders of magnitude under one step; ideal: an entropy code for each layer."""
    x, sizes = gradient()
    key = commpress.Key(seed=9)
    spec = f"ecsq:{rate:g},scale=centroid"
    payload = commpress.codec(spec).encode(torch.from_numpy(x), key)
    error = decoded(spec, payload, key, x.size).double() - torch.from_numpy(x).double()
    nmse = float((error**2).sum() / (torch.from_numpy(x).double() ** 2).sum())
    ideal = ideal_nmse(x, sizes, 8 * payload.numel() / x.size)
    assert 0.5 * ideal < nmse <= 1.2 * ideal
    # layer by layer, each under a step of its own and with the same rate, it is much worse
    apart = 0.0
    for layer in np.split(x, np.cumsum(sizes)[:-1]):
        y = decoded(spec, commpress.codec(spec).encode(torch.from_numpy(layer), key), key, layer.size)
        apart += float(((y.double() - torch.from_numpy(layer).double()) ** 2).sum())
    assert nmse < 0.8 * apart / float((x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("rate", ["0.5", "2"])
def test_the_coder_is_as_good_as_constrictions(rate):
    """The same symbols under the same model, coded by a library of entropy coders: sizes within half a percent."""
    import constriction  # of the extra `dev`

    n, spec = 1 << 19, f"ecsq:{rate},scale=centroid"
    x = torch.from_numpy(normal(n, 6))
    payload = bytes(commpress.codec(spec).encode(x, key_of(1)).numpy().tobytes())
    relative, stream = int.from_bytes(payload[4:7], "little", signed=True), int.from_bytes(payload[14:18], "little")
    j = int.from_bytes(payload[1:4], "little", signed=True)
    assert payload[7] == 1 and payload[10:14] == bytes(4), "one class, no escapes"
    table = model.Table(payload[20] >> 5, (payload[19] & 127) - 64, payload[20] & 31, payload[19] >> 7)
    made = model.all_frequencies(table, relative, False)
    assert made is not None
    v = np.abs(x.numpy() * np.float32(1 / model.step_of(j))) + np.float32(model.dead_zone(relative) / 65536)
    symbols = np.where(x.numpy() < 0, -v.astype(np.int32), v.astype(np.int32)) + 32
    used = np.flatnonzero(made[0])
    family = constriction.stream.model.Categorical(made[0][used] / 4096, perfect=True)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse((symbols - used[0]).astype(np.int32), family)
    assert len(payload) - stream == pytest.approx(4 * len(coder.get_compressed()), rel=0.005)


@pytest.mark.parametrize("spec", SPECS)
def test_non_finite_values_arrive_and_finite_ones_stay_finite(spec):
    n = 9000
    for make in NON_FINITE.values():
        x = normal(n)
        x[4096:] = make(n - 4096)
        out = decoded(spec, commpress.codec(spec).encode(torch.from_numpy(x), key_of(1)), key_of(1), n)
        assert torch.isfinite(out[:4096]).all()
        assert not torch.isfinite(out[4096:]).all()
    for name, make in FINITE.items():
        x = torch.from_numpy(make(n).astype(np.float32))
        out = decoded(spec, commpress.codec(spec).encode(x, key_of(1)), key_of(1), n)
        assert torch.isfinite(out).all(), name
        if not bool(x.any()):
            assert same_bits(out, np.zeros(n)), name


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    numel=st.integers(1, 1500),
    gain=st.floats(2.0**-20, 1024, width=32),
)
def test_any_floats_at_all(spec, values, numel, gain):
    assert_twins(spec, np.resize(np.array(values, np.float32), numel), key_of(numel), 0, gain)


def test_payloads_are_cut_at_segments_alone():
    codec, border = commpress.codec("ecsq:1"), 1 << 23
    start, stop = border - 4096 * 3, border + 5000
    assert codec.seams(start, stop, 50) == [start, border, stop]
    assert codec.seams(0, 5000, 3) == [0, 5000]
    x, key = torch.from_numpy(normal(stop - start, 1)), key_of(3)
    whole = codec.encode(x, key, offset=start)
    parts = [codec.encode(x[: 4096 * 3], key, offset=start), codec.encode(x[4096 * 3 :], key, offset=border)]
    assert torch.equal(whole, torch.cat(parts))
    layered = LayeredCodec([(3 << 20, codec), (2 << 20, commpress.codec("uniform:2"))])
    for made in (codec, layered):
        message = _layout._message(
            torch.empty(6 << 20, dtype=torch.uint8), made, _layout._sizer(made, 1, 2, torch.float32), 0, 5 << 20
        )
        assert message.nbytes_payload == made.payload_nbytes(5 << 20)
        assert sum(stop - start for start, stop, _ in message.pieces) == 5 << 20


@pytest.mark.parametrize("chunk", [9_000, 1 << 30])
def test_an_all_reduce(chunk):
    """Messages of more than a piece's coordinates, in one chunk and in several; every rank has the same bits."""
    size, numel, codec = 2, (5 << 19) + 77, commpress.codec("ecsq:3")
    data = inputs(size, numel)
    with World(size, chunk=chunk) as world:
        records = [Record() for _ in range(size)]
        futures = [
            r.submit(x.clone(), codec, codec, commpress.Key(step=4), observer=o)
            for r, x, o in zip(world.reducers, data, records, strict=True)
        ]
        results = [future.wait() for future in futures]
        assert torch.equal(*results)
        mean = torch.stack(data).mean(0)
        assert 0 < float(((results[0] - mean) ** 2).sum() / (mean**2).sum()) < 0.06
        assert all(record.report.chunks > 1 for record in records) == (chunk == 9_000)


def test_feedback_converges():
    """|x - y| <= |x|: what is left out stays bounded, also far below one bit."""
    for spec in ("ecsq:0.1", "hadamard+ecsq:0.5", "ecdq:1"):
        codec, n = commpress.codec(spec).for_feedback(), 20_000
        residual = torch.zeros(n)
        for step in range(60):
            total, key = torch.from_numpy(normal(n, step)) + residual, commpress.Key(step=step)
            residual = total - codec.decode(codec.encode(total, key), key, out=torch.empty(n))
            assert residual.norm() <= total.norm()
        assert float(residual.norm() / n**0.5) < 4 / codec.bits**0.5


def test_specs():
    for spec in ("ecsq:1", "hadamard+ecdq:0.05", "ecsq:1.5,scale=centroid"):
        assert str(commpress.codec(spec)) == spec
    assert commpress.codec("ecsq:1,scale=unbiased") == commpress.codec("ecsq:1")
    for bad in ("ecsq", "ecsq:0.01", "ecsq:9", "ecdq:1,scale=centroid", "ecsq:1,scale=x", "ecsq:1,lanes=3"):
        with pytest.raises(errors.SpecError):
            commpress.codec(bad)


def test_opcheck():
    x, payload = torch.from_numpy(normal(1000)), torch.zeros(commpress.codec("ecsq:2").payload_nbytes(1000)).byte()
    common = (2_000_000, False, False, False, 0, 0, 1, 2, 3, 4, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.commpress.ecsq_encode.default, (x, payload, *common, 1.0, -1), test_utils=checks)
    torch.ops.commpress.ecsq_encode(x, payload, *common, 1.0, -1)
    decode = torch.ops.commpress.ecsq_decode.default
    torch.library.opcheck(decode, (payload, x.clone(), *common, True, 1.0, 0.5, -1), test_utils=checks)
    for change in ({0: 10}, {5: 100}, {10: 100}):
        with pytest.raises(RuntimeError, match="commpress"):
            torch.ops.commpress.ecsq_encode(
                x, payload, *(change.get(i, value) for i, value in enumerate(common)), 1.0, -1
            )
