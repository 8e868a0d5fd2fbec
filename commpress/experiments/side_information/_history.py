"""How well the past foretells an aggregate: recorded gradients, and sequences whose laws are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from commpress.allocation import prediction_errors
from commpress.experiments._gradients import Recording
from commpress.experiments._settings import Settings
from commpress.experiments.side_information._coding import statistics_from
from commpress.hooks._prediction import Predictor
from commpress.hooks._sums import Column

PHASES = ("0-10 %", "10-30 %", "30-60 %", "60-100 %")
_ENDS = (0.1, 0.3, 0.6, 1.0)
_FOLD = 10  # steps in a row that are fitted on, and as many that are tested on
VECTORS = "norms and biases"


@dataclasses.dataclass(frozen=True)
class Aggregates:
    """A training run of so many ranks, as products of its aggregates.

    Attributes:
        ranks: how many. layers: matrices by name, and all vectors as one.
        products: ``<g_t, g_(t-k)>`` at [t, layer, k], k from 0 to `window`; 0 where there is no g_(t-k).
        local: mean over the ranks of the energy of their own gradients, [t, layer].
    """

    ranks: int
    layers: list[str]
    products: np.ndarray
    local: np.ndarray

    @property
    def steps(self) -> int:
        """How many."""
        return len(self.products)

    @property
    def window(self) -> int:
        """The longest lag."""
        return self.products.shape[2] - 1

    def phase(self, which: int) -> slice:
        """The steps of a phase; the very first one has no past."""
        start = 1 if which == 0 else int(np.ceil(_ENDS[which - 1] * self.steps))
        return slice(start, int(np.ceil(_ENDS[which] * self.steps)))

    def correlation(self, steps: slice, lag: int = 1) -> np.ndarray:
        """Mean over steps of the cosine between aggregates `lag` apart, one for each layer."""
        t = np.arange(max(steps.start, lag), steps.stop)
        energy = self.products[:, :, 0]
        return np.asarray((self.products[t, :, lag] / np.sqrt(energy[t] * energy[t - lag])).mean(0))

    def prediction_errors(self, window: int) -> np.ndarray:
        """Energy that the best linear prediction from the last w = 1 to `window` aggregates leaves, over the energy itself: (layers, window).

        Coefficients are fitted on every other ten steps, and tested on those between: what is gained by chance counts as a loss.
        """
        t = np.arange(window, self.steps)
        fold = (t // _FOLD) % 2
        found = np.zeros((len(self.layers), window))
        for layer in range(len(self.layers)):
            grams = np.stack([self._gram(int(i), layer, window) for i in t])
            halves = [grams[fold == which].mean(0) for which in (0, 1)]
            found[layer] = np.mean([prediction_errors(halves[a], halves[1 - a]) for a in (0, 1)], axis=0)
        return found

    def shares(self) -> np.ndarray:
        """Part of the whole energy that is in each layer, mean over the steps."""
        energy = self.products[:, :, 0]
        return np.asarray((energy / energy.sum(1, keepdims=True)).mean(0))

    def predicted(self) -> tuple[np.ndarray, np.ndarray]:
        """What the hook's predictor makes of it if every step is sampled.

        Returns:
            For each step the part of the matrices and vectors that it would predict, and the energy before over after, of all that the ranks encode.
        """
        sizes = dict.fromkeys(self.layers, 1)
        predictor = Predictor(sizes)
        on, gain = np.zeros(self.steps), np.ones(self.steps)
        for t in range(1, self.steps):
            known = np.array([predictor.coefficients[name] for name in self.layers])
            local, power = self.local[t], self.products[t - 1, :, 0]
            after = local - 2 * known * self.products[t, :, 1] + known**2 * power
            on[t], gain[t] = (known != 0).mean(), local.sum() / after.sum()
            table = np.zeros((len(self.layers), len(Column)))
            # Sums over the ranks: of their energies, of their products with the previous mean, and of its energy once for each.
            table[:, Column.LOCAL] = self.ranks * local
            table[:, Column.CROSS] = self.ranks * self.products[t, :, 1]
            table[:, Column.PREVIOUS] = self.ranks * power
            predictor.observe(statistics_from(table, step=t, senders=self.ranks))
        return on, gain

    def _gram(self, t: int, layer: int, window: int) -> np.ndarray:
        """Products of g_t, ..., g_(t-window) with each other, over the energy of g_t."""
        found = np.zeros((window + 1, window + 1))
        for i in range(window + 1):
            found[i, i:] = self.products[t - i, layer, : window + 1 - i]
        found = found + np.triu(found, 1).T
        return found / max(found[0, 0], 1e-300)


def aggregates(settings: Settings, ranks: int, window: int, tell: Callable[[float, str], None]) -> Aggregates:
    """Records a run of the main job."""
    recording = Recording(settings, ranks)
    names = [layer.short for layer in recording.matrices] + [VECTORS]
    place = {layer.name: names.index(layer.short) if len(layer.shape) == 2 else len(names) - 1 for layer in recording.layers}  # fmt: skip
    products, local = np.zeros((settings.steps, len(names), window + 1)), np.zeros((settings.steps, len(names)))
    past: list[torch.Tensor] = []
    for recorded in recording.steps():
        tell(recorded.step / settings.steps, f"{ranks} ranks, step {recorded.step}, loss {recorded.loss:.2f}")
        past = [recorded.mean, *past[:window]]
        for layer in recording.layers:
            here = slice(layer.start, layer.stop)
            i = place[layer.name]
            for lag, earlier in enumerate(past):
                products[recorded.step, i, lag] += float(torch.dot(past[0][here], earlier[here]))
            for gradient in recorded.ranks:
                local[recorded.step, i] += float(gradient[here].square().sum()) / ranks
    return Aggregates(ranks, names, products, local)


def long_memory(d: float, steps: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Fractional noise, ARFIMA(0, d, 0) with 0 < d < 1/2, float64 (rows, steps): the error of the best prediction from w steps falls like d^2/w to its floor."""
    k = torch.arange(1, 4 * steps, dtype=torch.float64)
    weights = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod((k - 1 + d) / k, 0)])
    noise = torch.randn(rows, 5 * steps, generator=generator, dtype=torch.float64)
    size = 16 * steps
    shaped = torch.fft.irfft(torch.fft.rfft(noise, size) * torch.fft.rfft(weights, size), size)
    return shaped[:, 4 * steps : 5 * steps]


def moving_average(theta: float, steps: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """z_t + theta z_(t-1), float64 (rows, steps): the error of the best prediction from w steps falls like theta^(2w) to its floor."""
    noise = torch.randn(rows, steps + 1, generator=generator, dtype=torch.float64)
    return noise[:, 1:] + theta * noise[:, :-1]


def sequence_errors(x: torch.Tensor, window: int) -> np.ndarray:
    """Energy that the best linear prediction from the last 1 to `window` values leaves, over the energy; x: stationary, (rows, steps)."""
    steps = x.shape[1]
    lags = [float((x[:, lag:] * x[:, : steps - lag]).mean()) for lag in range(window + 1)]
    index = np.abs(np.arange(window + 1)[:, None] - np.arange(window + 1))
    gram = np.array(lags)[index] / lags[0]
    return prediction_errors(gram, gram)
