"""The CUDA kernels as nvcc compiles them, executed without a GPU: the bytes and the values of the CPU codecs, to the bit.

tests/cuda/test_kernels.cpp does the same, for many more inputs, with the source under an emulator; here it is the PTX
that runs, and the executor checks every access to memory (see tests/cuda/ptx).
"""

import itertools

import numpy as np
import pytest
import torch
from _cuda_kernels import (
    BLOCK,
    BLOCKS_PER_PROCESSOR,
    Launcher,
    Layer,
    decode_on_cpu,
    encode_on_cpu,
    layers_of,
    same_values,
)
from _inputs import INPUTS, key_of, normal
from _ptx import POISON, needs_nvcc

import commpress
from commpress.errors import WireError

pytestmark = needs_nvcc

UNIFORM = [f"uniform:{rate}" for rate in ("1", "2", "3", "4", "8", "2.5", "0.3")]
ROTATED = [f"hadamard+lloyd:{rate}" for rate in ("1", "2", "3", "4", "5", "8", "2.5", "0.5", "4,scale=centroid")]
ROTATED.append("lloyd:2")
CASTS = ["cast:fp16", "cast:bf16"]
FORMATS = ["float:e4m3", "float:e5m2,rounding=nearest,scale=none", "float:e5m10,block=4096", "float:e8m23"]
FORMATS += [
    "mxfp8",
    "mxfp8,format=e5m2,rounding=nearest",
    "mxfp6",
    "mxfp4",
    "nvfp4",
    "nvfp4,rounding=nearest",
    "natural",
]
FORMATS += [
    "int8",
    "int8,block=16,rounding=nearest",
    "qsgd:7",
    "qsgd:1000,block=2048",
    "ternary",
    "sign",
    "sign,block=16",
]
FORMATS += ["sign,scale=none", "onebit,block=128"]
# A scheme, a width and a length of scale block each.
SOME_FORMATS = [
    "mxfp8",
    "nvfp4",
    "float:e5m10,block=4096",
    "float:e8m23",
    "qsgd:7",
    "ternary",
    "sign",
    "onebit,block=128",
]
# One stream of positions and two, every kind of values, the exact list, and a segment of which all is sent.
SPARSE = ["topk:0.01,block=4096", "topk:0.2,block=4096,values=1", "topk:0.1,block=8192,values=2", "topk:0.001"]
SPARSE += ["topk:1,block=4096,values=3", "topk:0.1,values=bf16", "topk:0.03,block=4096,values=fp32", "threshold:1.5"]
# Every rate, and a mixture of two; pieces of one block and of several.
TRELLIS = ["hadamard+bitshift:0.05,length=9", "bitshift:0.1,length=10", "hadamard+bitshift:0.125,length=11"]
TRELLIS += ["hadamard+bitshift:0.2,length=14", "bitshift:0.25", "hadamard+bitshift:0.5,length=8,scale=centroid"]
TRELLIS += ["hadamard+bitshift:1", "bitshift:1.5,length=16", "hadamard+bitshift:2,length=13", "bitshift:3,length=15"]
TRELLIS += ["hadamard+bitshift:4", "hadamard+bitshift:0.3,length=8", "bitshift:2.5,length=10"]
SIZES = (1, 31, 4097)
KINDS = (
    "normal",
    "lognormal",
    "two spikes",
    "40 blocks of zeros",
    "some negative zeros",
    "denormals",
    "huge",
    "nan",
    "-inf at the end",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def poisoned(n):
    return np.frombuffer(bytes([POISON]) * (4 * n), np.float32)


def of_kinds(layers, kinds, dtype, seed):
    """Values for the layers, of a kind each; `seed` tells senders apart."""
    parts = [np.roll(INPUTS[kind](layer.numel), seed) for layer, kind in zip(layers, kinds, strict=True)]
    return torch.from_numpy(np.concatenate(parts)).to(dtype)


def check(layers, xs, number=0, *, gain=0.75, beta=0.5, align=5, counter=None, **options):
    """Encodes what two senders have, decodes from the first and from all of them; the CPU does the same, and encodes the rest."""
    key = key_of(number)
    real = key if counter is None else key.replace(step=key.step + counter)
    launcher = Launcher(layers, key, counter, **options)
    payloads, keys = [], [real.replace(sender=sender) for sender in range(len(xs))]
    for i, (x, own) in enumerate(zip(xs, keys, strict=True)):
        expected = encode_on_cpu(layers, own, x, gain if i else 1.0)
        payloads.append(expected)
        if i < 2:
            sender = Launcher(layers, key.replace(sender=i), counter, **options)
            payload = sender.encode(x, gain=gain if i else 1.0, align=x.itemsize * (i % 4), align_out=i * align % 16)
            differing = np.flatnonzero(payload != expected)
            assert not len(differing), f"sender {i}: {len(differing)} bytes differ, the first is {differing[0]}"

    before = poisoned(launcher.numel)
    compare(launcher, layers, payloads[:1], keys[:1], before, align=align)
    before = normal(launcher.numel, 77)
    compare(launcher, layers, payloads, keys, before, accumulate=True, gain=gain, beta=beta, align_out=4 * (number % 4))


def compare(launcher, layers, payloads, keys, before, *, align=0, align_out=0, **how):
    values, report = launcher.decode(payloads, keys, before, align=align, align_out=align_out, **how)
    expected = decode_on_cpu(layers, payloads, keys, before, **how)
    assert same_values(values, expected), f"{np.flatnonzero(values != expected)[:10]} of {len(payloads)} senders"
    assert report.tolist() == [0, int(not np.isfinite(expected).all())]


def check_all(triples, seed):
    """Layers of these specs, sizes and kinds at once, from senders with different dtypes."""
    layers = [
        Layer(
            commpress.codec(spec), n, tensor=65536 * i, offset=getattr(commpress.codec(spec), "block", BLOCK) * (i % 5)
        )
        for i, (spec, n, _) in enumerate(triples)
    ]
    kinds = [kind for _, _, kind in triples]
    check(layers, [of_kinds(layers, kinds, dtype, i) for i, dtype in enumerate(DTYPES)], seed)


@pytest.mark.parametrize(
    "specs", [UNIFORM, ROTATED, CASTS, SOME_FORMATS, SPARSE], ids=["uniform", "rotated", "casts", "formats", "topk"]
)
def test_codecs(specs):
    """Every codec with every size, the kinds in turn; and a whole block of ordinary values, which has a way of its own."""
    turns = itertools.cycle(KINDS)
    check_all(
        [(spec, BLOCK, "normal") for spec in specs] + [(spec, n, next(turns)) for n in SIZES for spec in specs],
        len(specs),
    )


@pytest.mark.nightly
@pytest.mark.parametrize("spec", [*UNIFORM, *ROTATED, *CASTS, *FORMATS, *SPARSE])
def test_sizes_and_kinds(spec):
    check_all([(spec, n, kind) for n in SIZES for kind in KINDS], len(spec))


def check_decoder(layers, xs, number, **options):
    """Payloads of the CPU's encoder, from the first sender and from all: a search under the executor takes long."""
    key = key_of(number)
    keys = [key.replace(sender=sender) for sender in range(len(xs))]
    payloads = [encode_on_cpu(layers, own, x) for own, x in zip(keys, xs, strict=True)]
    launcher = Launcher(layers, key, **options)
    compare(launcher, layers, payloads[:1], keys[:1], poisoned(launcher.numel), align=5)
    before = normal(launcher.numel, 77)
    compare(launcher, layers, payloads, keys, before, accumulate=True, gain=0.75, beta=0.5, align_out=4)


def test_trellises():
    """Every rate with every size, the kinds in turn, in one table; of two senders, of whom one has what asks for two rotations."""
    turns = itertools.cycle(KINDS)
    cases = [(spec, n, next(turns)) for n in (*SIZES, 2 * BLOCK + 1100) for spec in TRELLIS]
    layers = [
        Layer(commpress.codec(spec), n, tensor=i, offset=4 * BLOCK * (i % 5)) for i, (spec, n, _) in enumerate(cases)
    ]
    kinds = [kind for _, _, kind in cases]
    xs = [of_kinds(layers, kinds, torch.float32, 0), of_kinds(layers, ["two spikes"] * len(kinds), torch.float32, 1)]
    check_decoder(layers, xs, 3)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("spec", "n", "kind"),
    [
        ("hadamard+bitshift:0.05,length=13", 1024, "normal"),
        ("bitshift:0.1,length=8", 1024, "huge"),
        ("hadamard+bitshift:0.2,length=8", 1055, "two spikes"),
        ("bitshift:1.5,length=10", 1024, "nan"),
        *[
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("hadamard+bitshift:0.05,length=8", 4097, "lognormal"),
                ("hadamard+bitshift:2,length=8,scale=centroid", 1024, "denormals"),
                ("bitshift:4,length=12", 1024, "normal"),
                ("bitshift:3,length=10", 1024, "normal"),
            )
        ],
    ],
)
def test_searches_of_trellises(spec, n, kind):
    layers = layers_of(spec, n)
    check(layers, [of_kinds(layers, [kind], dtype, i) for i, dtype in enumerate(DTYPES[:2])], n, align=2)


def lengths_of_trellises():
    """Rates, and the lengths that there are of each."""
    rates = ("0.05", "0.1", "0.125", "0.2", "0.25", "0.3", "0.5", "1", "1.5", "2", "3", "4")
    bits = {"1.5": 3, "2": 2, "3": 3, "4": 4}
    return [(rate, length) for rate in rates for length in range(8, 17) if length >= 2 * bits.get(rate, 1) + 4]


@pytest.mark.nightly
@pytest.mark.parametrize(("rate", "length"), lengths_of_trellises())
def test_lengths_of_trellises(rate, length):
    for spec in (f"bitshift:{rate},length={length}", f"hadamard+bitshift:{rate},length={length}"):
        layers = [Layer(commpress.codec(spec), n, tensor=n) for n in (4097, 20000)]
        check_decoder(layers, [torch.from_numpy(normal(24097, i)) for i in range(2)], length)


@pytest.mark.parametrize("spec", ["hadamard+bitshift:0.05,length=8", "bitshift:1,length=8", "hadamard+bitshift:2"])
def test_a_trellis_of_many_values(spec):
    """One layer, whole spans and pieces of all sizes; more blocks of coordinates than blocks of threads."""
    n = 2**18 - 5
    check_decoder(layers_of(spec, n), [torch.from_numpy(normal(n))], n, processors=4)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("spec", ["hadamard+bitshift:0.05,length=8", "bitshift:1,length=8"])
def test_a_trellis_of_a_million_values(spec):
    n = 2**20 - 5
    check(layers_of(spec, n), [torch.from_numpy(normal(n))], n, scratches=32)


@pytest.mark.parametrize(
    ("spec", "n"),
    [
        ("uniform:4", 31),
        ("uniform:4", 4097),
        ("hadamard+lloyd:4", 4097),
        ("lloyd:2", 1),
        ("none", 31),
        ("mxfp8", 4097),
        ("ternary", 31),
        ("topk:0.01", 4097),
        ("topk:0.3,block=4096,values=fp32", 8195),
        ("threshold:1,values=5", 1),
    ],
)
def test_one_layer(spec, n):
    """Without a table; the step is counted in device memory."""
    xs = [torch.from_numpy(normal(n, i)).to(dtype) for i, dtype in enumerate(DTYPES[: 1 if spec == "none" else 3 : 2])]
    check(layers_of(spec, n), xs, n, counter=1000 + n, align=4)


@pytest.mark.parametrize(
    "specs",
    [
        ["uniform:4", "none", "hadamard+lloyd:2", *CASTS, "lloyd:3"],
        ["none", "uniform:3"],
        ["mxfp4", "none", "nvfp4"],
        ["int8", "uniform:4", "none", "hadamard+lloyd:3", "sign"],
        ["none", "topk:0.02,block=4096", "mxfp8", "threshold:2,block=4096,values=bf16", "uniform:4"],
    ],
)
def test_tables_of_several_families(specs):
    """All kernels of a launch, each with its own layers; and fp32 and casts, which one of them does."""
    sizes = itertools.cycle([4097, 31, 700])
    layers = [Layer(commpress.codec(spec), next(sizes), tensor=i, offset=BLOCK * i) for i, spec in enumerate(specs)]
    check(layers, [torch.from_numpy(normal(sum(one.numel for one in layers), i)) for i in range(2)], align=3)


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:4", "mxfp8", "topk:0.01,block=4096"])
def test_many_values(spec):
    """More blocks of coordinates than the grid has blocks of threads; aligned throughout."""
    n = 2**20 - 5
    check(
        layers_of(spec, n), [torch.from_numpy(normal(n))], align=0, processors=n // BLOCK // BLOCKS_PER_PROCESSOR // 2
    )


@pytest.mark.parametrize(
    "spec",
    [
        "uniform:4",
        "lloyd:2",
        "hadamard+lloyd:4",
        "mxfp8",
        "nvfp4",
        "int8",
        "ternary",
        "sign",
        "topk:0.1",
        "threshold:1",
        "bitshift:1",
        "hadamard+bitshift:0.5,length=8",
    ],
)
@pytest.mark.parametrize("n", [31, 4096])
def test_payloads_that_no_encoder_writes(spec, n):
    """The last sender with an invalid scale is reported; so is a sum that is not finite."""
    layers, key = layers_of(spec, n), key_of(n)
    keys = [key.replace(sender=sender) for sender in range(3)]
    x = torch.from_numpy(normal(n))
    good, bad = encode_on_cpu(layers, key, x), encode_on_cpu(layers, key, x)
    if spec == "uniform:4" or (spec.startswith("hadamard") and n < 128):
        bad[:2] = 0x81  # a list that is longer than the payload
    elif spec == "mxfp8":
        bad[0] = 0xFE  # a scale under which codes have no finite values
    elif spec == "ternary":
        bad[-1] = 243  # no five trits
    else:
        bad[:4] = np.array([0x7F812345], "<u4").view(np.uint8)  # no number; more coordinates than there are
    launcher = Launcher(layers, key)
    with pytest.raises(WireError):
        decode_on_cpu(layers, [bad], keys[:1], poisoned(n))
    for senders, expected in (([good, bad, good], 7 + 1 + 1), ([bad, good, bad], 7 + 2 + 1)):
        _, report = launcher.decode(senders, keys, poisoned(n), position=7)
        assert report[0] == expected


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:4"])
@pytest.mark.parametrize("n", [31, 4096])
def test_sums_that_overflow_are_reported(spec, n):
    layers, key = layers_of(spec, n), key_of(n)
    payload = encode_on_cpu(layers, key, torch.from_numpy(normal(n)))
    huge = np.full(n, np.finfo(np.float32).max, np.float32)
    values, report = Launcher(layers, key).decode([payload], [key], huge, accumulate=True, beta=2.0)
    assert np.isinf(values).all() and report.tolist() == [0, 1]
