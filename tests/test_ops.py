"""The C++ operators as torch sees them: schemas, fake kernels, argument checks, threads, the one-pass reduction."""

import subprocess
import sys

import pytest
import torch

import commpress
from commpress import ops
from commpress.codecs import Codec
from commpress.errors import WireError
from commpress.reference import _sums

SPECS = ["uniform:4", "uniform:0.5", "lloyd:3", "hadamard+lloyd:2", "hadamard+lloyd:1.5", "cast:bf16"]
KEY = commpress.Key(seed=3, step=1, tensor=2)


def normal(numel: int, seed: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def test_opcheck():
    x, payload = normal(1000, 0), torch.zeros(500 + 4, dtype=torch.uint8)
    common = (3, 4_000_000, False, 1, 2, 3, 4, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.commpress.encode.default, (x, payload, *common, 1.0, -1), test_utils=checks)
    torch.ops.commpress.encode(x, payload, *common, 1.0, -1)
    decode = torch.ops.commpress.decode.default
    torch.library.opcheck(decode, (payload, x.clone(), *common, True, 1.0, 0.5, -1), test_utils=checks)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 4096, 100_003])
def test_running_mean_squares(numel):
    """To the bit what four operations of torch give, each rounded to fp32."""
    held, x = normal(numel, 1).square() * 1e-3, normal(numel, 2) * 3e-2
    held[: numel // 3] *= 1e-38
    for share in (0.5, 1 / 3, 1 / 16):
        expected = held + (x.square() - held) * share
        ops.follow_squares(held, x, share)
        assert torch.equal(held, expected)
        x = x.roll(1)
    torch.library.opcheck(
        torch.ops.commpress.follow_squares.default, (held, x, 0.5), test_utils=("test_schema", "test_faketensor")
    )
    for other in (x.double(), x[: numel // 2] if numel else torch.zeros(1), x.view(1, -1)):
        with pytest.raises(RuntimeError, match="commpress:"):
            ops.follow_squares(held, other, 0.5)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 4096, 100_003])
def test_multiples_of_a_previous_mean(numel):
    """To the bit what two operations of torch give, which a fused multiply-add does not."""
    values, previous = normal(numel, 3), normal(numel, 4) * 0.3
    previous[: numel // 3] *= 1e-38
    for factor, keep in ((-0.7, False), (1 / 3, True), (0.7, True)):
        expected, before = values + previous * factor, previous.clone()
        if numel > 4096:
            fused = (values.double() + previous.double() * torch.tensor(factor).float().double()).float()
            assert not torch.equal(expected, fused)
        ops.add_multiple(values, previous, factor, keep=keep)
        assert torch.equal(values, expected)
        assert torch.equal(previous, expected if keep else before)
    torch.library.opcheck(
        torch.ops.commpress.add_multiple.default,
        (values, previous, 0.5, True),
        test_utils=("test_schema", "test_faketensor"),
    )
    for other in (previous.double(), previous[: numel // 2] if numel else torch.zeros(1), previous.view(1, -1)):
        with pytest.raises(RuntimeError, match="commpress:"):
            ops.add_multiple(values, other, 0.5)


@pytest.mark.parametrize("isa", [i for i in ops.Isa if ops.isa_available(i)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (7, 0, 8, 9), (4096, 100_003)])
def test_products_of_segments(sizes, dtype, isa):
    """To the bit what the twin gives, whatever the vectors; and near torch's own sums."""
    numel = sum(sizes)
    x, y = normal(numel + 3, 1).to(dtype)[3:] * 1e-3, normal(numel, 2).to(dtype) * 30
    stops, sums = torch.tensor(sizes, dtype=torch.int64).cumsum(0), torch.full((len(sizes), 3), 0.5, dtype=torch.double)
    ops.segment_products(x, y, stops, sums, isa)
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    twin = [_sums.products(a.numpy(), b.numpy()) for a, b in parts]
    assert sums.tolist() == [[0.5 + value for value in row] for row in twin]
    exact = [[float((p.double() * q.double()).sum()) for p, q in ((a, a), (a, b), (b, b))] for a, b in parts]
    torch.testing.assert_close(torch.tensor(twin, dtype=torch.double), torch.tensor(exact, dtype=torch.double))
    squares = torch.zeros(len(sizes), 3, dtype=torch.double)
    ops.segment_products(x, x, stops, squares, isa)
    assert squares.tolist() == [[row[0]] * 3 for row in twin]


def test_products_of_segments_refuse_what_does_not_fit():
    x, stops, sums = normal(10, 0), torch.tensor([4, 10]), torch.zeros(2, 3, dtype=torch.double)
    torch.library.opcheck(
        torch.ops.commpress.segment_products.default,
        (x, x.clone(), stops, sums, -1),
        test_utils=("test_schema", "test_faketensor"),
    )
    for wrong in (
        (x.half(), x.half(), stops, sums),
        (x, x.double(), stops, sums),
        (x, x[:9], stops, sums),
        (x[::2], x[::2], stops, sums),
        (x, x, stops.int(), sums),
        (x, x, torch.tensor([4, 11]), sums),
        (x, x, torch.tensor([4, 3]), sums),
        (x, x, torch.tensor([-1, 3]), sums),
        (x, x, stops, sums[:1]),
        (x, x, stops, sums.float()),
    ):
        with pytest.raises(RuntimeError, match="commpress:"):
            ops.segment_products(*wrong)
    assert not sums.any()


ROWS = [[0, 0, 0, 65536, 0, 100], [3, 4_000_000, 0, 131072, 4096, 900]]  # 400 bytes and 2 + 256 + 2 + 194


def test_opcheck_of_layers():
    x, table, key = normal(1000, 0), torch.tensor(ROWS), (1, 2, 3, 4)
    payload, checks = torch.zeros(854, dtype=torch.uint8), ("test_schema", "test_faketensor")
    ops = torch.ops.commpress
    torch.library.opcheck(ops.encode_layers.default, (x, payload, table, *key, 1.0, -1), test_utils=checks)
    ops.encode_layers(x, payload, table, *key, 1.0, -1)
    decode = (payload, x.clone(), table, *key, True, 1.0, 0.5, -1)
    torch.library.opcheck(ops.decode_layers.default, decode, test_utils=checks)
    reduce = ([payload], [3], x.clone(), torch.zeros_like(payload), table, *key, 0.5, -1)
    torch.library.opcheck(ops.reduce_layers.default, reduce, test_utils=checks)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (0, 0, 6, "family"),
        (0, 0, -1, "family"),
        (1, 1, 0, "rate"),
        (1, 4, 512, "offset"),
        (1, 5, 901, "size"),
        (0, 5, -1, "size"),
        (1, 5, 899, "coordinates"),
    ],
)
def test_a_table_of_layers_is_checked(row, column, value, message):
    x, payload, rows = normal(1000, 0), torch.zeros(854, dtype=torch.uint8), [list(r) for r in ROWS]
    rows[row][column] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.commpress.encode_layers(x, payload, torch.tensor(rows), 1, 2, 3, 4, 1.0, -1)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.commpress.decode_layers(payload, x, torch.tensor(rows), 1, 2, 3, 4, False, 1.0, 1.0, -1)
    assert not payload.any() and torch.equal(x, normal(1000, 0))
    with pytest.raises(RuntimeError, match="table"):
        torch.ops.commpress.encode_layers(x, payload, torch.tensor(ROWS).float(), 1, 2, 3, 4, 1.0, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": 8_000_001}, "rate"),
        ({"family": 9}, "family"),
        ({"offset": 512}, "offset"),
        ({"isa": 7}, "not available"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {
        "family": 3,
        "rate": 4_000_000,
        "centroid": False,
        "seed": 0,
        "words": (0, 0, 0),
        "offset": 0,
        "gain": 1.0,
        "isa": -1,
    }
    x, payload = normal(512, 0), torch.zeros(258, dtype=torch.uint8)
    ops.encode(x, payload, **arguments)
    with pytest.raises(RuntimeError, match=message):
        ops.encode(x, payload, **{**arguments, **change})
    with pytest.raises(RuntimeError, match="258 bytes"):
        ops.encode(x, payload[:-1], **arguments)
    with pytest.raises(RuntimeError, match="float32"):
        ops.encode(x.double(), payload, **arguments)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("numel", [1, 513, 4096, 100_001])
def test_one_pass_reduction_is_the_three_steps(spec, numel):
    """`reduce` of a quantising codec is one operator; that of the base class is decode, encode, decode. Same bits."""
    codec = commpress.codec(spec)
    senders = [KEY.replace(phase=1, sender=s) for s in (2, 0, 3)]
    payloads = [codec.encode(normal(numel, s.sender), s, offset=8192, gain=0.25) for s in senders]
    own = normal(numel, 9)
    key = KEY.replace(phase=2, sender=1)
    results = []
    for reduce in (codec.reduce, lambda *a, **k: Codec.reduce(codec, *a, **k)):
        values, out = own.clone(), torch.full_like(payloads[0], 7)
        assert reduce(payloads, senders, key, values=values, out=out, offset=8192, beta=0.25) is True
        results.append((values, out))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], own)


@pytest.mark.parametrize("spec", SPECS)
def test_one_pass_reduction_says_when_something_is_not_finite(spec):
    codec = commpress.codec(spec)
    x = normal(9000, 1)
    x[5000] = float("inf")
    payload, values = codec.encode(x, KEY), normal(9000, 2)
    out = torch.empty_like(payload)
    assert codec.reduce([payload], [KEY], KEY.replace(phase=2), values=values, out=out) is False
    assert not bool(torch.isfinite(values[5000]))
    assert bool(torch.isfinite(values[:4096]).all())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("numel", [1, 513, 4097, (1 << 20) + 3])
def test_a_sum_in_one_pass_is_one_decode_after_the_other(spec, numel):
    codec = commpress.codec(spec)
    senders = [KEY.replace(phase=2, sender=1), KEY.replace(phase=1, sender=0), KEY.replace(phase=1, sender=7)]
    payloads = [codec.encode(normal(numel, s.sender), s, offset=4096, gain=0.5) for s in senders]
    expected, got = torch.full((numel,), 7.0), torch.full((numel + 16,), 9.0)
    assert Codec.decode_sum(codec, payloads, senders, out=expected, offset=4096) is True
    for shift in (0, 1):  # aligned, and not
        assert codec.decode_sum(payloads, senders, out=got[shift : shift + numel], offset=4096) is True
        assert torch.equal(got[shift : shift + numel], expected)
        assert bool((got[shift + numel :] == 9).all())


@pytest.mark.parametrize("spec", SPECS)
def test_a_sum_in_one_pass_says_when_it_is_not_finite(spec):
    codec, numel = commpress.codec(spec), 9000
    x = torch.full((numel,), 3e38)
    for value, finite in ((float("nan"), False), (float("-inf"), False), (3e38, None)):
        x[numel - 1] = value
        payload, out = codec.encode(x, KEY), torch.empty(numel)
        found = codec.decode_sum([payload, payload], [KEY, KEY], out=out)
        assert found is bool(torch.isfinite(out).all())
        assert finite is None or found is finite


def test_one_pass_operators_name_the_rank_of_a_corrupt_payload():
    codec = commpress.codec("uniform:4")
    senders = [KEY.replace(sender=s) for s in (4, 5)]
    payloads = [codec.encode(normal(2000, s.sender), s) for s in senders]
    payloads[1][1] = 0xFF  # a negative scale
    values = normal(2000, 0)
    with pytest.raises(WireError, match="rank 5"):
        codec.reduce(payloads, senders, KEY, values=values, out=torch.empty_like(payloads[0]))
    with pytest.raises(WireError, match="rank 5"):
        codec.decode_sum(payloads, senders, out=values)


@pytest.mark.parametrize("spec", SPECS)
def test_threads_do_not_change_a_byte(spec):
    codec, x, threads = commpress.codec(spec), normal(700_000, 3), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            payload = codec.encode(x, KEY)
            results.append((payload, codec.decode(payload, KEY, out=torch.full_like(x, 5))))
    finally:
        torch.set_num_threads(threads)
    for payload, values in results[1:]:
        assert torch.equal(payload, results[0][0])
        assert torch.equal(values, results[0][1])


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:2", "lloyd:2"])
def test_large_decodes_past_the_caches_are_the_small_ones(spec):
    """From 2^20 coordinates on, values are stored past the caches; from an odd address they cannot be."""
    codec, numel = commpress.codec(spec), (1 << 20) + 4097
    x = normal(numel, 4)
    payload = codec.encode(x, KEY)
    guarded = torch.full((numel + 33,), 9.0)
    straight = codec.decode(payload, KEY, out=torch.full_like(x, 9.0))
    shifted = codec.decode(payload, KEY, out=guarded[1 : numel + 1])
    cut = codec.payload_nbytes(1 << 19)
    first = codec.decode(payload[:cut], KEY, out=torch.empty(1 << 19))
    assert torch.equal(straight, shifted)
    assert torch.equal(straight[: 1 << 19], first)
    assert bool((guarded[numel + 1 :] == 9.0).all())
    assert float(guarded[0]) == 9.0


def test_the_gil_is_released():
    """Another Python thread goes on while a kernel runs."""
    program = """
import threading, time, torch, commpress
torch.set_num_threads(1)
codec, key, x = commpress.codec("lloyd:8"), commpress.Key(), torch.randn(1 << 23)
payload = codec.encode(x, key)
ticks, running = 0, True
def count():
    global ticks
    while running:
        ticks += 1
        time.sleep(0.001)
thread = threading.Thread(target=count)
thread.start()
before = ticks
for _ in range(5):
    codec.encode(x, key, out=payload)
inside = ticks - before
running = False
thread.join()
assert inside >= 5, inside
print("ticks", inside)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ticks" in done.stdout
