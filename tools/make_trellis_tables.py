"""Makes the code lengths and rates that the encoder of `trellis` begins its search with: what a search converges to on N(0,1).

Writes csrc/kernels/ectcq_tables.h and commpress/codecs/_trellis_tables.py. They are part of how payloads are made, not of how they are read.
"""

import pathlib

import numpy as np
import torch

from commpress import ops
from commpress.reference import _tcq

ROOT = pathlib.Path(__file__).parents[1]
LEVELS = range(-4, 7)  # mean magnitude in steps, in half octaves
WORTH = {-4: 0.68, -3: 0.63, -2: 0.58, -1: 0.52, 0: 0.46, 1: 0.405, 2: 0.375, 3: 0.357, 4: 0.357, 5: 0.36, 6: 0.36}
TURNS, SAMPLES, SPAN = 60, 1 << 18, 512


def quantisers_of(indices: np.ndarray) -> np.ndarray:
    """The quantiser in force at every index."""
    after = np.array([[_tcq.next_state(8, s, p) for p in range(2)] for s in range(8)])
    state, out = np.zeros(indices.shape[0], np.int64), np.empty(indices.shape, np.int64)
    for i in range(indices.shape[1]):
        out[:, i] = state & 1
        state = after[state, indices[:, i] & 1]
    return out


def converged(level: int, bits: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The cost in squared steps, bits of a coordinate, and bits of (quantiser, |k|), sign included."""
    step, k = (2 / np.pi) ** 0.5 / 2 ** (level / 2), np.arange(64)
    plain = np.stack([2 * k, np.maximum(2 * k - 1, 0)]).astype(np.float32)
    levels, cost, rate = plain, 0.0, 0.0
    for turn in range(TURNS):
        x = np.random.default_rng(turn % 4).standard_normal((SAMPLES // SPAN, SPAN)).astype(np.float32)
        v, found = torch.from_numpy(x.reshape(-1) / np.float32(step)), torch.empty(SAMPLES, dtype=torch.int16)
        prices = torch.from_numpy((WORTH[level] * bits).astype(np.float32))
        ops.tcq_quantise(v, found, block=SPAN, levels=torch.from_numpy(levels), prices=prices)
        indices = found.numpy().reshape(x.shape)
        q, size = quantisers_of(indices), np.abs(indices.astype(np.int64))
        cell = (q * 64 + size).reshape(-1)
        error = np.abs(v.numpy()) - levels.reshape(-1)[cell]
        cost = float((error**2).mean() + WORTH[level] * bits.reshape(-1)[cell].mean())
        count = np.bincount(cell, minlength=128).reshape(2, 64).astype(np.float64)
        total = np.bincount(cell, np.abs(v.numpy()), minlength=128).reshape(2, 64)
        levels = np.where(count > 20, total / np.maximum(count, 1), plain).astype(np.float32)
        levels[:, 0] = 0
        rate = float((bits.reshape(-1) * count.reshape(-1)).sum() / SAMPLES)
        share = (count + 0.05) / (count + 0.05).sum(1, keepdims=True)
        fresh = -np.log2(share) + (k > 0)
        bits = np.minimum((bits + fresh) / 2, 30)
    return cost, rate, bits


def main() -> None:
    k, made, rates = np.arange(64)[None].repeat(2, 0), {}, []
    for level in LEVELS:
        # There are two ways to settle: with zeros of the second quantiser, and without them.
        cost, rate, bits = min((converged(level, start) for start in (1.0 + k, 2 + 0.2 * k)), key=lambda made: made[0])
        made[level] = np.maximum(np.rint(bits[:, :32] * 256), 1).astype(int)
        rates.append(round(4096 * rate))
        print(level, cost, rate, flush=True)
    rows = [made[level].tolist() for level in LEVELS]
    body = ",\n".join("    {{" + ", ".join(map(str, a)) + "},\n     {" + ", ".join(map(str, b)) + "}}" for a, b in rows)
    (ROOT / "csrc/kernels/ectcq_tables.h").write_text(
        "// Made by tools/make_trellis_tables.py: code lengths in 1/256 bit, and rates in 1/4096 bit, that the encoder of\n"
        "// `trellis` begins with.\n"
        "#pragma once\n#include <cstdint>\n\nnamespace commpress {\n\n"
        f"// For mean magnitudes of 2^-2 to 2^3 steps, in half octaves; for each quantiser and |k|.\n"
        f"constexpr int64_t ECTCQ_LENGTHS[{len(rows)}][2][32] = {{\n{body}}};\nconstexpr int64_t ECTCQ_RATES[{len(rows)}] = {{{', '.join(map(str, rates))}}};\n\n}}  // namespace commpress\n"
    )
    (ROOT / "commpress/codecs/_trellis_tables.py").write_text(
        '"""Code lengths (1/256 bit) and rates (1/4096 bit) that the encoder of `trellis` begins with, made by ``tools/make_trellis_tables.py``."""\n\n'
        f"LENGTHS = {tuple(tuple(map(tuple, row)) for row in rows)}\nRATES = {tuple(rates)}\n"
    )


if __name__ == "__main__":
    main()
