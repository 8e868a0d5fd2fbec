"""LocalSGD: periodic quantised averaging."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.collectives import FakeGroup
from commpress.errors import SpecError, StateError
from commpress.hooks._local_checkpoint import build_local_state, check_local_state, load_parts
from commpress.hooks._local_engine import COUNTS, Engine
from commpress.hooks._local_model import LocalModel
from commpress.hooks._local_settings import LocalSettings
from commpress.telemetry import Sink


@final
class LocalSGD:
    """Every rank trains alone for `every` steps; then the ranks average what they have moved, compressed::

        local = commpress.LocalSGD(model, codec="hadamard+lloyd:4", every=8)    # collective, before checkpoints are loaded
        for batch in data:
            ...backward()
            optimizer.step()
            local.step()            # True if a round ended in it
        local.synchronize()         # once more at the end, so that all ranks hold the same model
        local.close()

    ``with commpress.LocalSGD(...) as local:`` does the last two. In a round each rank encodes ``x - x_sync``, its parameters less those that
    all ranks agreed on last; the differences are averaged by the compressed all-reduce, ``x_sync += average`` (or an outer optimiser's
    step), and every rank goes on from x_sync, the same to the bit. Only trained floating-point (or complex) parameters take part; the
    optimiser, its state and gradients are never touched. docs/local-sgd.md has the mathematics.

    Args:
        model: a plain module, or DistributedDataParallel, whose gradient exchange is then switched off the way its ``no_sync`` does,
            from the end of `warmup_steps` on and until :meth:`close`.
        codec: spec or codec, equal on all ranks; "hadamard+lloyd:4" if neither it nor `bits` is given.
        every: local steps between two rounds, p.
        bits: mean payload bits per coordinate and phase, shared out between the layers' differences by the allocator.
        objective, plan_every: of the allocator, see :class:`HookState`; `plan_every` counts rounds.
        feedback: error feedback; None (default) means: if the codec is neither unbiased nor lossless.
        warmup_steps: of a DDP model: so many steps go with DDP's own exchange before local steps begin (post-local SGD).
        parts: only one of so many equal parts of the parameters is averaged in each round, in turn: 1/parts of the bytes.
        overlap: the exchange goes on during the next local step, and its result is applied at the end of that.
        outer_lr, outer_momentum, outer_nesterov: SGD that takes minus the average difference for a gradient of x_sync; DiLoCo uses .7, .9, True.
        outer: instead a function that makes any torch optimiser of a list of parameters.
        buffers: floating-point buffers (BatchNorm's statistics): "average" them exactly in every round, or leave them "local".
        nonfinite: a NaN or an infinity in one rank's difference makes the average non-finite on all ranks. "propagate" shows it in all
            ranks' parameters; "restore" puts all ranks back to x_sync. x_sync, residuals and the outer optimiser stay untouched by such a round.
        check: compare all parameters and buffers between the ranks at the start; by default those of rank 0 are sent to all.
        check_every: x_sync is compared between the ranks every so many rounds (0: never): costs a checksum.
        seed: of all randomness, equal on all ranks.
        telemetry: path of a JSONL file that rank 0 writes, or a :class:`commpress.telemetry.Sink`: a record for every round.
        telemetry_every: distortion by layer is measured every so many rounds (0: never).
        timeout: seconds that a wait for a peer may take; None means the process group's own timeout.
        process_group: of a plain module; None means DDP's group, or the default group.

    Memory for N fp32 coordinates: 8 N bytes for x_sync and differences; 4 N more with `overlap`; with feedback 8 (N + N / ranks); the outer
    optimiser's state (4 N with momentum).

    Raises:
        ModelError: there is nothing to average, the parameters are sharded, or `warmup_steps` are asked of a plain module.
        SpecError: an option is malformed.
        MismatchError: the ranks differ in version, options, parameters, or with `check` in values: on every rank, and naming the difference.
        PeerError: a rank did not take part within the timeout.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        codec: Any = None,
        *,
        every: int = 8,
        bits: float | None = None,
        objective: str | None = None,
        plan_every: int = 10,
        feedback: bool | None = None,
        warmup_steps: int = 0,
        parts: int = 1,
        overlap: bool = False,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        outer_nesterov: bool = True,
        outer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        buffers: str = "average",
        nonfinite: str = "propagate",
        check: bool = False,
        check_every: int = 0,
        seed: int = 0,
        telemetry: str | os.PathLike[str] | Sink | None = None,
        telemetry_every: int = 10,
        timeout: float | None = None,
        process_group: dist.ProcessGroup | FakeGroup | None = None,
    ) -> None:
        settings = LocalSettings(
            codec=codec, every=every, bits=bits, objective=objective, plan_every=plan_every, feedback=feedback,
            warmup_steps=warmup_steps, parts=parts, overlap=bool(overlap), outer_lr=outer_lr, outer_momentum=outer_momentum,
            outer_nesterov=bool(outer_nesterov), outer=outer, buffers=buffers, nonfinite=nonfinite, check=bool(check),
            check_every=check_every, seed=seed, telemetry=telemetry, telemetry_every=telemetry_every, timeout=timeout,
        )  # fmt: skip
        self._reset(settings)
        self.bind(model, process_group)

    def _reset(self, settings: LocalSettings) -> None:
        """As if never bound."""
        self._settings = settings
        self._codec = settings.used_codec()
        self._seed = settings.seed
        self._loaded: dict[str, Any] | None = None  # before binding
        self._engine: Engine | None = None
        self._error: Exception | None = None
        self._closed = False
        self._steps = 0
        self._rounds = 0
        self._since = 0  # local steps that no round has taken in yet
        self._differ = False  # whether the ranks' parameters may

    # -- binding

    def bind(self, model: torch.nn.Module, process_group: dist.ProcessGroup | FakeGroup | None = None) -> None:
        """Agrees with the other ranks and makes the process groups; the constructor does it, an unpickled LocalSGD is left to its user. Collective.

        Raises: see the class; StateError: bound before, or torch.distributed is not initialised.
        """
        self._check_usable()
        if self._engine is not None:
            raise StateError("this LocalSGD is already bound to a model; make one for each model")
        found = LocalModel(model)
        if self._settings.warmup_steps and found.ddp is None:
            raise SpecError("warmup_steps need a DistributedDataParallel model, whose gradient exchange they use")
        group = process_group or (found.ddp.process_group if found.ddp is not None else None)
        if group is None:
            if not dist.is_initialized():
                raise StateError("torch.distributed is not initialised: call init_process_group before")
            group = dist.group.WORLD
            assert group is not None
        try:
            with torch.no_grad():
                engine = Engine(self._settings, found, group, start=self._loaded is None)
                loaded, self._loaded = self._loaded, None
                if loaded is not None:
                    self._load(loaded, engine)
        except Exception as error:
            self._error = error
            raise
        self._engine = engine
        found.exchange_gradients(self._steps < self._settings.warmup_steps)

    # -- what callers may look at

    @property
    def codec(self) -> Any:
        """The codec in use."""
        return self._codec

    @property
    def feedback(self) -> bool:
        """Whether error feedback is on."""
        return self._settings.with_feedback

    @property
    def plan(self) -> Plan | None:
        """Every layer's bits; None without a bit budget."""
        return None if self._engine is None else self._engine.reduction.plan

    @property
    def outer(self) -> torch.optim.Optimizer | None:
        """The outer optimiser, for a learning-rate scheduler for example; None for plain averaging."""
        return None if self._engine is None else self._engine.outer.optimizer

    @property
    def rounds(self) -> int:
        """Rounds begun."""
        return self._rounds

    @property
    def local(self) -> bool:
        """Whether the ranks train alone: false during the warm-up."""
        return self._steps >= self._settings.warmup_steps

    @property
    def synchronized(self) -> dict[str, torch.Tensor]:
        """x_sync by parameter (or by piece of one, with `parts`): copies, fp32 or fp64, equal on all ranks."""
        return {} if self._engine is None else self._engine.replica.state()

    @property
    def counts(self) -> dict[str, int]:
        """Counted since construction, checkpoints included.

        rounds that have ended; nonfinite_rounds, restored_rounds; held: layers that did not move on any rank, so that their residuals
        waited; payload_bytes, header_bytes, wire_bytes (with framing), messages: sent by this rank, buffers included;
        compressed_numel: coordinates that it encoded lossily, over both phases; local_steps.
        """
        counts = dict.fromkeys(COUNTS, 0) if self._engine is None else dict(self._engine.counts)
        return {**counts, "local_steps": max(0, self._steps - self._settings.warmup_steps)}

    @property
    def error(self) -> Exception | None:
        """Why it refuses further use, or None."""
        return self._error or (self._engine.reduction.error if self._engine is not None else None)

    @property
    def dropped_records(self) -> int:
        """Telemetry records lost."""
        return 0 if self._engine is None else self._engine.sink.dropped

    # -- steps and rounds

    def step(self) -> bool:
        """To be called after every ``optimizer.step()``, on all ranks alike. Collective in a step that begins or ends a round.

        Returns:
            Whether the result of a round was applied to the model.

        Raises:
            StateError: closed, failed before, or the model has changed. MismatchError, PeerError: as in the class.
        """
        return self._guarded(self._step)

    def synchronize(self) -> bool:
        """Ends the round under way, and begins and ends another of all parameters if there were local steps since: then all ranks
        hold the same model. Collective: after the same number of steps on all ranks.

        Returns:
            Whether the result of a round was applied to the model.
        """
        return self._guarded(self._synchronize)

    def restore(self) -> None:
        """Puts this rank's parameters, and averaged buffers, back to what the last good rounds left: x_sync. Not collective, but meant
        for all ranks.

        Raises:
            StateError: a round is under way (`overlap`), or the warm-up is not over.
        """
        engine = self._bound()
        self._check_idle(engine)
        if not self.local:
            raise StateError("the warm-up is not over: there is nothing to go back to")
        with torch.no_grad():
            engine.restore()

    def _guarded(self, work: Callable[[Engine], bool]) -> bool:
        engine = self._bound()
        try:
            with torch.no_grad():
                return work(engine)
        except Exception as error:
            # An exchange under way may have failed first; that a later one is refused is no news.
            first = engine.reduction.error or error
            self._error = self._error or first
            engine.reduction.give_up(first)
            raise first from None

    def _step(self, engine: Engine) -> bool:
        settings = self._settings
        self._steps += 1
        if self._steps <= settings.warmup_steps:
            if self._steps == settings.warmup_steps:
                engine.end_warmup()
            return False
        self._since += 1
        self._differ = True
        ended = engine.pending is not None
        if ended:
            engine.finish()
        if (self._steps - settings.warmup_steps) % settings.every == 0:
            self._begin(engine, self._rounds % settings.parts if settings.parts > 1 else None)
            if not settings.overlap:
                engine.finish()
                ended = True
                self._differ = settings.parts > 1
        return ended

    def _synchronize(self, engine: Engine) -> bool:
        ended = engine.pending is not None
        if ended:
            engine.finish()
        if self._differ:
            self._begin(engine, None)
            engine.finish()
            self._differ = False
            ended = True
        return ended

    def _begin(self, engine: Engine, part: int | None) -> None:
        engine.begin(self._rounds, part, seed=self._seed, steps=self._steps, since=self._since)
        self._rounds += 1
        self._since = 0

    def _bound(self) -> Engine:
        self._check_usable()
        if self._engine is None:
            raise StateError("this LocalSGD was unpickled and has no model: call bind(model) first")
        return self._engine

    def _check_usable(self) -> None:
        if self._closed:
            raise StateError("this LocalSGD is closed")
        error = self.error
        if error is not None:
            raise StateError(f"this LocalSGD failed earlier and refuses further use: {error}") from error

    def _check_idle(self, engine: Engine) -> None:
        if engine.pending is not None:
            raise StateError("a round is under way: synchronize() ends it")

    # -- end and checkpoints

    def close(self) -> None:
        """Ends threads, process groups and telemetry, and gives a DDP model its gradient exchange back. Not collective; twice does no harm."""
        closed, self._closed = self._closed, True
        if not closed and self._engine is not None:
            self._engine.close()

    def __enter__(self) -> LocalSGD:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._closed:
                self.synchronize()
        finally:
            self.close()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside model and optimiser, for ``torch.load(weights_only=True)``. Each rank saves its own, and its own
        model: between rounds they differ. A round under way (`overlap`) is waited for, and its result saved.

        Raises:
            StateError: it has failed, or has no model and no state.
        """
        if self.error is not None:
            raise StateError(f"this LocalSGD failed earlier: {self.error}") from self.error
        engine = self._engine
        if engine is None:
            if self._loaded is None:
                raise StateError("this LocalSGD has no model: there is nothing to save")
            return self._loaded
        if engine.pending is not None:
            engine.wait()
        with torch.no_grad():
            return build_local_state(
                engine,
                codec=self._codec,
                settings=self._settings,
                numbers={
                    "seed": self._seed,
                    "step": self._rounds,
                    "local_steps": self._steps,
                    "since": self._since,
                    "differ": self._differ,
                },
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was saved, bitwise equal to the uninterrupted run if model and optimiser do. Every rank loads its own,
        or all load one made by :func:`commpress.hooks.merge_states`. Load the model after LocalSGD was made, not before.

        Raises:
            StateError: the state is of other settings, parameters, format or rank; or a round is under way.
        """
        self._check_usable()
        check_local_state(state, codec=self._codec, settings=self._settings)
        if self._engine is None:
            self._loaded = state
            return
        self._check_idle(self._engine)
        self._load(state, self._engine)
        self._engine.model.exchange_gradients(self._steps < self._settings.warmup_steps)

    def _load(self, state: dict[str, Any], engine: Engine) -> None:
        with torch.no_grad():
            pending = load_parts(state, engine)
        names = ("seed", "local_steps", "step", "since", "differ")
        self._seed, self._steps, self._rounds, self._since, self._differ = (state[name] for name in names)
        engine.resume(pending, self._steps)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._settings.config(), "state": self.state_dict()}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        """Unbound: :meth:`bind` brings it to a model, which must be as it was at that moment."""
        self._reset(LocalSettings(**pickled["config"]))
        self.load_state_dict(pickled["state"])

    def __repr__(self) -> str:
        settings = self._settings
        return f"LocalSGD(codec={str(self._codec)!r}, every={settings.every}, parts={settings.parts}, rounds={self._rounds})"
