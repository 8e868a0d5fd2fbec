"""The stand-in for a device notices what would be wrong on one, and nothing else; and what the CUDA side says where there is none."""

import pytest
import torch
import torch.distributed as dist
from _device_stand_in import COMM, Race, StandIn

import commpress
from commpress import Key, ops
from commpress.collectives import CudaOps
from commpress.errors import StateError
from commpress.hooks._options import coding, on_device


def enqueue(device, x, *, wait=True, keep=True, back=True):
    """A copy made of x on the communication stream, which the caller then overwrites."""
    device.writes(x)
    ready = device.record()
    with device.communicating():
        if wait:
            device.wait(ready)
        if keep:
            device.keep(x)
        y = x * 2
        done = device.record()
    if back:
        device.wait(done)
    device.writes(x)
    return y


def test_what_is_right_passes():
    device = StandIn(None)
    x = torch.ones(100)
    for _ in range(3):
        y = enqueue(device, x)
        device.reads(y)
        device.next_step()
    device.verify()
    assert (COMM, "aten.mul.Tensor") in device.book.operations


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("wait", "aten.mul.Tensor on the communication stream reads what the caller's stream wrote"),
        ("back", "the caller on the caller's stream writes what the communication stream read"),
        ("keep", "uses memory of the caller's stream without record_stream"),
    ],
)
def test_what_is_left_out_is_noticed(left_out, says):
    device = StandIn(None)
    enqueue(device, torch.ones(100), **{left_out: False})
    with pytest.raises(Race, match=says):
        device.verify()


def test_ranges_that_do_not_meet_are_no_race():
    device = StandIn(None)
    x = torch.ones(100)
    device.writes(x[:50])
    with device.communicating():
        device.keep(x)
        x[50:].mul_(2)
    device.verify()
    with device.communicating():
        x[49:].mul_(2)
    with pytest.raises(Race, match="has not waited"):
        device.verify()


@pytest.mark.parametrize("call", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.nonzero()])
def test_a_wait_of_the_host_is_noticed(call):
    device = StandIn(None)
    with device.communicating():
        x = torch.ones(3)
        x += 1
        device.verify()
        call(x)
    with pytest.raises(Race, match="makes the host wait"):
        device.verify()


def test_what_was_fetched_is_read_a_step_later():
    device = StandIn(None)
    with device.communicating():
        fetched = device.fetch(torch.tensor([3, 4], dtype=torch.int32))
    device.next_step()
    assert fetched.read(1.0) == [3, 4]
    device.verify()
    with device.communicating():
        device.fetch(torch.zeros(1, dtype=torch.int32)).read(1.0)
    with pytest.raises(Race, match="in this very step"):
        device.verify()


def test_its_encode_and_decode_are_the_codecs():
    device, codec, key = StandIn(None), commpress.codec("hadamard+lloyd:2"), Key(seed=3, phase=1)
    x, report = torch.randn(5 * 4096 + 9), torch.zeros(2, dtype=torch.int32)
    parts = [(0, 4096), (3 * 4096, x.numel())]
    payloads = [codec.encode(x[start:stop], key, offset=start) for start, stop in parts]
    out = torch.full((sum(map(len, payloads)),), 205, dtype=torch.uint8)
    device.encode(codec, x, parts, key, out, 1.0)
    assert torch.equal(out, torch.cat(payloads))
    got = torch.full((4096,), 7.0)
    device.decode(codec, [payloads[0]], [key], got, 0, report)
    assert torch.equal(got, codec.decode(payloads[0], key, out=torch.empty(4096))) and report.tolist() == [0, 0]
    payloads[0][:4] = torch.tensor([0, 0, 0x80, 0x7F], dtype=torch.uint8)
    device.decode(codec, [payloads[0]], [key], got, 0, report)
    assert report[0] == 1


def test_noise_shaping_by_default_is_off_on_a_device_and_logged(caplog):
    chosen = coding("hadamard+lloyd:2", None, None, None, True, bits=None, objective=None, every=10, plan=None,
                    floor=0.9, predict=True, gamma=None, optimizer=None)  # fmt: skip
    assert chosen.shaping > 0
    with caplog.at_level("INFO", "commpress.hooks"):
        assert on_device(chosen, None, None, {}).shaping == 0
    assert "noise shaping is off" in caplog.text


def test_a_group_without_nccl_is_refused(monkeypatch, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        monkeypatch.setattr(ops, "cuda_built", lambda: True)
        with pytest.raises(
            StateError, match="no backend that exchanges CUDA tensors, only .*gloo.* 'cpu:gloo,cuda:nccl'"
        ):
            CudaOps(torch.device("cuda", 0), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def test_a_build_or_a_group_without_cuda_says_so():
    if ops.cuda_built():
        pytest.skip("this build has CUDA kernels")
    with pytest.raises(StateError, match="has no CUDA kernels"):
        CudaOps(torch.device("cuda", 0), None)
