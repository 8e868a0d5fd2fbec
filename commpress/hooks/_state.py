"""HookState: everything that a DDP communication hook keeps between buckets and steps."""

from __future__ import annotations

import os
from typing import Any, final

import torch
import torch.distributed as dist

from commpress.allocation import Plan
from commpress.cluster import Calibration
from commpress.collectives import DeviceOps, Hierarchical, NodeMap
from commpress.errors import StateError
from commpress.feedback import Layout
from commpress.hooks._auto import AutoPlan
from commpress.hooks._checkpoint import PARTS, build_state, check_state
from commpress.hooks._exchanges import device_of, make_reduction
from commpress.hooks._futures import promise, raise_in_backward
from commpress.hooks._layout import Layouts, LayoutTracker, Repacking, layout_of, names_of
from commpress.hooks._options import check_numbers, coding, identity_of, levels, on_device
from commpress.hooks._reduction import COUNTS, Reduction
from commpress.hooks._step import Step
from commpress.hooks._worker_agreement import Agreement
from commpress.telemetry import Sink


@final
class HookState:
    """State of :func:`commpress.ddp_hook` for one DDP model on one rank.

    `commpress.register` makes one and binds it at once. The explicit form binds it, collectively, in the first backward pass:

        state = commpress.HookState(codec="hadamard+lloyd:2")
        ddp.register_comm_hook(state, commpress.ddp_hook)

    Args:
        codec: spec or codec, or "auto", equal on all ranks; "hadamard+lloyd:2" if neither it nor `bits` is given. With `bits`: the family whose rates are chosen ("hadamard+lloyd",
            below 0.75 bits "hadamard+bitshift,length=8"), or "lowrank".
        bits: mean payload bits per coordinate and phase, to be shared out between the layers by the allocator, which looks at the gradients (`counts["plans"]` says how often it
            changed its mind, `plan` what it decided).
        objective: of the allocator: "unbiased" (default for an unbiased codec), "mse" (default with feedback), "fisher", or "weighted"; see docs/allocation.md.
        gamma: of "weighted": a layer weighs s^-gamma, s its mean square.
        optimizer: an Adam whose second moments weigh the layers' errors, with any objective.
        plan: a :class:`commpress.allocation.Plan`, or the path of a saved one, that is kept; needs `bits`.
        plan_every: steps between two plans.
        plan_floor: no layer gets less than this share of `bits`; 0 lets the objective alone decide.
        predict: with `bits`, code a layer as the difference from the previous mean wherever that was measured to pay.
        process_group: the group that DDP uses; None means the default group.
        shaping: 0, 0.25, 0.5, 0.75 or 1: where that was measured to pay a coordinate's error gets a variance proportional to this power of its usual square (docs/shaping.md). None
            (default): 0.75, or 1 below 0.75 bits, for codecs that gain and without feedback, else 0.
        feedback: error feedback; None (default) means: if the codec is neither unbiased nor lossless. With feedback the codec is replaced by its ``for_feedback()``.
        seed: of all randomness, equal on all ranks.
        telemetry: path of a JSONL file that rank 0 writes, or a :class:`commpress.telemetry.Sink`, or None.
        telemetry_every: distortion by layer is measured every so many steps (0: never); every step has its record.
        check_every: parameters are compared between the ranks every so many steps (0: never): costs a checksum.
        agreement_every: the ranks' gradients are compared every so many steps (0: never): the cosine of every two, from 260 bytes of each rank and a pass over its gradient;
            `agreement` has the last, telemetry all, and the log names a rank that stands out, or some layer of its by its size (docs/cosine.md).
        timeout: seconds that a wait for a peer may take; None means the process group's own timeout.
        hierarchical: None (default): exact sums inside each node, compressed between nodes, where the launcher started at least two nodes of two ranks or more, equally many on
            each; else flat, as always with "lowrank" and "auto". False, True, or the ranks of each node: see :func:`commpress.all_reduce` and docs/topology.md.
        calibration, trials: of "auto": what `commpress.collectives.probe` found (None: it is probed at registration), and whether the cost model's pick is confirmed by timed
            steps.

    With ``codec="auto"`` each bucket travels compressed, or by torch's own all-reduce where compression would lose (docs/cost-model.md); `auto` says which and why.

    Memory for N coordinates, beside the exchange's: with feedback 8 (N + N / ranks) bytes; 4 N if not fp32; 4 N with
    `predict`; up to 8 N with `shaping`; as much as the gradients in the few steps that are repacked (`counts`).

    Raises:
        SpecError: the codec's spec or an option is malformed.
    """

    def __init__(
        self,
        codec: Any = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        bits: float | None = None,
        objective: str | None = None,
        plan: Any = None,
        plan_every: int = 10,
        plan_floor: float = 0.9,
        gamma: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        predict: bool = True,
        shaping: float | None = None,
        feedback: bool | None = None,
        seed: int = 0,
        telemetry: str | os.PathLike[str] | Sink | None = None,
        telemetry_every: int = 100,
        check_every: int = 0,
        agreement_every: int = 0,
        timeout: float | None = None,
        hierarchical: Hierarchical = None,
        calibration: Calibration | None = None,
        trials: bool = True,
    ) -> None:
        every = {"telemetry_every": telemetry_every, "check_every": check_every, "agreement_every": agreement_every}
        self._every = every
        check_numbers(timeout, seed, **every)
        self._coding = coding(
            codec, feedback, shaping, calibration, trials, bits=bits, objective=objective, every=plan_every, plan=plan,
            floor=plan_floor, predict=predict, gamma=gamma, optimizer=optimizer,
        )  # fmt: skip
        self._codec = self._coding.codec
        self._asked_shaping = shaping
        self._hierarchical = levels(hierarchical, self._coding)
        self._seed = seed
        self._telemetry = telemetry
        self._timeout = timeout
        self._process_group = process_group
        self._reset()

    def _reset(self) -> None:
        """As if never bound."""
        self._exchange: Reduction | None = None
        self._error: Exception | None = None
        self._closed = False
        self._step = 0
        self._layouts = LayoutTracker()
        self._loaded: dict[str, Any] = {}  # before binding
        self._names: dict[int, str] = {}
        self._parameters: dict[str, torch.Tensor] = {}
        self._repacked = 0
        # Of the step under way:
        self._seen: list[tuple[Layout, torch.Tensor]] = []
        self._current: Step | None = None
        self._submitted: list[torch.futures.Future[Any]] = []
        self._waiting: list[torch.futures.Future[Any]] = []

    # -- what callers may look at

    @property
    def codec(self) -> Any:
        """The codec in use."""
        return self._codec

    @property
    def plan(self) -> Plan | None:
        """The plan in use: every layer's bits; None without a bit budget, or before binding."""
        return None if self._exchange is None else self._exchange.plan

    @property
    def nodes(self) -> NodeMap | None:
        """The nodes of an exchange in two levels; None if it is flat, or before binding."""
        return None if self._exchange is None else self._exchange.nodes

    @property
    def auto(self) -> AutoPlan | None:
        """What ``codec="auto"`` chose for each bucket, and why; None without it, or before the first step."""
        return None if self._exchange is None else self._exchange.auto

    @property
    def agreement(self) -> Agreement | None:
        """How the ranks' gradients compared when they last were; None without `agreement_every`, or before."""
        return None if self._exchange is None or self._exchange.monitor is None else self._exchange.monitor.last

    @property
    def feedback(self) -> bool:
        """Whether error feedback is on."""
        return self._coding.feedback

    @property
    def shaping(self) -> float:
        """Exponent of noise shaping; 0: none."""
        return self._coding.shaping

    @property
    def step(self) -> int:
        """Number of the next step: how many backward passes have been synchronised."""
        return self._step

    @property
    def counts(self) -> dict[str, int]:
        """Counted since binding.

        steps, buckets; compressed_numel: coordinates that this rank encoded lossily, over both phases; nonfinite_steps; held: layers whose residual was kept because no
        rank had a gradient; repacked_steps: DDP's layout was not the one in use; plans: how often the plan changed; resets: how often a matrix that travels as low-rank
        factors began anew.
        """
        counts = dict.fromkeys(COUNTS, 0) if self._exchange is None else self._exchange.counts
        return {**counts, "repacked_steps": self._repacked}

    @property
    def error(self) -> Exception | None:
        """Why the state refuses further use, or None."""
        return self._error or (self._exchange.error if self._exchange is not None else None)

    @property
    def dropped_records(self) -> int:
        """Telemetry records lost."""
        return 0 if self._exchange is None or self._exchange.sink is None else self._exchange.sink.dropped

    # -- binding

    def bind(
        self,
        parameters: dict[str, torch.Tensor],
        group: dist.ProcessGroup | None,
        device: DeviceOps | None = None,
    ) -> None:
        """Agrees with the other ranks and makes the two process groups. Collective.

        Args:
            parameters: name to tensor, all that DDP reduces, in the order of the model.
            group: DDP's process group; None means the one given before, or the default group.
            device: what reduces them on their device; None: as they are on the CPU, or on one CUDA device.

        Raises:
            StateError: bound before, or closed, or torch.distributed is not initialised.
            MismatchError: the ranks differ in version, codec, options or parameters; on every rank, named.
            PeerError: a rank did not take part within the timeout.
        """
        self._check_usable()
        if self._exchange is not None:
            raise StateError("this HookState is already bound to a model; make one for each model")
        if not dist.is_initialized():
            raise StateError("torch.distributed is not initialised: call init_process_group before")
        group = group or self._process_group or dist.group.WORLD
        assert group is not None
        device = device or device_of(parameters, group)
        if device is not None:
            self._coding = on_device(self._coding, self._asked_shaping, self._hierarchical, self._every)
        identity = identity_of(self._coding, self._seed, self._every["check_every"], group.size(), parameters)
        identity |= {"hierarchical": str(self._hierarchical), "agreement_every": self._every["agreement_every"]}
        self._parameters = parameters
        self._names = {id(p): name for name, p in parameters.items()}
        try:
            self._exchange = make_reduction(
                self._coding, parameters, group, identity, hierarchical=self._hierarchical, timeout=self._timeout,
                telemetry=self._telemetry, **self._every, seed=self._seed, device=device,
            )  # fmt: skip
        except Exception as error:
            self._error = error
            raise
        self._load_into_exchange()

    # -- the hook

    def reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Any]:
        """Starts the reduction of one of DDP's buckets and returns its future, which gives the bucket's buffer."""
        if self._seen and self.error is not None:
            raise self.error  # an earlier bucket of this step failed meanwhile: not news of an earlier step
        self._check_usable()
        with torch.no_grad():
            try:
                return self._reduce(bucket)
            except Exception as error:
                # An exchange under way may have failed first; that a later one is refused is no news.
                first = (self._exchange.error if self._exchange is not None else None) or error
                self._error = self._error or first
                if self._exchange is not None:
                    self._exchange.give_up(first)
                raise first from None

    def _reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Any]:
        index = bucket.index()
        if index != len(self._seen):
            raise StateError(
                f"expected bucket {len(self._seen)} of step {self._step}, got bucket {index}: "
                "did an earlier backward pass fail, or is the state shared by two models?"
            )
        buffer = bucket.buffer()
        names = names_of(bucket, self._names, self._parameters, bound=self._exchange is not None)
        self._seen.append((layout_of(bucket, buffer, names), buffer))
        if index == 0:
            self._submitted, self._waiting, self._current = [], [], None
            if self._exchange is not None and self._layouts.current and not self._layouts.fresh_process:
                self._current = self._exchange.open_step(self._step, self._layouts.current)
        if self._exchange is not None:
            self._exchange.look(self._step, self._seen[-1:], last=bucket.is_last())
        future = self._submit_at_once(index, buffer)
        if future is None:
            future = promise(buffer)
            self._waiting.append(future)
        if bucket.is_last():
            self._end_of_buckets()
        if buffer.is_cuda or (self._exchange is not None and self._exchange.on_device):
            return future  # of the buffer: what went wrong with this step is raised by the next
        # C++ does not see an exception set by Python: value() in a callback raises it again.
        return future.then(lambda done: (done.value(), buffer)[1])

    def _submit_at_once(self, index: int, buffer: torch.Tensor) -> torch.futures.Future[Any] | None:
        """Submits a bucket whose layout is the one in use; None if it must wait for the others."""
        layouts = self._layouts.current or ()
        if self._current is None or len(self._submitted) != index or index >= len(layouts):
            return None
        return self._submit(index, buffer) if self._seen[index][0] == layouts[index] else None

    def _submit(self, index: int, buffer: torch.Tensor) -> torch.futures.Future[Any]:
        assert self._exchange is not None and self._current is not None and self._layouts.current is not None
        layout = self._layouts.current[index]
        self._submitted.append(self._exchange.submit(self._current, index, layout, buffer, self._seed))
        return self._submitted[-1]

    def _end_of_buckets(self) -> None:
        """All buckets of the step have been presented."""
        presented = tuple(layout for layout, _ in self._seen)
        if self._exchange is None:
            self.bind(self._parameters, None)
            assert self._exchange is not None
            self._exchange.look(self._step, self._seen, last=True)
        if self._layouts.current is None:
            self._layouts.current = presented
        if self._layouts.fresh_process:
            self._layouts.check(presented)
            assert self._exchange is not None
            self._current = self._exchange.open_step(self._step, self._layouts.current)
        if self._waiting:
            self._submit_rest(self._layouts.current, presented)
        self._layouts.presented(self._step, presented)
        self._step += 1
        self._seen = []
        if not self._exchange.on_device:
            raise_in_backward(self._submitted, lambda: self.error)

    def _submit_rest(self, layouts: Layouts, presented: Layouts) -> None:
        """Submits what had to wait, repacked into the layout in use if that differs."""
        first, unpack = len(self._submitted), None
        buffers = [buffer for _, buffer in self._seen[first:]]
        if layouts[first:] != presented[first:]:
            repacking = Repacking(layouts[first:], presented[first:], buffers)
            buffers, unpack = repacking.flats, repacking.unpack
            self._repacked += 1
        futures = [self._submit(first + i, buffer) for i, buffer in enumerate(buffers)]
        assert self._exchange is not None
        self._exchange.deliver(self._waiting, futures, unpack, [buffer for _, buffer in self._seen[first:]])

    def _check_usable(self) -> None:
        if self._closed:
            raise StateError("this HookState is closed")
        error = self.error
        if error is not None:
            raise StateError(f"this HookState failed earlier and refuses further use: {error}") from error

    def _check_between(self, what: str) -> None:
        if self._seen:
            raise StateError(f"a step is under way: {what} between backward passes")

    # -- end and checkpoints

    def close(self) -> None:
        """Ends the threads, the process groups and the telemetry. The hook then raises StateError."""
        closed, self._closed = self._closed, True
        if not closed and self._exchange is not None:
            self._exchange.close()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs, for ``torch.load(weights_only=True)``. Each rank saves its own (they may differ). Raises StateError: a step is under way, or the state has failed."""
        if self.error is not None:
            raise StateError(f"this HookState failed earlier: {self.error}") from self.error
        self._check_between("save")
        return build_state(
            codec=self._coding.name, with_feedback=self._coding.feedback, seed=self._seed, step=self._step,
            layouts=self._layouts.state(), loaded=self._loaded, reduction=self._exchange,
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was saved. Every rank loads its own, or all load one made by :func:`merge_states`.

        With another number of ranks than the state was saved by, its residuals are dropped, with a warning.

        Raises:
            StateError: the state is of another codec, feedback setting, format or rank; or a step is under way.
        """
        self._check_usable()
        self._check_between("load")
        check_state(state, codec=self._coding.name, with_feedback=self._coding.feedback)
        self._loaded = {name: state.get(name) for name in PARTS}
        self._load_into_exchange()
        self._seed, self._step = state["seed"], state["step"]
        self._layouts.load(state["layouts"])

    def _load_into_exchange(self) -> None:
        """What was loaded waits here until the hook is bound."""
        if self._exchange is not None:
            self._exchange.load(self._loaded)
            self._loaded = {}

    def __getstate__(self) -> dict[str, Any]:
        config = {
            **self._coding.arguments(),
            "seed": self._seed,
            "telemetry": None if isinstance(self._telemetry, Sink) else self._telemetry,
            **self._every,
            "timeout": self._timeout,
            "hierarchical": self._hierarchical,
        }
        return {"config": config, "state": self.state_dict()}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        """An unbound state without process group that goes on where the pickled one was."""
        self.__init__(**pickled["config"])
        self.load_state_dict(pickled["state"])

    def __repr__(self) -> str:
        return f"HookState(codec={str(self._codec)!r}, feedback={self._coding.feedback}, step={self._step})"
