"""Frames: what is packed comes back; what is damaged or hostile is refused by name; nothing is trusted."""

import random
import struct
import zlib

import numpy as np
import pytest
import torch
from _inputs import CASTS, SPECS, key_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import commpress
from commpress import errors, reference, wire

SOME = [
    "none",
    *CASTS,
    "uniform:4",
    "lloyd:1.5",
    "hadamard+lloyd:2",
    "hadamard+lloyd:0.1",
    "hadamard+lloyd:2,scale=centroid",
]
HEADER = struct.Struct("<8s H H Q Q Q I I I B B B B")  # docs/frames.md, written out once more
FIELDS = ["magic", "version", "flags", "payload", "numel", "seed", "step", "sender", "tensor", "phase"]
FIELDS += ["dtype", "dims", "spec"]


def rebuilt(frame: bytes, shape: tuple[int, ...] | None = None, spec: bytes | None = None, **fields: object) -> bytes:
    """The frame with some header fields replaced, and a valid checksum."""
    values = dict(zip(FIELDS, HEADER.unpack_from(frame), strict=True))
    at = HEADER.size + 8 * values["dims"]
    old_shape, old_spec = frame[HEADER.size : at], frame[at : at + values["spec"]]
    payload = frame[at + values["spec"] : -4]
    new_shape = old_shape if shape is None else struct.pack(f"<{len(shape)}Q", *shape)
    new_spec = old_spec if spec is None else spec
    values.update(dims=len(new_shape) // 8, spec=len(new_spec))
    values.update(fields)
    body = HEADER.pack(*values.values()) + new_shape + new_spec + payload
    return body + struct.pack("<I", zlib.crc32(body))


def example(spec: str = "uniform:3", shape: tuple[int, ...] = (7, 30)) -> bytes:
    x = torch.from_numpy(normal(int(np.prod(shape)))).reshape(shape)
    return bytes(commpress.pack(x, commpress.codec(spec), key_of(8)).numpy())


@pytest.mark.parametrize("spec", SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_shape_dtype_and_values_come_back(spec, dtype):
    codec = commpress.codec(spec)
    for shape in ((), (0,), (1,), (3, 0, 5), (700,), (20, 30), (2, 3, 4, 5), (1, 5000)):
        x = torch.from_numpy(normal(int(np.prod(shape)))).reshape(shape).to(dtype)
        frame = commpress.pack(x, codec, key_of(9))
        assert frame.dtype == torch.uint8 and frame.dim() == 1
        y = commpress.unpack(frame)
        assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
        direct = codec.decode(codec.encode(x, key_of(9)), key_of(9), out=torch.zeros(shape, dtype=dtype))
        assert torch.equal(y, direct)
        if codec.lossless:
            assert torch.equal(y, x)


def test_a_reader_made_from_the_document_alone():
    frame = example("hadamard+lloyd:2", (30, 50))
    magic, version, flags, size, numel, seed, step, sender, tensor, phase, dtype, dims, text = HEADER.unpack_from(frame)
    assert (magic, version, flags, dtype, dims) == (bytes.fromhex("89434D5052530D0A"), 1, 0, 1, 2)
    assert struct.unpack_from("<2Q", frame, 52) == (30, 50) and numel == 1500
    assert (seed, step, sender, tensor, phase) == tuple(vars(key_of(8)).values())
    assert frame[68 : 68 + text] == b"hadamard+lloyd:2"
    payload = np.frombuffer(frame[68 + text : 68 + text + size], np.uint8)
    assert zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little")
    values = reference.decode(payload, "hadamard+lloyd:2", key_of(8), numel)
    assert np.array_equal(values, commpress.unpack(frame).numpy().reshape(-1))


def test_every_bytes_like_form_is_read_and_left_alone():
    frame = example()
    expected = commpress.unpack(frame)
    for form in (bytearray(frame), memoryview(frame), torch.frombuffer(bytearray(frame), dtype=torch.uint8)):
        assert torch.equal(commpress.unpack(form), expected)
        assert bytes(form if not isinstance(form, torch.Tensor) else form.numpy()) == frame
    spaced = torch.zeros(2 * len(frame), dtype=torch.uint8)
    spaced[::2] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    assert torch.equal(commpress.unpack(spaced[::2]), expected)
    with pytest.raises(errors.TensorError):
        commpress.unpack(torch.zeros(100))


def test_what_cannot_be_framed_is_refused():
    for x in (torch.arange(5), torch.zeros(5, dtype=torch.complex64), torch.zeros([1] * 65)):
        with pytest.raises(errors.TensorError):
            commpress.pack(x, commpress.codec("uniform:2"), key_of(0))


@pytest.mark.parametrize("spec", SOME)
def test_truncation_at_every_length(spec):
    frame = example(spec, (3, 47))
    for length in range(len(frame)):
        with pytest.raises(errors.WireError, match="truncated"):
            commpress.unpack(frame[:length])


@pytest.mark.parametrize("spec", SOME)
def test_every_single_bit_flip(spec):
    frame = bytearray(example(spec, (3, 17)))
    for bit in range(8 * len(frame)):
        frame[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.WireError):
            commpress.unpack(bytes(frame))
        frame[bit // 8] ^= 1 << bit % 8
    commpress.unpack(bytes(frame))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"\x89PNG\r\n\x1a\n"}, "magic"),
        ({"version": 0}, "version 0"),
        ({"version": 2}, "version 2"),
        ({"flags": 1}, "flags"),
        ({"dtype": 0}, "dtype"),
        ({"dtype": 5}, "dtype"),
        ({"dtype": 255}, "dtype"),
        ({"payload": 2**64 - 1}, "truncated"),
        ({"payload": 2**63}, "truncated"),
        ({"payload": 0}, "trailing"),
        ({"numel": 209}, "hold"),
        ({"numel": 2**64 - 1}, "hold"),
        ({"shape": (7, 31), "numel": 217}, "payload"),
        ({"shape": (2**40, 2**40), "numel": 0}, "overflow"),
        ({"shape": (2**32, 2**32), "numel": 0}, "overflow"),  # the product is 0 mod 2^64
        ({"shape": (0, 2**63), "numel": 0}, "overflow"),
        ({"shape": (0, 7), "numel": 0}, "payload"),
        ({"shape": (2**50,), "numel": 2**50}, "payload"),
        ({"shape": (1,) * 65, "numel": 1}, "dimensions"),
        ({"dims": 3}, "truncated"),
        ({"dims": 1}, "trailing"),
        ({"phase": 16}, "key"),
        ({"sender": 2**24}, "key"),
        ({"spec": b""}, "codec"),
        ({"spec": b"uniform:0"}, "codec"),
        ({"spec": b"uniform:\xff"}, "codec"),
        ({"spec": b"uniform:3.0"}, "codec"),
        ({"spec": b"uniform:3 "}, "codec"),
        ({"spec": b"uniform:4"}, "payload"),
        ({"spec": b"none"}, "payload"),
    ],
)
def test_hostile_headers_with_valid_checksums(change, message):
    frame = example()
    assert rebuilt(frame) == frame
    with pytest.raises(errors.WireError, match=message):
        commpress.unpack(rebuilt(frame, **change))


def test_trailing_bytes_and_impossible_scales():
    frame = example()
    with pytest.raises(errors.WireError, match="trailing"):
        commpress.unpack(frame + b"\0")
    at = len(frame) - 4 - commpress.codec("uniform:3").payload_nbytes(210)
    for scale in (b"\xc0\x7f", b"\x80\x7f", b"\x00\x80"):  # NaN, infinity, -0
        body = frame[:at] + scale + frame[at + 2 : -4]
        with pytest.raises(errors.WireError):
            commpress.unpack(body + struct.pack("<I", zlib.crc32(body)))


def test_bombs_are_bounded():
    """The smallest payload for the most coordinates: the result is bounded, and smaller still where the caller says."""
    n = 4096 * 50
    x = torch.zeros(n, dtype=torch.float64)
    frame = commpress.pack(x, commpress.codec("uniform:0.000001"), key_of(0))
    assert 8 * n / frame.numel() < 11000
    assert commpress.unpack(frame, max_numel=n).numel() == n
    with pytest.raises(errors.WireError, match="allowed"):
        commpress.unpack(frame, max_numel=n - 1)
    for huge in (2**34, 2**50):  # more than there is memory for: refused, not tried
        with pytest.raises(errors.WireError, match="payload"):
            commpress.unpack(rebuilt(bytes(frame.numpy()), shape=(huge,), numel=huge))


def test_parse_says_what_a_frame_holds():
    info = wire.parse(example("hadamard+lloyd:1.5", (4, 5, 6)))
    assert (info.spec, info.shape, info.dtype, info.numel) == ("hadamard+lloyd:1.5", (4, 5, 6), torch.float32, 120)
    assert info.key == key_of(8)
    assert info.payload_nbytes == commpress.codec("hadamard+lloyd:1.5").payload_nbytes(120)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from([*SPECS, *CASTS, "none"]),
    shape=st.lists(st.integers(0, 9), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_key(spec, shape, dtype, seed, step):
    key = commpress.Key(seed=seed, step=step)
    x = torch.from_numpy(normal(int(np.prod(shape)))).reshape(shape).to(dtype)
    frame = bytes(commpress.pack(x, spec, key).numpy())
    info = wire.parse(frame)
    assert info.key == key and info.shape == tuple(shape) and info.spec == str(commpress.codec(spec))
    assert commpress.unpack(frame).shape == x.shape


def test_thousands_of_mutations():
    rng = random.Random(7)
    frames = [example(spec, (3, 50)) for spec in SOME]
    refused = 0
    for _ in range(6000):
        frame = bytearray(rng.choice(frames))
        for _ in range(rng.randint(1, 4)):
            kind, at = rng.randrange(4), rng.randrange(len(frame))
            if kind == 0:
                frame[at] = rng.randrange(256)
            elif kind == 1:
                del frame[at : at + rng.randint(1, 8)]
            elif kind == 2:
                frame[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                frame[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\0" * 7 + b"\x80"])
            if not frame:
                break
        if rng.random() < 0.7 and len(frame) > 4:  # a liar who knows the checksum
            frame[-4:] = struct.pack("<I", zlib.crc32(frame[:-4]))
        try:
            out = commpress.unpack(bytes(frame), max_numel=10**6)
            assert out.numel() <= 10**6
        except errors.WireError:
            refused += 1
    assert 3000 < refused < 6000  # most are refused; some (a changed seed, a changed code) are frames as good as any
