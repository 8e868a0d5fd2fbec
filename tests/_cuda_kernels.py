"""For the tests of the CUDA kernels without a GPU: their PTX, compiled once for each state of the sources, and launches.

A launch is what csrc/kernels/cuda_job.h and cuda_launch.h make of it, struct by struct; so it is what a GPU would get.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import re
import subprocess
import typing

import numpy as np
import torch
from _ptx import POISON, ptx

import commpress
from commpress import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "kernels"
CACHE = ROOT / "build" / "cuda"
OPTIONS = ["-std=c++17", "-lineinfo", "-I", str(KERNELS)]
NAMES = (
    "encode_uniform",
    "encode_rotated",
    "encode_formats",
    "encode_sparse",
    "encode_trellis",
    "encode_entropy",
    "decode_uniform",
    "decode_rotated",
    "decode_formats",
    "decode_sparse",
    "decode_trellis",
    "decode_trellis_careful",
    "decode_entropy",
)
BLOCK = 4096
BLOCKS_PER_PROCESSOR = 8
PROCESSORS = 132

_KEY = np.dtype([("seed", "u8"), ("step", "u4"), ("sender_phase", "u4"), ("tensor", "u4")], align=True)
_LAYER = ("i8", ops.device_table([], torch.device("cpu")).rows.shape[1])
_JOB = np.dtype(
    [
        *[
            ("layers", "u8"),
            ("layer_of_unit", "u8"),
            ("single", *_LAYER),
            ("units", "i8"),
            ("key", _KEY),
            ("step", "u8"),
        ],
        ("codebooks", "u8"),
    ],
    align=True,
)
_VALUES = np.dtype([("data", "u8"), ("input", "i4")], align=True)
MOST_SENDERS = 16
_SOURCES = np.dtype(
    [("payload", "u8", MOST_SENDERS), ("sender_phase", "u4", MOST_SENDERS), ("count", "i4"), ("position", "i4")]
)
_DELIVERY = np.dtype([("accumulate", "u1"), ("gain", "f4"), ("beta", "f4")], align=True)
_SCRATCH = np.dtype([("words", "u8"), ("each", "i8"), ("count", "i4")], align=True)
_INPUTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_RAW, _CAST_FP16, _CAST_BF16, _UNIFORM, _LLOYD, _HADAMARD_LLOYD = range(6)


# ---- compilation ----


def _version() -> str:
    return subprocess.run([ptx.find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _state() -> str:
    """Of everything that the compiler's output depends on."""
    found = hashlib.sha256(_version().encode())
    for path in sorted([*KERNELS.glob("*.h"), *KERNELS.glob("*.cu"), pathlib.Path(ptx.__path__[0], "_compile.py")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _kept(name: str, suffix: str, make: typing.Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A compiler's output, from an earlier run if the sources are still the same."""
    path = CACHE / f"{name}-{_state()}.{suffix}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*.{suffix}"):
            old.unlink(missing_ok=True)
        unfinished = path.with_suffix(".unfinished")
        make(unfinished)
        unfinished.rename(path)
    return path


def _ptx(name: str) -> pathlib.Path:
    source = KERNELS / f"cuda_{name}.cu"
    return _kept(name, "ptx", lambda to: to.write_text(ptx.compile_ptx(source, options=OPTIONS)) and None)


@functools.cache
def kernel(name: str) -> ptx.Kernel:
    """One of `NAMES`, as the executor reads it."""
    (one,) = ptx.load(_ptx(name).read_text()).values()
    return one


@functools.cache
def threads(name: str) -> int:
    """Of a block: what the kernel is compiled for."""
    (found,) = re.findall(r"\.maxntid (\d+)", _ptx(name).read_text())
    return int(found)


@functools.cache
def cubin(name: str) -> pathlib.Path:
    """Machine code for the H100, made of the PTX that `kernel` has."""
    command = [ptx.find_nvcc(), "-cubin", "-arch=sm_90", "-lineinfo", str(_ptx(name)), "-o"]
    return _kept(name, "cubin", lambda to: subprocess.run([*command, str(to)], check=True) and None)


# ---- launches ----


@dataclasses.dataclass(frozen=True)
class Layer:
    """Coordinates of a flat tensor with a codec of their own; `tensor` is added to the key's, `offset` as in `Codec.encode`."""

    codec: commpress.codecs.Codec
    numel: int
    tensor: int = 0
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return self.codec.payload_nbytes(self.numel, offset=self.offset)

    @property
    def rows(self) -> list[ops.DeviceLayer]:
        """One; of a mixture one for each rate, of an entropy-coded quantiser one for each segment."""
        return [layer._replace(tensor=self.tensor) for layer in self.codec.device_layers(self.offset, self.numel)]


def layers_of(spec: str, numel: int) -> list[Layer]:
    return [Layer(commpress.codec(spec), numel)]


class Placed:
    """Bytes in device memory that begin `align` bytes after an aligned address and end with their allocation."""

    def __init__(self, memory: ptx.Memory, data: np.ndarray, align: int = 0) -> None:
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._all = np.full(align + len(data), POISON, np.uint8)
        self._all[align:] = data
        self._align = align
        self.address = memory.add(self._all) + align

    def bytes(self) -> np.ndarray:
        assert (self._all[: self._align] == POISON).all(), "written before the beginning"
        return self._all[self._align :]


def _launches(what: str, families: int) -> list[tuple[str, bool | None]]:
    """As `launches_of`, `encode` and `decode` in cuda_job.h: the kernels, and whether they do fp32 and casts as well, if they are told."""
    plain = families & (1 << _RAW | 1 << _CAST_FP16 | 1 << _CAST_BF16) != 0
    uniform = families >> _UNIFORM & 1 != 0
    rotated = families & (1 << _LLOYD | 1 << _HADAMARD_LLOYD) != 0 or (plain and not uniform)
    found: list[tuple[str, bool | None]] = [("rotated", plain)] * rotated
    found += [("uniform", not (rotated and plain))] * uniform
    found += [("formats", None)] * (families >> ops.FORMAT & 1)
    found += [("sparse", None)] * (families >> ops.TOPK & 1)
    trellis = [("trellis", None), ("trellis_careful", None)][: 1 if what == "encode" else 2]
    found += trellis * (families >> ops.BITSHIFT & 1)
    return found + [("entropy", None)] * (families >> ops.ENTROPY & 1)


class Launcher:
    """Launches over the same layers.

    Args:
        counter: added to the key's step in device memory; None for no such number there.
        processors: how many multiprocessors the grid is made for.
        scratches: how many blocks of threads at most encode with scratch memory.
    """

    def __init__(
        self,
        layers: list[Layer],
        key: commpress.Key,
        counter: int | None = None,
        processors: int = PROCESSORS,
        scratches: int = 3,
    ) -> None:
        self.layers, self.key, self._processors, self._scratches = layers, key, processors, scratches
        table = ops.device_table([row for layer in layers for row in layer.rows], torch.device("cpu"))
        self._table, self._memory = table, ptx.Memory()
        self.numel = sum(layer.numel for layer in layers)
        step, sender_phase, tensor = key.words()
        self._job = np.zeros(1, _JOB)[0]
        self._job["units"], self._job["key"] = table.blocks, (key.seed, step, sender_phase, tensor)
        if counter is not None:
            self._job["step"] = self._constant(np.array([counter], np.int64))
        if table.units is None:
            self._job["single"] = table.rows.numpy()[0]
        else:
            self._job["layers"] = self._constant(table.rows.numpy())
            self._job["layer_of_unit"] = self._constant(table.units.numpy())
        if table.codebooks is not None:
            self._job["codebooks"] = self._constant(table.codebooks.numpy())
        self.counts: list[ptx.Counts] = []

    def encode(self, x: torch.Tensor, gain: float = 1.0, align: int = 0, align_out: int = 0) -> np.ndarray:
        """The payload of `x`, float32, bfloat16 or float16; `align`: by how many bytes the buffers are out of alignment."""
        assert x.numel() == self.numel
        data = Placed(self._memory, x.view(torch.uint8).numpy(), align)
        out = Placed(self._memory, np.full(self._table.nbytes, POISON, np.uint8), align_out)
        values = np.array([(data.address, _INPUTS[x.dtype])], _VALUES)[0]
        self._launch("encode", lambda plain: [self._job, values, np.float32(gain), out.address, *plain])
        return out.bytes().copy()

    def decode(
        self,
        payloads: list[np.ndarray],
        keys: list[commpress.Key],
        before: np.ndarray,
        accumulate: bool = False,
        gain: float = 1.0,
        beta: float = 1.0,
        align: int = 0,
        align_out: int = 0,
        position: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The sum of payloads on top of `before`, and the report."""
        sources = np.zeros(1, _SOURCES)[0]
        for i, (payload, key) in enumerate(zip(payloads, keys, strict=True)):
            sources["payload"][i] = Placed(self._memory, payload, (align + 3 * i) % 16).address
            sources["sender_phase"][i] = key.words()[1]
        sources["count"], sources["position"] = len(payloads), position
        out = Placed(self._memory, before, align_out)
        report = np.zeros(2, np.int32)
        reported = self._memory.add(report)
        delivery = np.array([(accumulate, gain, beta)], _DELIVERY)[0]
        self._launch("decode", lambda plain: [self._job, sources, out.address, delivery, reported, *plain])
        return out.bytes().view(np.float32).copy(), report

    def _constant(self, array: np.ndarray) -> int:
        array = array.copy()
        array.flags.writeable = False
        return self._memory.add(array)

    def _launch(self, what: str, arguments: typing.Callable[[list[typing.Any]], list[typing.Any]]) -> None:
        if not self._table.blocks:
            return
        for kind, plain in _launches(what, self._table.families):
            grid = min(self._table.blocks, self._processors * BLOCKS_PER_PROCESSOR)
            name, told = f"{what}_{kind}", [] if plain is None else [int(plain)]
            if name in ("encode_trellis", "encode_entropy"):
                grid, each = min(grid, self._scratches), self._table.scratch_words
                scratch = Placed(self._memory, np.full(4 * grid * each, POISON, np.uint8))
                told = [np.array([(scratch.address, each, grid)], _SCRATCH)[0]]
            machine = ptx.Machine(kernel(name), self._memory, grid, threads(name), arguments(told))
            self.counts.append(machine.run())


# ---- the same on the CPU ----


def _each(layers: list[Layer]) -> typing.Iterator[tuple[Layer, slice, slice]]:
    first = byte = 0
    for layer in layers:
        yield layer, slice(first, first + layer.numel), slice(byte, byte + layer.nbytes)
        first, byte = first + layer.numel, byte + layer.nbytes


def encode_on_cpu(layers: list[Layer], key: commpress.Key, x: torch.Tensor, gain: float = 1.0) -> np.ndarray:
    parts = [
        layer.codec.encode(x[at], key.of_layer(layer.tensor), offset=layer.offset, gain=gain).numpy()
        for layer, at, _ in _each(layers)
    ]
    return np.concatenate(parts)


def decode_on_cpu(
    layers: list[Layer],
    payloads: list[np.ndarray],
    keys: list[commpress.Key],
    before: np.ndarray,
    accumulate: bool = False,
    gain: float = 1.0,
    beta: float = 1.0,
) -> np.ndarray:
    out = torch.from_numpy(before.copy())
    for i, (payload, key) in enumerate(zip(payloads, keys, strict=True)):
        how = {"accumulate": accumulate or i > 0, "gain": gain, "beta": 1.0 if i else beta}
        for layer, at, byte in _each(layers):
            data = torch.from_numpy(payload[byte])
            layer.codec.decode(data, key.of_layer(layer.tensor), out=out[at], offset=layer.offset, **how)
    return out.numpy()


def same_values(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, a NaN equal to any NaN."""
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())
