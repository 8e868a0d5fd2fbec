"""The state of an FSDP2 model's compressed communication, as its user sees it."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import TYPE_CHECKING, Any, final

from commpress.allocation import Plan
from commpress.errors import StateError
from commpress.hooks._fsdp_exchange import ShardExchange
from commpress.hooks._handshake import library_version

if TYPE_CHECKING:
    from commpress.hooks._fsdp_torch import Unit

_log = logging.getLogger("commpress.hooks")
_FORMAT = 1


@final
class FSDPHookState:
    """State of one FSDP2 model's compressed communication on one rank. :func:`commpress.register` makes it; docs/fsdp2.md says what a step is and what everything costs.

    Memory on each rank beside the exchange's, for N coordinates of all modules before they are sharded, and M of the largest: with feedback 8 N bytes (and 8 N / ranks more, and a share of
    it, with replicas); 4 M if gradients are reduced in a dtype other than fp32; 4 M with `all_gather` of weights in another dtype.
    """

    def __init__(self, exchange: ShardExchange, units: list[Unit], *, feedback: bool, gather: Any) -> None:
        self._exchange = exchange
        self._units = units
        self._feedback = feedback
        self._gather = gather
        self._closed = False

    # -- what callers may look at

    @property
    def codec(self) -> Any:
        """The codec of gradients."""
        return self._exchange.codec

    @property
    def all_gather(self) -> Any:
        """The codec of weights, or None: they travel as they are."""
        return self._gather

    @property
    def plan(self) -> Plan | None:
        """The plan in use: every parameter's bits; None without a bit budget."""
        return None if self._exchange.planner is None else self._exchange.planner.plan

    @property
    def feedback(self) -> bool:
        """Whether error feedback is on."""
        return self._feedback

    @property
    def step(self) -> int:
        """Number of the next step: how many backward passes have been synchronised."""
        return self._exchange.step

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the `fully_shard` modules that are served, in the order of the model."""
        return tuple(unit.name for unit in self._units)

    @property
    def counts(self) -> dict[str, int]:
        """Counted since registration.

        steps; reduce_scatters, all_gathers, all_reduces: calls; compressed_numel: gradient coordinates that this rank encoded lossily; nonfinite_steps; plans: how often the plan changed;
        by_module: reduce-scatters in which parameters had no gradient, so that feedback and rate were the whole module's; exact_all_gathers: those that `all_gather` could
        not serve; abandoned_steps: backward passes that did not end.
        """
        return dict(self._exchange.ledger.counts)

    @property
    def traffic(self) -> dict[str, dict[str, int]]:
        """What this rank has sent since registration, for each of "reduce_scatter", "all_gather" and "all_reduce": calls, payload_bytes, header_bytes, messages, and wire_bytes, what its
        network interface counts (:func:`commpress.collectives.wire_nbytes`)."""
        return {leg: dataclasses.asdict(traffic) for leg, traffic in self._exchange.ledger.traffic.items()}

    @property
    def error(self) -> Exception | None:
        """Why the state refuses further use, or None."""
        return self._exchange.error

    @property
    def dropped_records(self) -> int:
        """Telemetry records lost."""
        return 0 if self._exchange.ledger.sink is None else self._exchange.ledger.sink.dropped

    # -- end and checkpoints

    def close(self) -> None:
        """Ends the threads, the process groups and the telemetry. A backward pass then raises StateError; weights travel as without commpress."""
        closed, self._closed = self._closed, True
        if not closed:
            for unit in self._units:
                unit.release()
            self._exchange.close()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs: numbers, text, lists and CPU tensors. All that differs between ranks is under one key, "rank R" with this rank's number R, so that what
        torch.distributed.checkpoint merges stays apart.

        Raises:
            StateError: a step is under way, or the state has failed or is closed.
        """
        self._check_usable("save")
        exchange = self._exchange
        return {
            "format": _FORMAT,
            "version": library_version(),
            **self._identity(),
            "seed": exchange.seed,
            "step": exchange.step,
            "world_size": exchange.world_size,
            "replicas": exchange.replicas,
            "calls": {unit.name: exchange.calls[unit.index] for unit in self._units},
            "allocator": {} if exchange.planner is None else exchange.planner.state_dict(),
            self._mine(): {} if exchange.residuals is None else exchange.residuals.saved(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was saved; each rank loads its own.

        With another number of ranks than the state was saved by, its residuals are dropped, with a warning.

        Raises:
            StateError: the state is of another codec, feedback setting, format, model or rank; or a step is under way.
        """
        self._check_usable("load")
        exchange = self._exchange
        for name, value in {"format": _FORMAT, **self._identity()}.items():
            if state.get(name) != value:
                raise StateError(f"the saved state has {name} {state.get(name)!r}, this one {value!r}")
        if set(state["calls"]) != set(self.modules):
            raise StateError(
                f"the saved state is of modules {sorted(state['calls'])}, the model has {sorted(self.modules)}"
            )
        saved = (state["world_size"], state["replicas"])
        same = saved == (exchange.world_size, exchange.replicas)
        if exchange.residuals is not None and same and self._mine() not in state:
            raise StateError(f"the saved state is not that of {self._mine()}: each rank saves and loads its own")
        if exchange.planner is not None:
            exchange.planner.load_state_dict(state["allocator"])
        if same and exchange.residuals is not None:
            exchange.residuals.load(state[self._mine()])
        elif exchange.residuals is not None:
            text = f"the state was saved by {saved[0]} x {saved[1]} ranks and is loaded by {exchange.world_size} x {exchange.replicas}: its error-feedback residuals are dropped"
            _log.warning(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        exchange.seed, exchange.step = state["seed"], state["step"]
        exchange.calls = [state["calls"][unit.name] for unit in self._units]

    def _mine(self) -> str:
        return f"rank {self._exchange.replica * self._exchange.world_size + self._exchange.rank}"

    def _identity(self) -> dict[str, Any]:
        return {"codec": str(self.codec), "all_gather": str(self._gather), "with_feedback": self._feedback}

    def _check_usable(self, what: str) -> None:
        if self._closed:
            raise StateError("this FSDPHookState is closed")
        if self.error is not None:
            raise StateError(f"this FSDPHookState failed earlier: {self.error}") from self.error
        if self._exchange.under_way:
            raise StateError(f"a step is under way: {what} between backward passes")

    def __repr__(self) -> str:
        return f"FSDPHookState(codec={str(self.codec)!r}, feedback={self._feedback}, step={self.step}, modules={len(self._units)})"
