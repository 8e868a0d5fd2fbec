"""Low-rank factors on real gloo ranks: as good as torch's, and every number counted and recorded."""

import pytest
from _lowrank_models import Shaped, backward, gradients_of, mean_of, wrapped
from _scenarios import STEPS, Scenarios, of
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel as DDP

import commpress
from commpress.telemetry import MemorySink

scenarios = Scenarios(__file__)
run_all = scenarios.run_all
two, _, _ = scenarios.fixtures()

SPECS = ["lowrank:2", "lowrank:2,factors=none", "lowrank:2,factors=hadamard+lloyd:8", "lowrank:3,iterations=0,reset=0"]


@scenarios.add
def powersgd(rank, world_size, folder):
    """One bucket, where torch's hook runs: the same data, dimension, and error feedback."""
    shapes, out = [(96, 80)], {}
    for name in ("ours", "torch"):
        ddp = DDP(Shaped(shapes))
        if name == "ours":
            state = commpress.register(ddp, "lowrank:2,factors=none,iterations=0,reset=0", timeout=30)
        else:
            settings = {
                "start_powerSGD_iter": 2,
                "min_compression_rate": 1,
                "warm_start": True,
                "orthogonalization_epsilon": 0,
            }
            ddp.register_comm_hook(
                powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, **settings), powerSGD_hook.powerSGD_hook
            )
        error = []
        for step in range(12):
            backward(ddp, gradients_of(rank, step, shapes))
            want = mean_of(step, world_size, shapes=shapes)[0]
            error.append(float((ddp.module.weights[0].grad - want).norm() / want.norm()))
        out[name] = error
        if name == "ours":
            state.close()
    return out


def test_as_near_the_mean_as_torchs_powersgd(two):
    for result in of(two, "powersgd"):
        ours, torchs = sum(result["ours"][6:]), sum(result["torch"][6:])
        assert 0 < ours <= 1.05 * torchs, (result["ours"], result["torch"])


# ---- telemetry


@scenarios.add
def telemetry(rank, world_size, folder):
    out = {}
    for spec in SPECS:
        sink = MemorySink()
        ddp, state = wrapped(spec, telemetry=sink, telemetry_every=2, check_every=4)
        for step in range(STEPS):
            backward(ddp, gradients_of(rank, step))
        state.close()
        out[spec] = [dict(record) for record in sink.records]
    return out


def test_every_number_that_is_sent_is_counted(two):
    """Without iterations a step's payload is known: r (m + n) + 2 for each matrix, the rest as it is, each number sent twice over two ranks."""
    results = of(two, "telemetry")
    matrices = [(60, 50), (40, 100), (120, 70), (64, 64)]
    exact = 300 + 15 + 1
    for spec, each in (("lowrank:2,factors=none", 4), ("lowrank:2", 2), ("lowrank:2,factors=hadamard+lloyd:8", 1)):
        factors = sum(2 * (m + n) for m, n in matrices)
        steady = [r for r in results[0][spec] if not any(m["restarted"] for m in r["low_rank"])]
        assert steady, "every step was a reset"
        step = steady[-1]["step"]
        sent = [result[spec][step] for result in results]
        total = sum(r["payload_bytes"] for r in sent)
        wanted = 2 * (4 * (exact + 8) + each * factors)
        assert total == wanted if each > 1 else wanted <= total < 1.3 * wanted, (spec, total, wanted)
        for r in sent:
            assert sum(layer["payload_bytes"] for layer in r["layers"]) == r["payload_bytes"]
            assert sum(bucket["payload_bytes"] for bucket in r["buckets"]) == r["payload_bytes"]
            assert r["header_bytes"] > 0 and r["wire_bytes"] > r["payload_bytes"] + r["header_bytes"]
            assert r["achieved_rate"] == pytest.approx(8 * total / 2 / r["numel"], rel=0.35)
        first = sum(result[spec][0]["payload_bytes"] for result in results)
        assert first > total, "the power iterations of the first step were not counted"
        assert all(m["restarted"] for m in results[0][spec][0]["low_rank"])


def test_distortion_and_fidelity_are_recorded(two):
    for result in of(two, "telemetry"):
        for spec in SPECS:
            record = result[spec][6]
            nmse = {layer["name"]: layer["nmse"] for layer in record["layers"]}
            fidelity = {m["name"]: m["fidelity"] for m in record["low_rank"]}
            assert set(fidelity) == {f"weights.{i}" for i in (0, 2, 5, 6)}
            assert all(0 < nmse[name] < 0.9 and 0.1 < fidelity[name] <= 1 for name in fidelity), (spec, nmse, fidelity)
            assert all(nmse[name] == 0 for name in set(nmse) - set(fidelity))
            assert "nmse" not in result[spec][7]["layers"][0]
