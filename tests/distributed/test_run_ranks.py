"""Unmodified DDP scripts under `commpress run`, on real ranks that torchrun starts."""

import pathlib
import re

import pytest
from _torchrun import torchrun

from commpress.telemetry import read_jsonl

PLAIN = '''
"""A DDP script that has never heard of commpress."""
import argparse, atexit, pickle, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

parser = argparse.ArgumentParser()
parser.add_argument("--bits", type=int)
parser.add_argument("--steps", type=int, default=12)
args = parser.parse_args()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
    def forward(self, x):
        return self.layers(x)

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DDP(Net())
optimizer = torch.optim.SGD(model.parameters(), 0.05)
data = torch.Generator().manual_seed(1 + rank)
if rank == 0:
    print(sys.argv, __name__, sys.path[0])
    print(sys.modules["__main__"].__dict__ is globals(), type(pickle.loads(pickle.dumps(model.module))) is Net)
    with torch.no_grad():  # evaluation on one rank alone
        print(f"before {model(torch.ones(1, 64)).square().sum().item():.4f}")
    atexit.register(lambda: print("at exit:", pickle.loads(pickle.dumps(Net))))
for step in range(args.steps):
    x = torch.randn(16, 64, generator=data)
    with model.no_sync():
        model(x[:8]).square().mean().backward()
    loss = model(x[8:]).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    total = sum(p.double().sum() for p in model.parameters())
    if rank == 0:
        print(f"step {step}: loss {loss.item():.6f}, sum {total.item():.12f}", flush=True)
dist.destroy_process_group()
sys.exit(0)
'''

ZOO = """
import copy, io, sys
import torch, torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP

def net(seed, outputs=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, outputs))

class First(nn.Sequential): pass
class Second(nn.Sequential): pass
class Own(nn.Sequential): pass
class BuiltIn(nn.Sequential): pass
class Idle(nn.Sequential): pass
class Compiled(nn.Sequential): pass
class Registered(nn.Sequential): pass
class Small(nn.Sequential): pass

def own_hook(state, bucket):
    state.append(bucket.index())
    return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

dist.init_process_group("gloo")
rank = dist.get_rank()
first, second, own, builtin, idle, small = (DDP(kind(net(i))) for i, kind in enumerate((First, Second, Own, BuiltIn, Idle, Small)))
calls = []
own.register_comm_hook(calls, own_hook)
builtin._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
compiled = torch.compile(DDP(Compiled(net(6))), backend="aot_eager")
import commpress
registered = DDP(Registered(net(7)))
state = commpress.register(registered, "uniform:8")
idle(torch.ones(1, 64))  # a forward pass, and no training: evaluation that forgot no_grad
del idle
models = [first, second, own, builtin, compiled, registered]
data = torch.Generator().manual_seed(rank)
for step in range(4):
    for model in models:
        model.zero_grad()
        model(torch.randn(8, 64, generator=data)).square().mean().backward()
for model in models:
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    other = flat.clone()
    dist.broadcast(other, 0)
    assert torch.equal(flat, other), "gradients differ"
assert calls and state.counts["compressed_numel"] > 0
sys.stdout.write(f"done {rank}\\n")
sys.stdout.flush()
state.close()
if "--raise" in sys.argv and rank == 1:
    raise OSError("rank 1 has had enough")
if "--raise" in sys.argv:
    dist.barrier()  # rank 1 does not come
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(PLAIN)
    return path


@pytest.fixture(scope="module")
def usual(plain) -> str:
    done = torchrun([str(plain), "--bits", "7"])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 16
    return done.stdout


def test_a_lossless_codec_changes_no_character_of_the_output(plain, usual) -> None:
    done = torchrun(["-m", "commpress", "run", "--codec", "none", "--quiet", str(plain), "--bits", "7"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == usual
    # Said all the same:
    assert "Net: none on 2 ranks, 12 steps of 37,384 coordinates: 32.000 bits a coordinate" in done.stderr
    assert "nothing was compressed, as this codec is lossless" in done.stderr


def test_an_unmodified_script_is_compressed_and_prints_its_usual_output(plain, usual, tmp_path) -> None:
    words = ["-m", "commpress.run", "--bits", "2", "--check-every", "5"]
    records = tmp_path / "run.jsonl"
    done = torchrun([*words, "--telemetry", str(records), str(plain), "--bits", "7"])
    assert done.returncode == 0, done.stderr
    # The script prints losses and sums of weights, which are all that compression may change.
    number = re.compile(r"(?<=loss |.sum )[-+.\d]+")
    assert number.sub("#", done.stdout) == number.sub("#", usual)
    before, after = ([float(n) for n in re.findall(r"loss ([.\d]+)", text)] for text in (usual, done.stdout))
    assert before[0] == after[0] and before != after, "nothing was lossy"
    assert abs(after[-1] / before[-1] - 1) < 0.2
    steps = [record for record in read_jsonl(records) if record["kind"] == "step"]
    assert len(steps) == 12
    assert all(record["compressed_numel"] > 0 and record["achieved_rate"] <= 2.0 for record in steps)
    (line,) = re.findall(r"^commpress run: (.*)$", done.stderr, flags=re.MULTILINE)
    assert line.startswith("Net: hadamard+lloyd:2 on 2 ranks, 12 steps of 37,384 coordinates: ")
    assert f"{sum(record['wire_bytes'] for record in steps) / 1e6:.3g} MB in all" in line


def test_every_model_gets_its_state_and_each_exception_is_said(tmp_path) -> None:
    script = tmp_path / "zoo.py"
    script.write_text(ZOO)
    records = tmp_path / "run.jsonl"
    done = torchrun(
        ["-m", "commpress.run", "--codec", "hadamard+lloyd:4", "--telemetry", str(records), str(script)], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "done 0", "done 1"]
    said = sorted(re.findall(r"^commpress run: (.*)$", done.stderr, flags=re.MULTILINE))
    sent = "hadamard+lloyd:4 on 2 ranks, 4 steps of 7,005 coordinates"
    want = {
        "First": sent,
        "Second (model 2)": sent,
        "Own (model 3)": "the script registers a communication hook of its own, own_hook, and DDP takes one only",
        "BuiltIn (model 4)": "the script registers a communication hook of its own, BuiltinCommHookType.ALLREDUCE, and DDP takes one only",
        "Idle (model 5)": "hadamard+lloyd:4, no step",
        "Small (model 6)": "no forward pass of training went through it",
        "Compiled (model 7)": sent,
        "Registered (model 8)": "the script registers a communication hook of its own, ddp_hook, and DDP takes one only",
    }
    assert [line.split(":")[0] for line in said] == sorted(want)
    for line in said:
        name, _, text = line.partition(": ")
        assert text.startswith(want[name]), line
    # Idle had no step, and so has no record.
    files = {path.name: len(read_jsonl(path)) for path in tmp_path.glob("run*.jsonl")}
    assert files == {"run.jsonl": 4, "run.2.jsonl": 4, "run.7.jsonl": 4}


def test_an_exception_on_one_rank_ends_the_job_with_its_own_words(tmp_path) -> None:
    script = tmp_path / "zoo.py"
    script.write_text(ZOO)
    done = torchrun(["-m", "commpress.run", str(script), "--raise"])
    assert done.returncode == 1
    assert re.search(r"^\[rank1\]: OSError: rank 1 has had enough$", done.stderr, flags=re.MULTILINE), done.stderr
    assert f'File "{script}"' in done.stderr
    assert "_execute.py" not in done.stderr
