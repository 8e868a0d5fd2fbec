"""Codecs on a CUDA device: the bytes and values of the CPU path, on any stream, in graphs, without waiting. Run by `make gpu`."""

import pytest
import torch

import commpress
from commpress import ops
from commpress.codecs import LayeredCodec
from commpress.errors import TensorError, WireError

if not (torch.cuda.is_available() and ops.cuda_built()):
    reason = "this build has no CUDA kernels" if torch.cuda.is_available() else "no CUDA device"
    pytest.skip(f"GPU tests are left out: {reason}", allow_module_level=True)

DEVICE = torch.device("cuda", 0)
SPECS = (
    [f"uniform:{b}" for b in ("0.3", "1", "1.5", "2", "3", "4", "5", "6", "7", "8")]
    + [f"lloyd:{b}" for b in ("0.5", "1", "2.25", "4")]
    + [f"hadamard+lloyd:{b}" for b in ("0.1", "1", "1.5", "2", "3", "4", "5", "6.5", "7", "8")]
    + ["hadamard+lloyd:2,scale=centroid", "hadamard+lloyd:4.5,scale=centroid", "cast:bf16", "cast:fp16", "none"]
)
FORMATS = (
    [
        "float:e4m3",
        "float:e5m2,rounding=nearest,scale=none",
        "float:e5m10,block=4096",
        "float:e8m23",
        "float:e1m2,block=16",
    ]
    + ["mxfp8", "mxfp8,format=e5m2", "mxfp8,rounding=nearest", "mxfp6", "mxfp6,format=e3m2", "mxfp4", "nvfp4"]
    + ["nvfp4,rounding=nearest", "natural", "natural,scale=none", "int8", "int8,block=16,rounding=nearest", "qsgd:1"]
    + ["qsgd:7", "qsgd:1000,block=2048", "ternary", "ternary,block=4096", "sign", "sign,block=16", "sign,scale=none"]
    + ["onebit", "onebit,block=128"]
)
SPARSE = ["topk:0.01", "topk:0.3,values=1,block=4096", "topk:0.001,values=2", "topk:0.1,values=8,block=262144"]
SPARSE += ["topk:1,values=3,block=4096", "topk:0.05,values=bf16", "topk:0.02,values=fp32", "threshold:2.5"]
TRELLIS = ["bitshift:1,length=8", "hadamard+bitshift:0.1,length=8", "hadamard+bitshift:2.5,length=10", "bitshift:0.25"]
ENTROPY = ["ecsq:0.05", "ecsq:2", "ecsq:8,substream=64,scale=centroid", "ecdq:1", "ecdq:6,substream=8"]
ENTROPY += [
    "hadamard+ecsq:3,substream=8",
    "hadamard+ecdq:4",
    "trellis:2",
    "trellis:6,states=32,substream=16",
    "hadamard+trellis:4,states=256,scale=centroid",
]
SIZES = (1, 31, 4097, 3 * 4096 + 640, (1 << 20) - 5)
KEY = commpress.Key(seed=5, step=3, sender=1, tensor=2)


def values(kind, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    if kind == "heavy":
        x = x**5
    elif kind == "sparse":
        x = x * (torch.rand(n, generator=generator) < 0.01)
    elif kind == "not finite":
        x[torch.randint(n, (1,), generator=generator)] = float("nan")
        x[torch.randint(n, (1,), generator=generator)] = float("inf")
    elif kind == "tiny":
        x = x * 2.0**-130
    return x


def same(a, b):
    a, b = a.cpu(), b.cpu()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("spec", [*SPECS, *FORMATS, *SPARSE, *TRELLIS, *ENTROPY])
@pytest.mark.parametrize("n", SIZES)
def test_bytes_and_values_are_the_cpu_paths(spec, n):
    codec = commpress.codec(spec)
    for seed, kind in enumerate(("normal", "heavy", "sparse", "not finite", "tiny")):
        x = values(kind, n, seed)
        out = torch.full((codec.payload_nbytes(n),), 205, dtype=torch.uint8, device=DEVICE)
        payload = codec.encode(x.to(DEVICE), KEY, out=out, gain=0.75)
        expected = codec.encode(x, KEY, gain=0.75)
        assert torch.equal(payload.cpu(), expected), kind
        for accumulate in (False, True):
            y = values("normal", n, seed + 1)
            known = codec.decode(expected, KEY, out=y.clone(), accumulate=accumulate, gain=1.5, beta=0.5)
            got = codec.decode(payload, KEY, out=y.to(DEVICE), accumulate=accumulate, gain=1.5, beta=0.5)
            assert same(got, known), (kind, accumulate)


@pytest.mark.parametrize("spec", ENTROPY)
@pytest.mark.parametrize("n", [*SIZES, (1 << 23) + 5000])
def test_segments_are_the_cpu_paths(spec, n):
    """On both sides of a segment's border, from several senders, payloads at any byte, halves."""
    codec, offset = commpress.codec(spec), (1 << 23) - 8192
    for seed, kind in enumerate(("normal", "heavy", "sparse", "not finite", "tiny") if n < 1 << 23 else ("normal",)):
        payloads = [
            codec.encode(values(kind, n, seed + i), KEY.replace(sender=i), offset=offset, gain=0.75) for i in range(3)
        ]
        there = torch.empty(3 + payloads[0].numel(), dtype=torch.uint8, device=DEVICE)[3:]
        codec.encode(values(kind, n, seed).to(DEVICE), KEY.replace(sender=0), out=there, offset=offset, gain=0.75)
        assert torch.equal(there.cpu(), payloads[0]), kind
        narrow = values(kind, n, seed).to(torch.bfloat16)
        assert torch.equal(codec.encode(narrow.to(DEVICE), KEY).cpu(), codec.encode(narrow, KEY)), kind
        for accumulate in (False, True):
            y, how = values("normal", n, seed + 1), {"accumulate": accumulate, "gain": 1.5, "beta": 0.5}
            known = codec.decode(payloads[0], KEY.replace(sender=0), out=y.clone(), offset=offset, **how)
            got = codec.decode(there, KEY.replace(sender=0), out=y.to(DEVICE), offset=offset, **how)
            assert same(got, known), (kind, accumulate)
        known, got, keys = torch.empty(n), torch.empty(n, device=DEVICE), [KEY.replace(sender=i) for i in range(3)]
        finite = codec.decode_sum(payloads, keys, out=known, offset=offset)
        assert codec.decode_sum([p.to(DEVICE) for p in payloads], keys, out=got, offset=offset) is finite
        assert same(got, known), kind
        half = torch.empty(n, device=DEVICE, dtype=torch.bfloat16)
        assert same(
            codec.decode(payloads[0].to(DEVICE), keys[0], out=half, offset=offset),
            codec.decode(payloads[0], keys[0], out=torch.empty(n, dtype=torch.bfloat16), offset=offset),
        )


@pytest.mark.parametrize("spec", ["ecsq:4", "trellis:4"])
def test_invalid_segments_are_named(spec):
    codec, n = commpress.codec(spec), 50_000
    keys = [KEY.replace(sender=i) for i in range(2)]
    payloads = [codec.encode(values("normal", n, i), key).to(DEVICE) for i, key in enumerate(keys)]
    payloads[1][7] = 0  # classes
    with pytest.raises(WireError, match="the payload of rank 1"):
        codec.decode_sum(payloads, keys, out=torch.empty(n, device=DEVICE))
    with pytest.raises(WireError, match="no encoder writes"):
        codec.decode(payloads[1], keys[1], out=torch.empty(n, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "spec",
    [
        "uniform:4",
        "hadamard+lloyd:2",
        "lloyd:3",
        "cast:bf16",
        "mxfp8",
        "nvfp4",
        "ternary",
        "topk:0.1",
        "bitshift:1,length=8",
        "ecdq:3",
        "hadamard+trellis:4",
    ],
)
def test_other_dtypes_and_views(spec, dtype):
    codec = commpress.codec(spec)
    whole = values("normal", 20002).to(dtype)
    for x in (whole, whole[1:], whole[::2], whole[:20000].view(100, 200).t()):
        payload = codec.encode(x.to(DEVICE), KEY)
        assert torch.equal(payload.cpu(), codec.encode(x, KEY))
        y = torch.empty_like(x, device=DEVICE)
        assert same(codec.decode(payload, KEY, out=y), codec.decode(payload.cpu(), KEY, out=torch.empty_like(x)))


@pytest.mark.parametrize(
    "spec",
    [
        "uniform:2.5",
        "hadamard+lloyd:4",
        "none",
        "mxfp4",
        "int8",
        "sign",
        "topk:0.05",
        "hadamard+bitshift:0.3,length=8",
        "ecsq:2",
    ],
)
@pytest.mark.parametrize("senders", [1, 3, 20])
def test_sums_and_the_owners_part(spec, senders):
    codec, n = commpress.codec(spec), 70001
    keys = [KEY.replace(sender=i, phase=1) for i in range(senders)]
    payloads = [codec.encode(values("normal", n, i), key) for i, key in enumerate(keys)]
    there = [payload.to(DEVICE) for payload in payloads]
    known, got = torch.empty(n), torch.empty(n, device=DEVICE)
    assert codec.decode_sum(payloads, keys, out=known) is codec.decode_sum(there, keys, out=got) is True
    assert same(got, known)
    own = KEY.replace(phase=2)
    out = torch.empty_like(payloads[0])
    mine = values("heavy", n)
    result = mine.clone()
    assert codec.reduce(payloads, keys, own, values=result, out=out, beta=0.5)
    on_device, sent = mine.to(DEVICE), torch.empty_like(there[0])
    assert codec.reduce(there, keys, own, values=on_device, out=sent, beta=0.5)
    assert torch.equal(sent.cpu(), out) and same(on_device, result)
    spoilt = values("not finite", n).to(DEVICE)
    assert codec.reduce(there, keys, own, values=spoilt, out=sent) is False


def layered():
    specs = [
        "hadamard+lloyd:2",
        "none",
        "hadamard+lloyd:3.3",
        "uniform:4",
        "cast:bf16",
        "hadamard+lloyd:0.4",
        "lloyd:2",
        "mxfp4",
        "qsgd:7",
        "hadamard+ecdq:2",
        "bitshift:1,length=8",
    ]
    sizes = [9000, 7, 4096, 12345, 3, 50000, 4097, 10001, 333, 20000, 5000]
    return LayeredCodec([(n, commpress.codec(s)) for n, s in zip(sizes, specs, strict=True)])


def test_a_table_of_layers_in_one_call():
    codec = layered()
    x = values("heavy", codec.numel)
    payload, expected = codec.encode(x.to(DEVICE), KEY), codec.encode(x, KEY)
    assert torch.equal(payload.cpu(), expected)
    known = codec.decode(expected, KEY, out=torch.empty_like(x))
    assert same(codec.decode(payload, KEY, out=torch.empty_like(x, device=DEVICE)), known)


def test_invalid_payloads_are_named():
    codec, n = commpress.codec("hadamard+lloyd:2"), 10000
    keys = [KEY.replace(sender=i) for i in range(3)]
    payloads = [codec.encode(values("normal", n, i).to(DEVICE), key) for i, key in enumerate(keys)]
    payloads[1][:4] = torch.tensor([0, 0, 0x80, 0x7F], dtype=torch.uint8)
    with pytest.raises(WireError, match="the payload of rank 1"):
        codec.decode_sum(payloads, keys, out=torch.empty(n, device=DEVICE))
    with pytest.raises(WireError, match="no encoder writes"):
        codec.decode(payloads[1], keys[1], out=torch.empty(n, device=DEVICE))


@pytest.mark.parametrize(
    ("spec", "at", "byte"),
    [("mxfp8", 0, 0xFE), ("nvfp4", 4, 0x80), ("ternary", -1, 243), ("sign", 3, 0x80), ("topk:0.01", 3, 0x40)],
)
def test_invalid_formats_are_named(spec, at, byte):
    codec, n = commpress.codec(spec), 10000
    keys = [KEY.replace(sender=i) for i in range(2)]
    payloads = [codec.encode(values("normal", n, i).to(DEVICE), key) for i, key in enumerate(keys)]
    payloads[1][at] = byte
    with pytest.raises(WireError, match="the payload of rank 1"):
        codec.decode_sum(payloads, keys, out=torch.empty(n, device=DEVICE))
    with pytest.raises(WireError, match="no encoder writes"):
        codec.decode(payloads[1], keys[1], out=torch.empty(n, device=DEVICE))


def test_codecs_without_kernels_say_so():
    with pytest.raises(TensorError, match="randk:0.1.* has no kernels"):
        commpress.codec("randk:0.1").encode(torch.zeros(5, device=DEVICE), KEY)
    with pytest.raises(TensorError, match="on cuda:0"):
        commpress.codec("uniform:4").encode(
            torch.zeros(5, device=DEVICE),
            KEY,
            out=torch.empty(commpress.codec("uniform:4").payload_nbytes(5), dtype=torch.uint8),
        )


@pytest.mark.parametrize("spec", ["hadamard+lloyd:2", "mxfp8", "topk:0.01"])
def test_another_stream_and_no_waiting_and_no_memory(spec):
    codec, n = commpress.codec(spec), 1 << 22
    x = torch.randn(n, device=DEVICE)
    expected = codec.encode(x, KEY)
    out, stream = torch.zeros_like(expected), torch.cuda.Stream(DEVICE)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            codec.encode(x, KEY, out=out)
        assert not stream.query()  # the call is back while the device sleeps
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("spec", ["uniform:4", "nvfp4"])
def test_a_captured_graph_counts_its_steps(spec):
    codec, n = commpress.codec(spec), 100_000
    table = codec._device_table(n, 0, DEVICE)
    x, counter = torch.randn(n, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    out = torch.empty(table.nbytes, dtype=torch.uint8, device=DEVICE)
    ops.encode_table(x, out, table, seed=KEY.seed, words=KEY.words(), counter=counter)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.encode_table(x, out, table, seed=KEY.seed, words=KEY.words(), counter=counter)
        counter += 1
    counter.zero_()
    for step in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, codec.encode(x, KEY.replace(step=KEY.step + step)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_a_device_that_is_not_current():
    x = values("normal", 50000)
    codec = commpress.codec("hadamard+lloyd:4")
    assert torch.equal(codec.encode(x.to("cuda:1"), KEY).cpu(), codec.encode(x, KEY))
