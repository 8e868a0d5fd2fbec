"""The all-reduce on a device's streams, on real gloo ranks with a stand-in for the device: the CPU path's bits, no race, no wait; and what is left out is noticed."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from _device_stand_in import COMM, Race, StandIn
from _launch import launch

import commpress
from commpress import Key, collectives
from commpress.codecs import LayeredCodec
from commpress.collectives._all_reduce import make_device_reducer
from commpress.collectives._device_call import DeviceCalls
from commpress.errors import CommpressError, MismatchError, PeerError, SpecError, StateError, TensorError, WireError

SPECS = ("none", "cast:bf16", "uniform:4", "lloyd:3", "hadamard+lloyd:2", "hadamard+lloyd:4.5", "uniform:1.5")
SPECS += ("mxfp8", "topk:0.1", "bitshift:1,length=8", "hadamard+ecsq:2", "trellis:4,substream=8")
SIZES = (0, 1, 4097, 40_001, 100_000)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def data(size: int, numel: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator) for _ in range(size)]


class Calls:
    """all_reduce on a stand-in, as a caller uses it."""

    def __init__(self, drop: tuple[str, int] | None = None, timeout: float = 60.0) -> None:
        group = dist.group.WORLD
        self.ops = StandIn(group, drop)
        self.calls = DeviceCalls(self.ops, lambda: make_device_reducer(self.ops, group, timeout))

    def __call__(self, tensor, codec, *, op="mean", key, async_op=False):
        codec = commpress.codec(codec) if isinstance(codec, str) else codec
        tensors = tensor if isinstance(tensor, list) else [tensor]
        self.ops.writes(*tensors)  # the backward pass
        result = self.calls.all_reduce(tensor, codec, op=op, key=key, async_op=async_op, hierarchical=None)
        if async_op:
            result.wait()
            self.ops.wait_for_futures()
        self.ops.reads(*tensors)  # the optimizer
        self.ops.next_step()
        return result


def layered(numel: int) -> LayeredCodec:
    specs = ("hadamard+lloyd:2", "none", "hadamard+lloyd:3.3", "uniform:4", "cast:bf16", "lloyd:2")
    each = numel // len(specs)
    sizes = [each] * (len(specs) - 1) + [numel - each * (len(specs) - 1)]
    return LayeredCodec([(n, commpress.codec(s)) for n, s in zip(sizes, specs, strict=True)])


def results(rank: int, size: int) -> dict:
    calls, step, lossy = Calls(), 0, 0
    for spec in (*SPECS, "layers"):
        for numel in SIZES:
            for op in ("mean", "sum") if numel > 4097 else ("mean",):
                step += 1
                codec = layered(numel) if spec == "layers" else commpress.codec(spec)
                key = Key(seed=7, step=step, tensor=3)
                x = data(size, numel, step)[rank]
                if numel > 50_000 and rank == size - 1:
                    x[70_000] = float("nan") if op == "sum" else float("inf")
                want = collectives.all_reduce(x.clone(), codec, op=op, key=key)
                got = calls(x.clone(), codec, op=op, key=key, async_op=step % 2 == 0)
                got = got.value() if step % 2 == 0 else got
                assert same(got, want), (spec, numel, op)
                lossy += int(size > 1 and numel > 1 and not same(want, sum(data(size, numel, step))))
                calls.calls.settle()
                report = calls.calls.report
                assert report.nonfinite == (not bool(torch.isfinite(want).all()))
                known = collectives.last_report()
                assert (report.bytes_payload1, report.bytes_payload2) == (known.bytes_payload1, known.bytes_payload2)
    # Other dtypes, shapes, strides, and several as one.
    for make in (
        lambda x: x.bfloat16(),
        lambda x: x.half().view(3, -1),
        lambda x: x.view(2, -1).t(),
        lambda x: torch.complex(x[0::2], x[1::2]),
        lambda x: torch.complex(x[0::2], x[1::2]).conj(),
        lambda x: [x[:5000].clone(), x[5000:9001].double(), x[9001:].bfloat16()],
    ):
        step += 1
        key = Key(step=step)
        a, b = (make(data(size, 18_000, step)[rank]) for _ in range(2))
        collectives.all_reduce(a, "uniform:4", key=key)
        calls(b, "uniform:4", key=key)
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)
    big = torch.full((9,), 60_000.0, dtype=torch.float16)  # the sum leaves fp16's range
    calls(big, "none", op="sum", key=Key())
    calls.calls.settle()
    assert calls.calls.report.nonfinite == (size > 1)
    calls.ops.verify()
    before = calls.ops.calls["fetch"]
    calls.calls.close()
    assert before == calls.ops.calls["fetch"]
    return {"lossy": lossy, "sent": calls.ops.sent_nbytes, "operations": calls.ops.book.operations[:40]}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_bits_are_the_cpu_paths(size):
    for rank, result in enumerate(launch(__file__, "results", size, timeout=150)):
        value = result.ok().value
        assert (value["lossy"] > 30) == (size > 1) and (value["sent"] > 0) == (size > 1), rank
        if size > 1:
            names = [what for stream, what in value["operations"] if stream == COMM and "::" not in what]
            assert "encode" in names and "all_to_all" in names and "all_gather" in names


def omissions(rank: int, size: int) -> dict:
    """Leaves out every single wait, record_stream and completion of two calls, one at a time."""

    def run(drop: tuple[str, int] | None) -> tuple[dict, str]:
        calls = Calls(drop)
        x = data(size, 9000, 1)[rank]
        calls(x, "hadamard+lloyd:2", key=Key(step=1))
        calls(x.bfloat16(), "uniform:4", key=Key(step=2), async_op=True)
        calls(x.clone(), "hadamard+lloyd:2", key=Key(step=3))
        counts = dict(calls.ops.calls)
        calls.calls.close()
        try:
            calls.ops.verify()
        except Race as race:
            return counts, str(race)
        return counts, ""

    counts, wrong = run(None)
    assert wrong == ""
    caught = {}
    for kind in ("wait", "keep", "complete"):
        for number in range(counts[kind]):
            caught[f"{kind} {number}"] = run((kind, number))[1]
    return caught


@pytest.mark.parametrize("size", [2, 3])
def test_every_wait_and_every_record_stream_is_needed(size):
    for result in launch(__file__, "omissions", size, timeout=120):
        caught = result.ok().value
        assert len(caught) == 5 + 3 + 1
        for what, found in caught.items():
            expected = "without record_stream" if what.startswith("keep") else "has not waited"
            assert expected in found, (what, found)


def faults(rank: int, size: int) -> list:
    found = []

    def error(call) -> str:
        try:
            call()
        except CommpressError as problem:
            return f"{type(problem).__name__}: {problem}"
        return ""

    x = torch.randn(50_000)
    calls = Calls()
    found.append(error(lambda: calls(x, "uniform:4" if rank else "uniform:3", key=Key())))
    found.append(error(lambda: calls(x, "uniform:4", key=Key())))
    calls = Calls()
    calls(x, "uniform:4", key=Key(step=1))
    found.append(error(lambda: calls(x, "uniform:4", key=Key(step=2 + rank))))
    calls = Calls()
    if rank == 1:

        def spoil(received: torch.Tensor) -> None:
            received[:4] = torch.tensor([0, 0, 0x80, 0x7F], dtype=torch.uint8)

        calls.ops.corrupt = spoil
    found.append(error(lambda: calls(x, "hadamard+lloyd:4.5", key=Key(step=1))))  # known a step later
    found.append(error(lambda: calls(x, "hadamard+lloyd:4.5", key=Key(step=1))))
    calls = Calls()
    calls.ops.corrupt = spoil if rank == 1 else None
    calls(x, "hadamard+lloyd:4.5", key=Key(step=1))
    found.append(error(calls.calls.close))
    for bad, spec in ((x.double(), "none"), (x, "randk:0.1"), (torch.ones(2, device="meta"), "uniform:4")):
        found.append(error(lambda bad=bad, spec=spec: calls(bad, spec, key=Key())))
    calls = Calls()
    calls.ops.is_capturing = True
    found.append(error(lambda: calls(x, "uniform:4", key=Key())))
    calls = Calls(timeout=3.0)
    calls(x, "uniform:4", key=Key())
    if rank == 0:
        calls.calls._reducer.fail(StateError("something here"))
        found.append("failed here")
    else:
        found.append(error(lambda: calls(x, "uniform:4", key=Key(step=1))))
    return found


def test_what_goes_wrong_is_said_on_every_rank():
    all_found = [result.ok().value for result in launch(__file__, "faults", 3, timeout=120)]
    for rank, found in enumerate(all_found):
        assert found[0].startswith(MismatchError.__name__) and "codec (rank 0: uniform:3" in found[0]
        assert found[1].startswith(StateError.__name__) and "ranks disagree on codec" in found[1]
        assert found[2].startswith(MismatchError.__name__) and "key step (rank 0: 2; rank 1: 3" in found[2]
        assert found[3] == "", "what the device found is known a step later"
        assert found[4].startswith(WireError.__name__) and "rank 1 met an invalid payload from rank" in found[4]
        assert found[5].startswith(WireError.__name__), "close reads what the last call left"
        assert found[6].startswith(TensorError.__name__) and "fp32" in found[6]
        assert found[7].startswith(SpecError.__name__) and "no kernels" in found[7]
        assert found[8].startswith(TensorError.__name__) and "one device" in found[8]
        assert found[9].startswith(StateError.__name__) and "graph" in found[9]
        assert rank == 0 or found[10].startswith(PeerError.__name__), found[10]
