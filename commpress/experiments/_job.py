"""The main job: train a byte-level GPT on real text, data parallel, and measure what its communication costs.

What is measured, and how:

* held-out loss: a fixed sample of files that are never trained on, the same in every run
* interface bytes: the kernel's counters (`_traffic`), read around training alone: not around evaluation and probes
* claimed bytes: what the library says that it sent (its telemetry); for the baselines the textbook figure
* NMSE: squared error over energy of the gradient that the optimiser received, against the exact mean, at some steps
* replicas: the parameters' hash is compared between the ranks at the end

Everything but times, and bytes at the interface to a fraction of a percent, follows from the settings and the seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.errors import MismatchError
from commpress.experiments import _checkpoint
from commpress.experiments._claims import ClaimedBytes, framed_bytes
from commpress.experiments._model import ByteGPT, loss_of
from commpress.experiments._optimizers import packed, state_nbytes, with_muon
from commpress.experiments._records import RunWriter
from commpress.experiments._settings import Settings
from commpress.experiments._text import Corpus, standard_library
from commpress.experiments._traffic import Clock
from commpress.experiments._ways import LocalRounds, Way, is_peer, way

_GROUP_TIMEOUT = datetime.timedelta(seconds=120)
_EVALUATION_BATCH = 64
AGREEMENT_EVERY = 25  # steps between two comparisons of the ranks' gradients, in runs with telemetry
MOMENTS = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is: for progress bars."""

    step: int
    steps: int
    loss: float
    seconds_per_step: float


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The default gloo group of a process that torchrun started; without torchrun, a group of one rank."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=_GROUP_TIMEOUT)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        # Not a barrier: a rank that failed must not wait for the others.
        dist.destroy_process_group()


@final
class MainJob:
    """One run on one rank of the default process group. All ranks make it with equal settings.

    Args:
        settings: what to run.
        writer: where records go (rank 0 writes; other ranks are given a writer without a file).
        telemetry: file for the library's own telemetry, named on all ranks or on none; None for none. With it the ranks' gradients are compared every `AGREEMENT_EVERY` steps.
        on_progress: called after every step.
        corpus: the text, if it was read already.

    Raises:
        SpecError: the codec's spec is malformed.
        CorpusError: there is too little text.
        MismatchError: ranks differ in settings or text, or at the end in parameters.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        writer: RunWriter,
        telemetry: str | Path | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        corpus: Corpus | None = None,
    ) -> None:
        self.settings = settings
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.steps_done = 0
        self._first_step = 0  # of this process: steps before it were not counted by this clock
        self._writer = writer
        self._on_progress = on_progress or (lambda progress: None)
        self.corpus: Corpus = corpus or standard_library(settings.text)
        self._check_equal()
        torch.manual_seed(settings.seed)
        self.model = ByteGPT(settings.shape)
        self.numel = sum(p.numel() for p in self.model.parameters())
        self.way = self._way()
        self.ddp = self.way.wrap(self.model)
        self.way.agreement_every = 0 if telemetry is None else AGREEMENT_EVERY
        self.claims = ClaimedBytes(telemetry if self.rank == 0 else None)
        self.way.connect(self.ddp, seed=settings.seed, telemetry=self.claims)
        self.optimizer = self._optimizer()
        self._clock = Clock(settings.interface)
        self._step_seconds: list[float] = []
        self._nmse: list[float] = []
        whole = self.corpus.held_out_windows(settings.held_out_windows, settings.shape.context)
        self._held_out = whole
        self._curve_sample = whole[:: max(1, len(whole) // settings.curve_windows)][: settings.curve_windows]

    def run(self, *, save: Path | None = None, save_every: int = 0, stop_after: int | None = None) -> dict[str, Any]:
        """Trains from where the job is to the last step (or to `stop_after`) and returns the summary record.

        Args:
            save: folder for checkpoints, one file per rank.
            save_every: steps between them; 0 for one at the end.
        """
        settings = self.settings
        last = min(settings.steps, stop_after or settings.steps)
        if self.steps_done == 0:
            self._writer.write("run", **self._head())
            self._evaluate_for_curve()
        points = {round(settings.steps * i / settings.curve_points) for i in range(1, settings.curve_points + 1)}
        # With local steps no gradient is reduced that could be compared.
        probing = 0 if settings.every else settings.probes
        probes = {round(settings.steps * (i + 0.5) / probing) for i in range(probing)}
        self._clock.start()
        while self.steps_done < last:
            self.step(probe=self.steps_done in probes)
            if self.steps_done in points:
                self._clock.stop()
                self._evaluate_for_curve()
                self._clock.start()
            if save is not None and (self.steps_done == last or (save_every and self.steps_done % save_every == 0)):
                self._clock.stop()
                self.save(save)
                self._clock.start()
        self._clock.stop()
        summary = self._summary()
        if self.steps_done == settings.steps:
            self._writer.write("summary", step=self.steps_done, **summary)
        return summary

    def save(self, folder: Path) -> None:
        """Writes this rank's checkpoint."""
        _checkpoint.save(folder, self.rank, self.world_size, self.settings, self.steps_done, self._stateful())

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint of the same settings and world size.

        With a codec the rest of the run is bitwise equal to that of a run that was never interrupted. With a baseline
        it is on up to two ranks: a restarted DDP orders its buckets anew, and sums of three terms depend on the order.
        """
        self.steps_done = _checkpoint.load(folder, self.rank, self.world_size, self.settings, self._stateful())
        self._first_step = self.steps_done

    def close(self) -> None:
        """Ends the communication and the telemetry."""
        self.way.close()
        self.claims.close()

    def step(self, *, probe: bool = False) -> None:
        """One optimiser step. Collective.

        Args:
            probe: compare the gradient with the exact one, which takes an exchange of its own.
        """
        settings, shape = self.settings, self.settings.shape
        began = time.perf_counter()
        rate = settings.learning_rate * learning_rate_factor(self.steps_done, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = self.corpus.batch(
            settings.windows_per_rank * self.world_size, shape.context, seed=settings.seed, step=self.steps_done
        )
        mine = windows[self.rank :: self.world_size]
        exact = self._exact_gradient(mine) if probe else None
        with self.way.sync(self.ddp):
            loss = loss_of(self.ddp, mine)
            loss.backward()
        if exact is not None:
            self._compare(exact)
        clip = settings.clip if self.way.clips else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        self.way.after_step(last=self.steps_done == settings.steps)
        seconds = time.perf_counter() - began
        if not probe:
            self._step_seconds.append(seconds)
        record = {"loss_rank0": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        self._writer.write("step", step=self.steps_done, **record, **({} if probe else {"seconds": seconds}))
        self._on_progress(Progress(self.steps_done, settings.steps, loss.item(), _median(self._step_seconds)))

    # -- the parts of a run

    def _exact_gradient(self, windows: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of the gradients, without compression and without waking DDP."""
        self._clock.stop()
        local = torch.autograd.grad(loss_of(self.model, windows), list(self.model.parameters()))
        flat = torch.cat([g.flatten() for g in local])
        dist.all_reduce(flat)
        self._clock.start()
        return flat / self.world_size

    def _compare(self, exact: torch.Tensor) -> None:
        self._clock.stop()
        given = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        nmse = float((given - exact).double().square().sum() / exact.double().square().sum())
        self._nmse.append(nmse)
        self._writer.write("nmse", step=self.steps_done + 1, nmse=nmse)
        self._clock.start()

    def _evaluate_for_curve(self) -> None:
        loss = self._evaluate(self._curve_sample)
        traffic = self._clock.traffic.total()
        claimed = self._claimed_per_step() * (self.steps_done - self._first_step)
        self._writer.write(
            "evaluation",
            step=self.steps_done,
            held_out_loss_sample=loss,
            train_seconds=self._clock.seconds,
            interface_bytes_per_rank=traffic.per_rank,
            claimed_bytes_per_rank=claimed,
        )

    def _evaluate(self, windows: torch.Tensor) -> float:
        """Mean loss in nats per byte; the ranks share the work."""
        total = torch.zeros(2, dtype=torch.float64)
        for part in windows[self.rank :: self.world_size].split(_EVALUATION_BATCH):
            with torch.no_grad():
                total[0] += loss_of(self.model, part, reduction="sum").double()
            total[1] += part.shape[0] * (part.shape[1] - 1)
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def _claimed_per_step(self) -> float:
        """Wire bytes per step that this run's communication claims, mean over the ranks."""
        textbook = self.way.textbook_bytes([p.shape for p in self.model.parameters()], self.world_size)
        if self.way.state is None:
            return textbook
        names = ("payload_bytes", "header_bytes", "messages")
        mean = torch.tensor([self._sent_per_step(name) for name in names], dtype=torch.float64)
        dist.all_reduce(mean)
        payload, header, messages = (mean / self.world_size).tolist()
        return framed_bytes(payload + header, messages, self._clock.traffic.total().mss)

    def _sent_per_step(self, name: str) -> float:
        """Of this rank. A round of LocalSGD, which has one record, serves several steps."""
        if self.settings.every:
            return self.claims.total(name) / max(1, self.steps_done - self._first_step)
        return self.claims.per_step(name)

    def _summary(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        digests: list[Any] = [None] * self.world_size
        dist.all_gather_object(digests, digest.hexdigest())
        if len(set(digests)) > 1:
            raise MismatchError(f"after step {self.steps_done} the parameters differ between ranks: {digests}")
        traffic = self._clock.traffic.total()
        counted = max(1, self.steps_done - self._first_step)
        return {
            "held_out_loss": self._evaluate(self._held_out),
            "held_out_bytes": self._held_out.shape[0] * (self._held_out.shape[1] - 1),
            "unigram_loss": self.corpus.unigram_loss(),
            "interface": traffic.interface,
            "ranks_on_interface": traffic.ranks,
            "interface_bytes_per_step_per_rank": traffic.per_rank / counted,
            "claimed_bytes_per_step_per_rank": self._claimed_per_step(),
            "payload_bytes_per_step": self._sent_per_step("payload_bytes"),
            "header_bytes_per_step": self._sent_per_step("header_bytes"),
            "step_seconds": _median(self._step_seconds),
            "train_seconds": self._clock.seconds,
            "optimizer_state_bytes": state_nbytes(self.optimizer),
            "nmse": sum(self._nmse) / len(self._nmse) if self._nmse else None,
            "parameters_sha256": digests[0],
        }

    # -- making it

    def _way(self) -> Way:
        settings = self.settings
        if not settings.every:
            return way(settings.way)
        outer = {"outer_lr": settings.outer_lr, "outer_momentum": settings.outer_momentum}
        return LocalRounds(settings.way, every=settings.every, parts=settings.parts, **outer)

    def _optimizer(self) -> Any:
        settings, groups = self.settings, parameter_groups(self.model, self.settings)

        def adamw(groups: Any) -> torch.optim.Optimizer:
            return self.way.optimizer(self.ddp, groups, lr=settings.learning_rate, betas=MOMENTS, steps=settings.steps)

        muon = settings.optimizer == "muon"
        made: Any = with_muon(self.model, groups, adamw, lr=settings.learning_rate) if muon else adamw(groups)
        return made if settings.states is None else packed(made, settings.states, seed=settings.seed)

    def _stateful(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, **self.way.stateful()}

    def _check_equal(self) -> None:
        mine = {"settings": str(self.settings), "text": self.corpus.digest}
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine)
        for name in mine:
            if len({entry[name] for entry in found}) > 1:
                listed = "; ".join(f"rank {rank}: {entry[name]}" for rank, entry in enumerate(found))
                raise MismatchError(f"the ranks have different {name}: {listed}")

    def _head(self) -> dict[str, Any]:
        return {
            "codec": self.settings.codec,
            "baseline": is_peer(self.settings.codec),
            "settings": dataclasses.asdict(self.settings),
            "world_size": self.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": self.numel,
            "text": {
                "sha256": self.corpus.digest,
                "train_files": self.corpus.train_files,
                "train_bytes": len(self.corpus.train),
                "held_out_files": self.corpus.held_out_files,
                "held_out_bytes": len(self.corpus.held_out),
            },
        }


def parameter_groups(model: torch.nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """For the optimiser: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over a tenth of the steps, then a cosine down to a twentieth."""
    warm_up = max(1, steps // 10)
    past = max(0, step - warm_up) / max(1, steps - warm_up)
    return min(1.0, (step + 1) / warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * past)))


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
