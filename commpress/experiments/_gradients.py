"""Recorded gradients: what the ranks of the main job would exchange, step by step, made in one process.

Model, text, batches, optimiser and schedule are the main job's (`_job`), and the update is that of the exact mean: the same training as with ``--codec fp32`` on so many ranks, to rounding.
No process group is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from commpress.errors import SpecError
from commpress.experiments._job import MOMENTS, learning_rate_factor, parameter_groups
from commpress.experiments._model import ByteGPT, loss_of
from commpress.experiments._settings import Settings
from commpress.experiments._text import Corpus, standard_library


@dataclasses.dataclass(frozen=True)
class Layer:
    """One parameter in the flat gradient: coordinates [start, stop) of a tensor of this shape."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Coordinates."""
        return self.stop - self.start

    @property
    def short(self) -> str:
        """The name without what all layers have in common: ``blocks.0.up.weight`` -> ``block 0 up``."""
        return self.name.removesuffix(".weight").replace("blocks.", "block ").replace(".", " ").replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One step.

    Attributes:
        step: from 0 on.
        loss: mean over the ranks, nats per byte, before the update.
        ranks: gradient of each rank, flat fp32, the layers one behind the other.
    """

    step: int
    loss: float
    ranks: list[torch.Tensor]

    @property
    def mean(self) -> torch.Tensor:
        """The aggregate that an exact all-reduce would give, before clipping."""
        total = self.ranks[0].clone()
        for gradient in self.ranks[1:]:
            total += gradient
        return total / len(self.ranks)


class Recording:
    """The gradients of a training run.

    Args:
        settings: of the main job; `codec`, `bits` and `every` do not matter.
        ranks: how many to stand for, each with its own `windows_per_rank` sequences.
        corpus: the text, if it was read already.

    Raises:
        SpecError: ranks < 1. CorpusError: there is too little text.
    """

    def __init__(self, settings: Settings, ranks: int, *, corpus: Corpus | None = None) -> None:
        if ranks < 1:
            raise SpecError(f"a recording needs at least 1 rank, got {ranks}")
        self.settings, self.ranks = settings, ranks
        self._corpus = corpus or standard_library(settings.text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = ByteGPT(settings.shape)
        self.layers = _layers(self.model)

    @property
    def matrices(self) -> list[Layer]:
        """Layers of two dimensions."""
        return [layer for layer in self.layers if len(layer.shape) == 2]

    def steps(self) -> Iterator[Recorded]:
        """Trains, and gives the gradients of each step; may be used once."""
        settings, context = self.settings, self.settings.shape.context
        parameters = list(self.model.parameters())
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings), lr=settings.learning_rate, betas=MOMENTS, fused=True
        )
        for step in range(settings.steps):
            windows = self._corpus.batch(settings.windows_per_rank * self.ranks, context, seed=settings.seed, step=step)
            gradients, losses = [], []
            for rank in range(self.ranks):
                loss = loss_of(self.model, windows[rank :: self.ranks])
                gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
                losses.append(loss.item())
            found = Recorded(step, sum(losses) / self.ranks, gradients)
            yield found
            mean = found.mean
            for parameter, layer in zip(parameters, self.layers, strict=True):
                parameter.grad = mean[layer.start : layer.stop].view(layer.shape)
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(step, settings.steps)
            optimizer.step()


def _layers(model: torch.nn.Module) -> Sequence[Layer]:
    found, start = [], 0
    for name, parameter in model.named_parameters():
        found.append(Layer(name, start, start + parameter.numel(), tuple(parameter.shape)))
        start += parameter.numel()
    return found
