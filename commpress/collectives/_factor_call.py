"""One reduction by factors that knows nothing of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from commpress.codecs import LowRankCodec
from commpress.collectives._accounting import Report
from commpress.collectives._factor_plan import FactorPlan, MatrixShape, worth
from commpress.collectives._passage import Passage, PassageObserver
from commpress.collectives.factor_reducer import FactorReducer
from commpress.lowrank import Tracker

if TYPE_CHECKING:
    from commpress.codecs import Key


@final
class _Call(PassageObserver):
    def __init__(self, matrices: int, done: Callable[[Report], None]) -> None:
        self._matrices = matrices
        self._done = done

    def prepare(self) -> Sequence[bool]:
        return [True] * self._matrices

    def complete(self, report: Report) -> None:
        self._done(report)

    def failed(self, error: Exception) -> None:
        pass


def reduce_by_factors(
    reducer: FactorReducer,
    flat: torch.Tensor,
    shapes: Sequence[MatrixShape],
    codec: LowRankCodec,
    key: Key,
    op: str,
    done: Callable[[Report], None],
    result: Any,
) -> torch.futures.Future[Any]:
    """Reduces `flat`, fp32, in place, from a cold start.

    Args:
        shapes: matrices in it, which go by factors where that is fewer numbers.
        done: called before the future is resolved.
        result: the future's value.
    """
    if flat.dtype != torch.float32:
        raise TypeError(f"factors are fp32, got {flat.dtype}")
    plan = FactorPlan(flat.numel(), [shape for shape in shapes if worth(shape, codec)], codec)
    trackers = [Tracker(s.rows, s.columns, codec.dimension, reset=float(codec.reset)) for s in plan.shapes]
    observer = _Call(len(plan.shapes), done)
    passage = Passage(
        plan,
        trackers,
        flat,
        flat,
        key,
        op=op,
        world_size=reducer.world_size,
        left_out=False,
        observer=observer,
    )
    future: torch.futures.Future[Any] = torch.futures.Future()

    def pass_on(done: torch.futures.Future[torch.Tensor]) -> None:
        try:
            done.value()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    reducer.submit(passage).add_done_callback(pass_on)
    return future
