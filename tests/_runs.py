"""Records of runs that never happened: every figure follows from a formula."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np

CAPTURED = {0: 0.0, 1: 2 / math.pi, 2: 0.882518, 3: 0.965452, 4: 0.990499}  # G(b) of Lloyd-Max on N(0, 1)


def captured(bits: float) -> float:
    """On the hull of the codec's points."""
    low = min(3, int(bits))
    return CAPTURED[low] + (CAPTURED[low + 1] - CAPTURED[low]) * (bits - low)


def gpt(blocks: int) -> list[tuple[str, int, float]]:
    """Layers of a small GPT in model order: name, coordinates, variance of the gradient."""
    found = [("embedding.weight", 65536, 1e-7)]
    for i in range(blocks):
        found += [
            (f"blocks.{i}.attention_norm.weight", 256, 4e-5),
            (f"blocks.{i}.query_key_value.weight", 196608, 3e-6 / (i + 1)),
            (f"blocks.{i}.attention_out.weight", 65536, 8e-6 / (i + 1)),
            (f"blocks.{i}.up.weight", 262144, 2e-6 * (i + 1)),
            (f"blocks.{i}.down.weight", 262144, 5e-6 * (i + 1)),
        ]
    return [*found, ("head.weight", 65536, 6e-5)]


def unbiased_bits(layers: list[tuple[str, int, float]], rate: float) -> list[float]:
    """b_l = log2(e) asinh(sqrt(s_l) / (2 sqrt(mu))) at the budget, at most 4; norms go exact."""
    sizes = np.array([n for _, n, _ in layers], dtype=float)
    variances = np.array([s for _, _, s in layers])
    low, high = 1e-20, 1e4
    for _ in range(200):
        mu = math.sqrt(low * high)
        bits = np.minimum(4, math.log2(math.e) * np.arcsinh(np.sqrt(variances) / (2 * math.sqrt(mu))))
        low, high = (mu, high) if (bits * sizes).sum() > rate * sizes.sum() else (low, mu)
    return [32.0 if n <= 256 else float(b) for b, (_, n, _) in zip(bits, layers, strict=True)]


def water_filling(sizes: np.ndarray, variances: np.ndarray, total: float) -> float:
    """sum d_l [1/s_l - nu]_+ with sum of 1/2 log2(1/(nu s_l)) d_l equal to `total` bits."""
    low, high = 1e-6, 1e12
    for _ in range(200):
        nu = math.sqrt(low * high)
        spent = (sizes * np.maximum(0, 0.5 * np.log2(1 / (nu * variances)))).sum()
        low, high = (nu, high) if spent > total else (low, nu)
    return float((sizes * np.maximum(0, 1 / variances - nu)).sum())


def run_records(
    *, steps: int = 200, blocks: int = 4, rate: float = 2.0, every: int = 20, plan_every: int = 50, seed: int = 0
) -> list[dict[str, Any]]:
    """A run whose figures follow from the formulas: unbiased allocation, Lloyd-Max points, water-filling."""
    random = np.random.default_rng(seed)
    layers, found, bits = gpt(blocks), [], []
    sizes = np.array([n for _, n, _ in layers], dtype=float)
    drift = np.zeros(len(layers))
    for step in range(steps):
        drift += 0.03 * random.standard_normal(len(layers))
        now = [(name, n, s * math.exp(drift[i] - step / steps)) for i, (name, n, s) in enumerate(layers)]
        head = {"format": 1, "rank": 0, "time": 1e9 + step}
        if step % plan_every == 0:
            bits = unbiased_bits(now, rate)
            plan = [{"name": name, "numel": n, "bits": b} for (name, n, _), b in zip(now, bits, strict=True)]
            budget = int(rate * sizes.sum() / 8)
            words = {"objective": "unbiased", "reason": "first plan" if step == 0 else "variances drifted"}
            figures = {"budget_bytes": budget, "planned_bytes": int(0.997 * budget)}
            found.append({**head, "kind": "plan", "step": step, **words, **figures, "layers": plan})
        sampled = step % every == 0
        entries: list[dict[str, Any]] = []
        for (name, n, _), b in zip(now, bits, strict=True):
            entries.append({"name": name, "numel": n, "payload_bytes": int(n * b / 8)})
            if sampled:
                noise = 1 / captured(b) - 1 if b <= 4 else 1e-15
                entries[-1]["nmse"] = noise * math.exp(0.05 * random.standard_normal())
        payload = sum(entry["payload_bytes"] for entry in entries)
        rates = {"requested_rate": rate, "achieved_rate": 8 * payload / sizes.sum()}
        counts = {"payload_bytes": payload, "header_bytes": 768, "wire_bytes": int(1.02 * payload) + 900}
        counts["numel"] = int(sizes.sum())
        record = {**head, "kind": "step", "step": step, "world_size": 2, "codec": "hadamard+lloyd:2", **rates, **counts}
        record |= {"step_time": 0.04 + 0.004 * random.random(), "finite": True, "layers": entries}
        if sampled:
            record["information"] = information(now, bits)
        found.append(record)
        found.append({"kind": "step", "step": step + 1, "loss_rank0": 1.5 + 3 * math.exp(-step / 60)})
    return found


def information(now: list[tuple[str, int, float]], bits: list[float]) -> dict[str, Any]:
    sizes, variances = np.array([n for _, n, _ in now], dtype=float), np.array([s for _, _, s in now])
    g = np.array([captured(b) if b <= 4 else 1.0 for b in bits])
    best = 1 - np.exp2(-2 * np.array(bits))
    achieved, allocated = float((sizes / variances * g).sum()), float((sizes / variances * best).sum())
    optimum = water_filling(sizes, variances, float((sizes * bits).sum()))
    layers = [
        {"name": name, "numel": n, "bits": b, "variance": s, "captured": float(g[i]), "eta": float(g[i] / best[i])}
        for i, ((name, n, s), b) in enumerate(zip(now, bits, strict=True))
    ]
    return {
        "label": "of the Gaussian limit",
        "binding": "memoryless",
        "achieved": achieved,
        "allocated": allocated,
        "optimum": optimum,
        "eta_codec": achieved / allocated,
        "eta_alloc": allocated / optimum,
        "rate_payload": 2.008,
        "rate_wire": 2.05,
        "extra_bytes": 4 * len(now),
        "phase1": {"captured": 0.8825, "rate": 2.05, "eta": 0.937},
        "phase2": {"captured": 0.8825, "rate": 2.05, "eta": 0.937},
        "together": {"captured": 0.78, "rate": 4.1, "eta": None},
        "layers": layers,
    }


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
