"""The map of the codecs on this machine: exact bits, information captured, error, bias and speed, on made and on real gradients."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from commpress.codecs import Codec, Key
from commpress.codecs import codec as make_codec
from commpress.experiments._model import ByteGPT, Shape, loss_of
from commpress.experiments._text import standard_library
from commpress.information import efficiency

SPECS = (
    *("cast:fp16", "cast:bf16"),
    *(f"uniform:{b}" for b in (1, 2, 3, 4, 8)),
    *(f"lloyd:{b}" for b in (1, 2, 4)),
    *(f"hadamard+lloyd:{b}" for b in ("0.1", "0.25", "0.5", "1", "1.5", "2", "3", "4", "6", "8")),
    *("topk:0.001", "topk:0.01", "topk:0.1", "randk:0.01"),
    *(f"ecsq:{b}" for b in ("0.1", "0.25", "0.5", "1", "2", "3", "4")),
    *(f"ecdq:{b}" for b in ("1", "2", "4")),
    *(f"trellis:{b}" for b in ("0.5", "1", "2", "3")),
    *(f"bitshift:{b}" for b in ("0.1", "0.5", "1", "2")),
    *("float:e4m3", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "natural", "int8", "qsgd:7", "ternary", "sign", "onebit"),
    *(f"homomorphic:{b}" for b in (2, 4)),
)
"""What is measured unless told otherwise."""

_RECORDED_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Measured:
    """One codec on one input.

    Attributes:
        spec, source, numel: what was measured.
        bits: payload bits per coordinate, everything included.
        captured: G = <x,y>^2 / (|x|^2 |y|^2), y the decoded x: what the best linear reconstruction keeps of the energy.
        eta: G over the Gaussian limit 1 - 2^(-2 bits); above 1 is possible where the input is not Gaussian.
        vnmse: mean over keys of |y - x|^2 / |x|^2.
        bias: |mean over keys of (y - x)|^2 over what an unbiased codec would have, vnmse / keys: about 1 if unbiased, the number of keys if deterministic.
        unbiased: what the codec says of itself.
        encode, decode: fp32 bytes per second of one thread, decoding with accumulation. copy: the same of `tensor.copy_`.
    """

    spec: str
    source: str
    numel: int
    bits: float
    captured: float
    eta: float
    vnmse: float
    bias: float
    unbiased: bool
    encode: float
    decode: float
    copy: float

    def seconds(self, link: float, ranks: int) -> float:
        """Of an all-reduce of this tensor without overlap: payloads over a link of `link` bytes per second, two encodes and decodes of every coordinate."""
        wire = 2 * (ranks - 1) / ranks * self.numel * self.bits / 8 / link
        return wire + 2 * 4 * self.numel * (1 / self.encode + 1 / self.decode)


def sources(names: Sequence[str], numel: int, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Inputs by name: "gaussian", "laplace", "student" (3 degrees of freedom), "gradient" (a real one, whole, whatever `numel` says)."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        if name == "gradient":
            yield name, recorded_gradient(seed)
            continue
        normal = torch.randn(numel, generator=generator)
        if name == "laplace":
            normal = torch.rand(numel, generator=generator).clamp_(min=1e-7).log().neg_() * normal.sign()
        elif name == "student":
            normal /= (torch.randn(3, numel, generator=generator).square().mean(0)).sqrt_()
        yield name, normal


def recorded_gradient(seed: int = 0, *, steps: int = _RECORDED_STEPS, shape: Shape | None = None) -> torch.Tensor:
    """All gradients of the main job's model in one flat tensor, after some steps of training with AdamW on one rank."""
    corpus, shape = standard_library(None), shape or Shape()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteGPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss_of(model, corpus.batch(8, shape.context, seed=seed, step=step)).backward()
        if step < steps:
            optimizer.step()
    return torch.cat([p.grad.flatten() for p in reversed(list(model.parameters())) if p.grad is not None])


def measure(spec: str | Codec, source: str, x: torch.Tensor, *, keys: int = 8, rounds: int = 5) -> Measured:
    """Measures one codec on one input, a flat fp32 tensor. On one thread if torch was told so. With no `rounds` nothing is timed, and speeds are NaN."""
    codec = make_codec(spec)
    y, total, error = torch.empty_like(x), torch.zeros_like(x, dtype=torch.float64), 0.0
    wide = x.double()
    energy = float(wide @ wide)
    captured = 0.0
    for step in range(keys):
        key = Key(seed=20_261_125, step=step)
        payload = codec.encode(x, key)
        found = codec.decode(payload, key, out=y).double()
        error += float((found - wide).square().sum()) / energy / keys
        power = float(found @ found)
        captured += (float(found @ wide) ** 2 / (energy * power) if power else 0.0) / keys
        total += found
    bias = float((total / keys - wide).square().sum()) / energy
    bits = 8 * payload.numel() / x.numel()
    times = _times({
        "copy": lambda: y.copy_(x),
        "encode": lambda: codec.encode(x, key, out=payload),
        "decode": lambda: codec.decode(payload, key, out=y, accumulate=True),
    }, rounds)  # fmt: skip
    speed = {name: 4 * x.numel() / seconds for name, seconds in times.items()}
    return Measured(
        spec=str(codec),
        source=source,
        numel=x.numel(),
        bits=bits,
        captured=captured,
        eta=efficiency(captured, bits),
        vnmse=error,
        bias=bias * keys / error if error else 1.0,
        unbiased=codec.unbiased,
        **speed,
    )


def _times(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1 if rounds else 0):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) if seconds else math.nan for name, seconds in found.items()}


def pareto(found: Sequence[Measured], link: float, ranks: int) -> list[Measured]:
    """Those that no other beats in both distortion (vNMSE) and time, the fastest first."""
    front: list[Measured] = []
    for one in sorted(found, key=lambda m: (m.seconds(link, ranks), m.vnmse)):
        if not front or one.vnmse < front[-1].vnmse:
            front.append(one)
    return front
