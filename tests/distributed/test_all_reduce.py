"""all_reduce between real processes over gloo: exact results for every dtype and shape, and what happens when ranks disagree, die or hang."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from _launch import launch
from _stand_ins import Grid, Raw, expected

from commpress import collectives
from commpress.codecs import Key
from commpress.errors import CommpressError, MismatchError, StateError, TensorError


def data(size: int, numel: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator, dtype=dtype) for _ in range(size)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


# ---- results


def exact_worker(rank: int, size: int) -> int:
    """Every dtype, shape and operation against a computation in one process; returns the number of comparisons."""
    checked = 0
    step = 0
    for numel in (0, 1, 4095, 4096 * size + 1, 50_001):
        for op in ("mean", "sum"):
            step += 1
            key = Key(seed=11, step=step, tensor=2)
            inputs = data(size, numel, step)
            want = inputs[rank] if size == 1 else expected(inputs, Grid(), Grid(), key, op)[0]
            tensor = inputs[rank].clone()
            assert collectives.all_reduce(tensor, Grid(), op=op, key=key) is tensor
            assert same(tensor, want), (numel, op)
            checked += 1
    # dtypes, with 50 001 elements, as a 3 x 16 667 matrix
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        step += 1
        key = Key(step=step)
        inputs = [x.to(dtype) for x in data(size, 50_001, step)]
        wide = expected([x.float() for x in inputs], Grid(), Grid(), key)[0] if size > 1 else inputs[rank].float()
        tensor = inputs[rank].clone().view(3, -1)
        collectives.all_reduce(tensor, Grid(), key=key)
        assert same(tensor, wide.to(dtype).view(3, -1)), dtype
        checked += 1
    # 16-bit: divided before it is narrowed
    tensor = torch.full((10,), 60_000.0, dtype=torch.float16)
    collectives.all_reduce(tensor, Grid(step=32.0), key=Key())
    assert (tensor.float() - 60_000).abs().max() <= 64
    # fp64 that stays fp64
    inputs = data(size, 9_000, 1, torch.float64)
    tensor = inputs[rank].clone()
    collectives.all_reduce(tensor, Raw(), key=Key())
    assert torch.allclose(tensor, torch.stack(inputs).mean(0), rtol=1e-14, atol=1e-15)
    # strides, a guard around the view, complex, conjugate, zero dimensions, gradient required
    for make in (strided, complex_contiguous, complex_conjugate):
        step += 1
        key = Key(step=step)
        tensors = [make(x) for x in data(size, 48_000, step)]
        reals = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
        flat = [r.reshape(-1).clone() for r in reals]
        want = expected(flat, Grid(), Grid(), key)[0] if size > 1 else flat[rank]
        collectives.all_reduce(tensors[rank], Grid(), key=key)
        got = torch.view_as_real(tensors[rank].resolve_conj()) if tensors[rank].is_complex() else tensors[rank]
        assert same(got.reshape(-1), want), make
        checked += 1
    base = torch.full((100, 101), float("nan"))
    base[:, ::2] = rank
    collectives.all_reduce(base[:, ::2], Raw(), op="sum", key=Key())
    assert (base[:, ::2] == (sum(range(size)) if size > 1 else rank)).all() and base[:, 1::2].isnan().all()
    scalar = torch.tensor(float(rank))
    collectives.all_reduce(scalar, Raw(), op="sum", key=Key())
    assert scalar.item() == sum(range(size))
    leaf = torch.ones(5, requires_grad=True)
    collectives.all_reduce(leaf, Raw(), key=Key())
    assert leaf.requires_grad
    # asynchronous, several at once
    inputs = [data(size, 20_000 + i, i) for i in range(6)]
    tensors = [inputs[i][rank].clone() for i in range(6)]
    futures = [collectives.all_reduce(t, Grid(), key=Key(tensor=i), async_op=True) for i, t in enumerate(tensors)]
    for i, future in enumerate(futures):
        assert future.wait() is tensors[i] or future.wait().data_ptr() == tensors[i].data_ptr()
        assert same(tensors[i], expected(inputs[i], Grid(), Grid(), Key(tensor=i))[0] if size > 1 else inputs[i][rank])
    report = collectives.last_report()
    assert (
        report is not None
        and report.world_size == size
        and (size == 1 or report.bytes_payload1 + report.bytes_payload2 > 0)
    )
    # refused
    for bad in (
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, dtype=torch.bool),
        torch.ones(4).to_sparse(),
        torch.ones(4, device="meta"),
    ):
        try:
            collectives.all_reduce(bad, Grid(), key=Key())
        except TensorError:
            checked += 1
        else:
            raise AssertionError(f"{bad} was accepted")
    # a NaN on one rank
    tensor = torch.ones(30_000)
    if rank == size - 1:
        tensor[12_345] = float("nan")
    collectives.all_reduce(tensor, Grid(), key=Key())
    assert not torch.isfinite(tensor[12_345]) and collectives.last_report().nonfinite
    return checked


def strided(x: torch.Tensor) -> torch.Tensor:
    return x.view(120, 400).t()


def complex_contiguous(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.view(-1, 2).clone())


def complex_conjugate(x: torch.Tensor) -> torch.Tensor:
    return complex_contiguous(x).view(200, 120).t().conj()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_exact_results(size):
    for result in launch(__file__, "exact_worker", size, timeout=90):
        assert result.ok().value == 20


def groups_worker(rank: int, size: int) -> None:
    """Two overlapping subgroups and the default group, used alternately, and closed and used again."""
    low, high = dist.new_group([0, 1]), dist.new_group([1, 2])
    for step in range(3):
        for group, ranks in ((low, [0, 1]), (None, [0, 1, 2]), (high, [1, 2])):
            if rank in ranks:
                inputs = data(3, 12_000, step)
                tensor = inputs[rank].clone()
                collectives.all_reduce(tensor, Grid(), group=group, key=Key(step=step))
                assert same(tensor, expected([inputs[r] for r in ranks], Grid(), Grid(), Key(step=step))[0])
            elif group is not None:
                try:
                    collectives.all_reduce(torch.ones(3), Grid(), group=group, key=Key())
                except StateError:
                    continue
                raise AssertionError("a rank outside the group was let in")
        collectives.close()
        collectives.close()
    before = threading.active_count()
    collectives.close(low if rank < 2 else high)
    assert threading.active_count() == before - 2


def test_groups():
    for result in launch(__file__, "groups_worker", 3, timeout=60):
        result.ok()


# ---- failures


def disagree_worker(rank: int, size: int, what: str) -> str:
    odd = rank == 1
    if what == "version" and odd:
        from commpress.collectives import _greeting

        _greeting.__version__ = "0.0.7"
    codec = Grid("grid:2" if what == "codec" and odd else "grid:4")
    tensor = torch.ones(5_001 if what == "numel" and odd else 5_000)
    try:
        collectives.all_reduce(tensor, codec, key=Key(step=6 + (what == "order" and odd)))
    except MismatchError as problem:
        text = str(problem)
    else:
        raise AssertionError("no error")
    with pytest.raises(StateError, match="an earlier submission failed"):
        collectives.all_reduce(tensor, codec, key=Key())
    if what == "codec":  # and after a close on all ranks it works again
        collectives.close()
        collectives.all_reduce(tensor, Grid(), key=Key())
        assert (tensor == 1).all()
        raise MismatchError(text)  # leaves with the reducer open and an exception
    return text


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("codec", ["codec", "rank 1: 'grid:2'", "'grid:4'"]),
        ("numel", ["number of elements", "rank 1: 5001"]),
        ("version", ["commpress version", "rank 1: '0.0.7'"]),
        ("order", ["step (", "rank 1: 7"]),
    ],
)
def test_disagreement_is_named_on_every_rank(what, words):
    for result in launch(__file__, "disagree_worker", 2, args={"what": what}, timeout=60, group_timeout=10):
        text = result.failed("MismatchError").message if what == "codec" else result.ok().value
        for word in words:
            assert word in text


def killed_worker(rank: int, size: int, how: str) -> str:
    """The last rank is killed (or stops, or leaves with an exception) in the middle of step 2."""
    victim = rank == size - 1

    class Fatal(Grid):
        def encode(self, x, key, **options):
            if victim and key.step == 2 and key.phase == 1:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "sleep":
                    time.sleep(6)
                if how == "raise":
                    raise FloatingPointError("no good")
            return super().encode(x, key, **options)

    started = time.monotonic()
    try:
        for step in range(5):
            if victim and how == "leave" and step == 2:
                raise SystemError("user code failed")
            tensor = torch.ones(600_000)
            started = time.monotonic()
            collectives.all_reduce(tensor, Fatal(), key=Key(step=step))
            assert step < 2, "the fault did not fire"
    except CommpressError as problem:
        raise type(problem)(f"{problem} after {time.monotonic() - started:.1f} s") from problem
    return "no error"


@pytest.mark.parametrize(("how", "size"), [("kill", 3), ("sleep", 3), ("raise", 2), ("leave", 2)])
def test_a_rank_that_fails_in_the_middle(how, size):
    results = launch(__file__, "killed_worker", size, args={"how": how}, timeout=60, group_timeout=3)
    victim = results[-1]
    if how == "kill":
        assert victim.returncode == -signal.SIGKILL
    elif how == "leave":
        assert victim.failed("SystemError").message == "user code failed"
    elif how == "raise":
        assert "no good" in victim.failed("StateError").message
    else:
        victim.failed("PeerError")
    for result in results[:-1]:
        message = result.failed("PeerError").message
        assert "step 2" in message
        if how == "raise":
            assert "rank 1 failed" in message and "no good" in message
        if how == "leave":
            assert "rank 1 is gone" in message
    if how in ("kill", "sleep"):
        assert any(f"rank {size - 1}" in result.message for result in results[:-1])


def exit_worker(rank: int, size: int, how: str) -> None:
    tensor = torch.ones(50_000)
    collectives.all_reduce(tensor, Grid(), key=Key())
    if how == "destroy first":
        dist.destroy_process_group()
        collectives.close()
    elif how == "in flight":
        collectives.all_reduce(tensor, Grid(), key=Key(), async_op=True)
    elif how == "one waits for ever" and rank == 0:
        threading.Thread(target=lambda: collectives.all_reduce(tensor, Grid(), key=Key()), daemon=True).start()
        time.sleep(0.5)


@pytest.mark.parametrize("how", ["destroy first", "in flight", "one waits for ever", "nothing"])
def test_exit_is_clean(how):
    for result in launch(
        __file__, "exit_worker", 2, args={"how": how}, timeout=60, destroy=how not in ("in flight", "nothing")
    ):
        result.ok()
        assert "terminate" not in result.stderr and "Fatal" not in result.stderr
