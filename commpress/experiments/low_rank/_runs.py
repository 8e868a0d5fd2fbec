"""What the low-rank experiment measures, its table, and what must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from commpress.codecs import Key
from commpress.codecs import codec as make_codec
from commpress.experiments._checks import Check, aligned, at_least, at_most, within
from commpress.experiments._gradients import Layer, Recording
from commpress.experiments._settings import QUICK, Settings
from commpress.experiments.low_rank._follow import Follower, PowerIteration, best_fidelity, drifting, fidelity_of
from commpress.information import captured, fisher_fraction

DIMENSION = 4
RANKS = 2
NEAR = 0.99  # of the best fidelity: what tracking must reach
NOISE_SIDE = 1024  # isotropic noise is square
NOISE_CAPTURED = 2 * DIMENSION / NOISE_SIDE  # of a fresh square matrix: a random basis after half a power iteration
PHASES = ("first tenth", "up to the middle", "second half")
_PHASE_ENDS = (0.1, 0.5, 1.0)

Tell = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Trace:
    """One way to follow a drifting subspace, by step; the mean and the least over the seeds.

    Attributes:
        way: a spec, or "PowerSGD". jump: the step at which the subspace is another one.
        mean, least: fidelity over the best possible of that step. bits: mean payload bits per coordinate and step, in one phase.
        resets: of all seeds, those of the first step apart.
    """

    way: str
    jump: int
    seeds: int
    mean: list[float]
    least: list[float]
    bits: float
    resets: int


@dataclasses.dataclass(frozen=True)
class Noise:
    """Isotropic noise: part of the energy that arrived, the best that any matrix of that rank could, and the Gaussian limit at the payload's bits."""

    side: int
    captured: float
    best: float
    bits: float
    limit: float


@dataclasses.dataclass(frozen=True)
class LayerFound:
    """A layer of the main job in one phase of its training; means over the sampled steps.

    Attributes:
        best: part of the energy in the leading `DIMENSION` singular directions. noise: the same of noise of that shape.
        ours, power: what `lowrank` and PowerSGD's iteration brought. scalar: what an entropy-coded scalar quantiser captures at the same bits.
        limit: the Gaussian limit for these bits. restarts: part of the steps that began with power iterations.
    """

    layer: str
    rows: int
    columns: int
    phase: str
    bits: float
    limit: float
    noise: float
    best: float
    ours: float
    power: float
    scalar: float
    restarts: float


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything."""

    traces: list[Trace]
    noise: Noise
    layers: list[LayerFound]

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        found = [{"kind": "trace", **dataclasses.asdict(trace)} for trace in self.traces]
        found.append({"kind": "noise", **dataclasses.asdict(self.noise)})
        return found + [{"kind": "layer", **dataclasses.asdict(layer)} for layer in self.layers]

    def checks(self) -> list[Check]:
        """What must hold."""
        found = []
        for trace in self.traces:
            steady = trace.least[1 : trace.jump] + trace.least[trace.jump + 2 :]
            after = trace.least[trace.jump + 1]
            if trace.way == "PowerSGD":
                found.append(at_most(f"{trace.way}: f/f_opt one step after the jump (the control)", after, NEAR))
                continue
            found.append(at_least(f"{trace.way}: least f/f_opt in the steady state", min(steady), NEAR))
            found.append(at_least(f"{trace.way}: least f/f_opt one step after the jump", after, NEAR))
            found.append(
                at_most(f"{trace.way}: f/f_opt at the jump itself (there was one)", trace.mean[trace.jump], 0.7)
            )
        noise = self.noise
        found.append(within("isotropic noise: captured", noise.captured, NOISE_CAPTURED, 0.05))
        found.append(within("isotropic noise: limit at its bits", noise.limit, 0.159, 0.01))
        return found

    def table(self) -> str:
        """Text for people."""
        rows: list[tuple[str, ...]] = [
            ("tracking", "seeds", "steady, least", "at the jump", "1 step later", "bits", "resets")
        ]
        for t in self.traces:
            steady = min(t.least[1 : t.jump] + t.least[t.jump + 2 :])
            rows.append(
                (t.way, f"{t.seeds}", f"{steady:.4f}", f"{t.mean[t.jump]:.3f}", f"{t.least[t.jump + 1]:.4f}", f"{t.bits:.3f}", f"{t.resets}")
            )  # fmt: skip
        text = "Fidelity over the best possible, 256 x 256, 4 directions that turn 0.05 rad a step and jump once\n"
        text += aligned(rows)
        n = self.noise
        text += (
            f"\nIsotropic noise, {n.side} x {n.side}, {DIMENSION} dimensions, {n.bits:.3f} bits a coordinate: captured {n.captured:.4f}, "
            f"best of that rank {n.best:.4f}, Gaussian limit {n.limit:.3f}\n"
        )
        text += f"\nGradients of the main job: part of the energy that {DIMENSION} dimensions bring\n"
        rows = [("layer", "phase", "bits", "best", "lowrank", "PowerSGD", "ecsq", "limit", "noise's best", "restarts")]
        for f in self.layers:
            rows.append(
                (f.layer, f.phase, f"{f.bits:.3f}", f"{f.best:.3f}", f"{f.ours:.3f}", f"{f.power:.3f}", f"{f.scalar:.3f}", f"{f.limit:.3f}", f"{f.noise:.3f}", f"{f.restarts:.2f}")
            )  # fmt: skip
        return text + aligned(rows)


def run(*, quick: bool, seed: int, on_progress: Tell | None = None) -> Findings:
    """Measures everything; `on_progress` gets the share that is done, and what is under way."""
    tell = on_progress or (lambda share, note: None)
    tell(0.0, "drifting subspaces")
    steps, jump, seeds = (16, 10, 2) if quick else (60, 40, 6)
    specs = [f"lowrank:{DIMENSION},factors=none", f"lowrank:{DIMENSION}"]
    traces = [_trace(spec, steps, jump, seeds, seed) for spec in specs]
    tell(0.15 if quick else 0.1, "PowerSGD's iteration")
    traces.append(_power_trace(steps, jump, seeds, seed))
    tell(0.25 if quick else 0.15, "noise")
    noise = _noise(4 if quick else 12, seed)
    settings = Settings(seed=seed, **(QUICK | {"steps": 40} if quick else {}))
    start = 0.4 if quick else 0.2
    layers = _layers(settings, 5 if quick else 10, lambda share, note: tell(start + (1 - start) * share, note))
    tell(1.0, "done")
    return Findings(traces, noise, layers)


def _generator(seed: int, which: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + which)


def _trace(spec: str, steps: int, jump: int, seeds: int, seed: int) -> Trace:
    ratios, bits, resets = [], 0.0, 0
    for which in range(seeds):
        mine = []
        with Follower([(256, 256)], spec, ranks=RANKS, seed=seed + which) as follower:
            for step, held in enumerate(drifting(steps, jump, _generator(seed, which), ranks=RANKS)):
                found = follower.step([[matrix] for matrix in held])
                mine.append(found.fidelity[0] / best_fidelity(torch.stack(held).mean(0), DIMENSION))
                bits += found.bits / (steps * seeds)
                resets += found.restarted[0] and step > 0
        ratios.append(mine)
    return _summed(spec, jump, ratios, bits, resets)


def _power_trace(steps: int, jump: int, seeds: int, seed: int) -> Trace:
    ratios = []
    for which in range(seeds):
        power = PowerIteration(256, DIMENSION, _generator(seed, 500 + which))
        mine = []
        for held in drifting(steps, jump, _generator(seed, which), ranks=RANKS):
            mean = torch.stack(held).mean(0)
            mine.append(fidelity_of(mean, power.step(mean)) / best_fidelity(mean, DIMENSION))
        ratios.append(mine)
    return _summed("PowerSGD", jump, ratios, 32 * DIMENSION * 2 / 256, 0)


def _summed(way: str, jump: int, ratios: list[list[float]], bits: float, resets: int) -> Trace:
    by_step = list(zip(*ratios, strict=True))
    mean = [sum(one) / len(one) for one in by_step]
    return Trace(way, jump, len(ratios), mean, [min(one) for one in by_step], bits, resets)


def _noise(steps: int, seed: int) -> Noise:
    """Fresh noise in every step, so that the basis kept from the last one is worth nothing; the first step, which iterates, is not counted."""
    generator = _generator(seed, 900)
    kept, bits, best = [], [], 0.0
    with Follower([(NOISE_SIDE, NOISE_SIDE)], f"lowrank:{DIMENSION},reset=0", ranks=RANKS, seed=seed) as follower:
        for step in range(steps + 1):
            matrix = torch.randn(NOISE_SIDE, NOISE_SIDE, generator=generator)
            found = follower.step([[matrix]] * RANKS)
            if step:
                kept.append(found.fidelity[0])
                bits.append(found.bits)
            else:
                best = best_fidelity(matrix, DIMENSION)
    mean_bits = sum(bits) / steps
    return Noise(NOISE_SIDE, sum(kept) / steps, best, mean_bits, fisher_fraction(mean_bits))


def _layers(settings: Settings, every: int, tell: Tell) -> list[LayerFound]:
    """Every `every`-th step is sampled; all are followed."""
    recording = Recording(settings, RANKS)
    layers = [layer for layer in recording.matrices if DIMENSION * sum(layer.shape) < layer.numel]
    shapes = [(layer.shape[0], layer.shape[1]) for layer in layers]
    generator = _generator(settings.seed, 901)
    powers = [PowerIteration(columns, DIMENSION, generator) for _, columns in shapes]
    noise = {shape: best_fidelity(torch.randn(shape, generator=generator), DIMENSION) for shape in set(shapes)}
    # Two factors in bf16, a norm and a flag.
    bits = [(16 * DIMENSION * (m + n) + 64) / (m * n) for m, n in shapes]
    scalars = [make_codec(f"ecsq:{max(b, 0.05):.6f}") for b in bits]
    sums = torch.zeros(len(PHASES), len(layers), 4, dtype=torch.float64)
    restarts = torch.zeros(len(PHASES), len(layers), dtype=torch.float64)
    sampled, all_steps = [0] * len(PHASES), [0] * len(PHASES)
    with Follower(shapes, f"lowrank:{DIMENSION}", ranks=RANKS, seed=settings.seed) as follower:
        for recorded in recording.steps():
            tell(recorded.step / settings.steps, f"training, step {recorded.step}, loss {recorded.loss:.2f}")
            found = follower.step([_matrices(gradient, layers) for gradient in recorded.ranks])
            means = _matrices(recorded.mean, layers)
            brought = [power.step(mean) for power, mean in zip(powers, means, strict=True)]
            phase = next(i for i, end in enumerate(_PHASE_ENDS) if recorded.step < end * settings.steps)
            all_steps[phase] += 1
            if recorded.step:  # the first step always begins so
                restarts[phase] += torch.tensor(found.restarted).double()
            if recorded.step % every != every - 1:
                continue
            sampled[phase] += 1
            key = Key(seed=settings.seed, step=recorded.step)
            for i, mean in enumerate(means):
                scalar = scalars[i].decode(scalars[i].encode(mean, key), key, out=torch.empty_like(mean))
                sums[phase, i] += torch.tensor(
                    [
                        best_fidelity(mean, DIMENSION),
                        found.fidelity[i],
                        fidelity_of(mean, brought[i]),
                        _captured(mean, scalar),
                    ]
                )
    results = []
    for i, layer in enumerate(layers):
        for phase, name in enumerate(PHASES):
            if sampled[phase]:
                best, ours, power, scalar_kept = (sums[phase, i] / sampled[phase]).tolist()
                rows, columns = shapes[i]
                results.append(
                    LayerFound(
                        layer.short, rows, columns, name, bits[i], fisher_fraction(bits[i]), noise[rows, columns],
                        best, ours, power, scalar_kept, float(restarts[phase, i]) / all_steps[phase],
                    )
                )  # fmt: skip
    return results


def _captured(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.double().flatten(), y.double().flatten()
    return captured(float(a @ b), float(a @ a), float(b @ b))


def _matrices(flat: torch.Tensor, layers: Sequence[Layer]) -> list[torch.Tensor]:
    return [flat[layer.start : layer.stop].view(layer.shape) for layer in layers]
