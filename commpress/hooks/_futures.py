"""Futures between DDP and the exchange: one for several, and errors that reach the caller as the types that they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch


def promise(buffer: torch.Tensor) -> torch.futures.Future[Any]:
    """A future that the buffer's device allows to be done while the device is still at work."""
    return torch.futures.Future(devices=[buffer.device]) if buffer.is_cuda else torch.futures.Future()


def settle(
    waiting: Sequence[torch.futures.Future[Any]],
    futures: Sequence[torch.futures.Future[Any]],
    finish: Callable[[], None] | None,
) -> None:
    """Ends all `waiting` once all `futures` are done: with None, or with the first error of `futures` or `finish`.

    Args:
        finish: what is left to do in between, if anything, without gradients.
    """

    def done(_: Any) -> None:
        try:
            for future in futures:
                future.value()
            if finish is not None:
                with torch.no_grad():
                    finish()
        except Exception as error:
            for one in waiting:
                one.set_exception(error)
        else:
            for one in waiting:
                one.set_result(None)

    torch.futures.collect_all(futures).add_done_callback(done)


def raise_in_backward(
    futures: Sequence[torch.futures.Future[Any]], first_error: Callable[[], Exception | None]
) -> None:
    """Lets `backward()` raise what went wrong as the typed error that it is: DDP would make a RuntimeError of it.

    DDP queues its own wait for the futures at the end of the backward pass; this one is queued just before it.

    Args:
        first_error: asked when a future fails: what went wrong before it did, or None.
    """

    def wait() -> None:
        for future in futures:
            try:
                future.wait()
            except Exception as error:
                raise (first_error() or error) from None

    # Without a backward pass (a rank that has joined shadows the others') there is nothing to queue on.
    with contextlib.suppress(RuntimeError):
        torch.autograd.Variable._execution_engine.queue_callback(wait)
