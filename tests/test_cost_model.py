"""The cost model: formulas against small cases worked out by hand, and the command that uses them."""

import argparse
import dataclasses
import json
import math

import pytest
from _calibrations import calibration

import commpress
from commpress import cluster, collectives
from commpress.cli import main
from commpress.cli._plan import _rate
from commpress.cluster import Calibration, CodecCost, Network, break_even, exact, flat, hierarchical
from commpress.cluster._cost import BLOCK, MESSAGE_NBYTES, MOST_CHUNKS, chunk_count, on_line
from commpress.cluster._overlap import AHEAD, Exchange, exchange_seconds
from commpress.cluster._scaling import ring_seconds, tree_seconds
from commpress.collectives import _layout, _message, _pipeline
from commpress.errors import SpecError, StateError

ALONE = Exchange(
    chunks=1, header=0.5, latency=0.25, encode=1.0, reduce=2.0, decode=4.0, bytes1=30.0, bytes2=50.0, link=10.0,
    socket=0.0, shared=False,
)  # fmt: skip


# -- the timetable of one exchange


def test_one_chunk_is_a_chain() -> None:
    assert exchange_seconds(ALONE) == pytest.approx(1.0 + 3.0 + 0.25 + 2.0 + 5.0 + 0.25 + 4.0)


def test_a_slow_header_holds_up_what_was_encoded() -> None:
    assert exchange_seconds(dataclasses.replace(ALONE, header=7.0)) == pytest.approx(7.0 + 14.5)


@pytest.mark.parametrize("chunks", [2, 3, 8, 64])
def test_a_slow_link_is_never_idle(chunks: int) -> None:
    idle = dataclasses.replace(ALONE, chunks=chunks, header=0.0, latency=0.0, encode=0.0, reduce=0.0, decode=0.0)
    assert exchange_seconds(idle) == pytest.approx(chunks * 8.0)


@pytest.mark.parametrize("chunks", [1, 2, 3, 8, 64])
def test_a_fast_link_leaves_the_work(chunks: int) -> None:
    busy = dataclasses.replace(ALONE, chunks=chunks, header=0.0, latency=0.0, link=math.inf, shared=True)
    assert exchange_seconds(busy) == pytest.approx(chunks * 7.0)
    # On two cores the second thread, with 6 a chunk, waits for what the first encodes before it listens: the first chunk and two ahead.
    two_cores = exchange_seconds(dataclasses.replace(busy, shared=False))
    assert two_cores == pytest.approx(chunks * 6.0 + min(chunks, 3))


def test_overlap_lies_between_the_longer_and_the_sum() -> None:
    one = dataclasses.replace(ALONE, chunks=8, shared=True, latency=0.0, header=0.0)
    work, wire = 8 * 7.0, 8 * 8.0
    assert max(work, wire) < exchange_seconds(one) < work + wire
    fill = one.encode + one.reduce + one.decode + one.bytes1 / one.link
    assert exchange_seconds(one) <= max(work, wire) + 2 * fill


def test_sockets_take_their_share_of_a_core_that_all_use() -> None:
    one = dataclasses.replace(ALONE, chunks=8, latency=0.0, header=0.0, link=math.inf, socket=0.1)
    assert exchange_seconds(dataclasses.replace(one, shared=True)) == pytest.approx(8 * (7.0 + 8.0))
    assert exchange_seconds(one) == exchange_seconds(dataclasses.replace(one, socket=0.0))


# -- what the model takes over from the collectives


def test_constants_are_those_of_the_collectives() -> None:
    assert (BLOCK, MOST_CHUNKS, AHEAD) == (_layout.BLOCK, _layout._MAX_CHUNKS, _pipeline._AHEAD)
    assert MESSAGE_NBYTES == _message.VERDICT_NBYTES + 2 * 48


@pytest.mark.parametrize("numel", [0, 1, 4095, 4096, 4097, 1 << 18, 6_553_600])
@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_chunks_are_those_of_the_collectives(numel: int, ranks: int) -> None:
    for bits in (0.5, 2.0, 4.0, 32.0):
        for message in (256 << 10, 419_430, 8 << 20):
            assert chunk_count(numel, ranks, bits, message) == _layout.chunk_count(
                numel, ranks, int(512 * bits), message
            )


# -- calibrations


def test_prediction_of_torch_follows_what_was_measured() -> None:
    assert on_line(((0.0, 1.0), (10.0, 2.0), (20.0, 6.0)), 5.0) == 1.5
    assert on_line(((0.0, 1.0), (10.0, 2.0), (20.0, 6.0)), 30.0) == 10.0
    assert on_line(((0.0, 1.0), (10.0, 2.0)), 20.0, least_slope=0.5) == 7.0
    assert on_line(((4.0, 3.0), (10.0, 3.0)), 0.0) == 3.0
    assert on_line(((4.0, 3.0),), 100.0) == 3.0
    with pytest.raises(SpecError):
        on_line((), 1.0)
    known = calibration(4, link=1e9)
    assert known.predict("fp32", 1_000_000) == pytest.approx(1.5 * 4e6 / 1e9)
    assert known.predict("bf16", 1_000_000) == pytest.approx(1.5 * 2e6 / 1e9)


def test_prediction_of_a_codec() -> None:
    known = calibration(2, link=1e6, codec_seconds=0.0)
    numel = 1 << 20
    sent = 2 * (numel / 2 * 4 / 8 + MESSAGE_NBYTES)  # two phases, half of the tensor each
    assert known.predict("uniform:4", numel) == pytest.approx(sent / 1e6)
    scaled = dataclasses.replace(known.codecs["uniform:4"], scales=((float(numel), 1.5),))
    slower = dataclasses.replace(known, codecs={"uniform:4": scaled}, call=0.25)
    assert slower.predict("uniform:4", numel) == pytest.approx(0.25 + 1.5 * sent / 1e6)
    worker = calibration(2, link=1e15, codec_seconds=1e-9)
    assert worker.predict("uniform:4", numel) == pytest.approx(1.5 * numel * 1e-9, rel=1e-6)
    assert calibration(1).predict("uniform:4", numel) == 0.0


def test_scales_between_the_sizes_that_were_tried() -> None:
    cost = CodecCost("x", 4.0, 1.0, 2.0, 7.0, 4, scales=((100.0, 1.0), (10_000.0, 2.0)))
    assert [cost.scale_at(n) for n in (0, 1, 100, 10_000, 1e9)] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert cost.scale_at(1000) == pytest.approx(1.5)
    assert CodecCost("x", 4.0, 1.0, 2.0, 7.0, 4).scale_at(1000) == 1.0
    for wrong in (((0.0, 1.0),), ((2.0, 1.0), (2.0, 1.0)), ((1.0, 0.0),), ((1.0, float("inf")),)):
        with pytest.raises(SpecError, match="scales"):
            dataclasses.replace(cost, scales=wrong)


def test_a_codec_at_another_number_of_ranks() -> None:
    cost = CodecCost("x", 4.0, 1.0, 2.0, 7.0, 4, decode_call=0.5, reduce_call=3.0)
    more = cost.at(6)
    assert (more.reduce, more.reduce_call, more.ranks) == (11.0, 4.0, 6)
    assert more.at(4) == cost
    assert cost.work(100, 4) == (75.0, 3.0 + 7.0 * 25, 1.5 + 150.0)


def test_calibration_goes_through_json() -> None:
    known = calibration(4)
    assert Calibration.from_dict(json.loads(json.dumps(known.to_dict()))) == known


def test_what_a_calibration_refuses() -> None:
    known = calibration()
    with pytest.raises(StateError, match="was not probed"):
        known.predict("ecsq:1", 10)
    with pytest.raises(SpecError):
        known.predict("fp32", -1)
    for changes in ({"ranks": 0}, {"link": 0.0}, {"latency": -1.0}, {"call": math.nan}):
        with pytest.raises(SpecError):
            dataclasses.replace(known, **changes)
    with pytest.raises(SpecError, match="no calibration"):
        Calibration.from_dict({"ranks": 2})
    with pytest.raises(SpecError):
        CodecCost("x", 4.0, -1.0, 0.0, 0.0, 2)


# -- gammas


@pytest.mark.parametrize("spec", ["none", "uniform:4", "hadamard+lloyd:2", "topk:0.01", "ecsq:1"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_codec_cost_times_what_there_is(spec: str, ranks: int) -> None:
    cost = collectives.codec_cost(spec, ranks, seconds=1e-4, numels=(4096, 16384))
    assert cost.spec == str(commpress.codec(spec)) and cost.ranks == ranks
    assert cost.bits == 8 * commpress.codec(spec).payload_nbytes(16384) / 16384
    assert sum(cost.work(16384, ranks)) > 0 and all(part >= 0 for part in cost.work(16384, ranks))


@pytest.mark.parametrize("spec", ["lowrank:4", "homomorphic:4", "modulo:2,rho=0.9"])
def test_codecs_whose_exchange_is_another_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="no exchange"):
        collectives.codec_cost(spec, 2)


def test_codec_cost_needs_two_ranks() -> None:
    with pytest.raises(SpecError):
        collectives.codec_cost("uniform:4", 1)


# -- extrapolation


def test_ring_and_tree() -> None:
    assert ring_seconds(800.0, 4, 10.0, 1.0) == 2 * 3 * (1.0 + 20.0)
    assert tree_seconds(800.0, 4, 10.0, 1.0) == 160.0 + 4.0
    assert tree_seconds(800.0, 1, 10.0, 1.0) == ring_seconds(800.0, 1, 10.0, 1.0) == 0.0
    numel = 6_553_600  # one bucket
    assert exact(numel, 2, Network(4, 1e6, latency=0.0, message=0.0)).seconds == pytest.approx(1.5 * 2 * numel / 1e6)
    many = exact(numel, 2, Network(4096, 1e12, latency=1e-3, message=0.0)).seconds
    assert many == pytest.approx(2 * 2 * numel / 1e12 + 24e-3)  # the tree


NUMEL = 6_553_600
COST = CodecCost("x", 4.0, 0.0, 0.0, 0.0, 2)


def test_flat_at_two_ranks_by_hand() -> None:
    found = flat(NUMEL, COST, Network(2, 1e6, latency=0.0, message=0.0))
    nbytes = NUMEL / 2 * 8 / 8 + 2 * MESSAGE_NBYTES + 512
    assert found.node_bytes == pytest.approx(nbytes)
    assert found.seconds == pytest.approx(nbytes / 1e6)
    assert flat(NUMEL, COST, Network(1, 1e6)).seconds == pytest.approx(3 * 20e-6)


def test_messages_show_at_many_ranks() -> None:
    few, many = (flat(NUMEL, COST, Network(n, 1e9, latency=0.0, message=1e-5)).seconds for n in (4, 4096))
    assert many > 3 * 4095 * 1e-5 > few


def test_hierarchy_sends_less_out_of_a_node() -> None:
    network = Network(16, 1e8, local_ranks=4, intra=1e12, latency=0.0, message=0.0)
    one, two = flat(NUMEL, COST, network), hierarchical(NUMEL, COST, network)
    payload = 2 * NUMEL * 4 / 8
    assert one.node_bytes == pytest.approx(4 * 12 / 16 * payload, rel=1e-2)
    assert two.node_bytes == pytest.approx(3 / 4 * payload, rel=1e-2)
    assert two.seconds < one.seconds / 3.9
    assert hierarchical(NUMEL, COST, Network(4, 1e8)) == flat(NUMEL, COST, Network(4, 1e8))
    inside = hierarchical(NUMEL, COST, Network(4, 1.0, local_ranks=4, intra=1e6, latency=0.0, message=0.0))
    assert inside.node_bytes == 0 and inside.seconds == pytest.approx(2 * 3 * NUMEL * 4 / 4 / 1e6)


def test_break_even_by_hand() -> None:
    # bytes / link + 1 s against three times the bytes: 2 bytes / link = 1 s
    assert break_even(lambda link: 1e9 / link + 1.0, lambda link: 3e9 / link) == pytest.approx(2e9, rel=2e-3)
    assert break_even(lambda link: 1 / link, lambda link: 2 / link) == math.inf
    assert break_even(lambda link: 2 / link, lambda link: 1 / link) is None


def test_backward_hides_all_but_the_last_bucket() -> None:
    found = exact(10 * NUMEL, 4, Network(4, 1e9, latency=0.0, message=0.0))
    assert found.buckets == 10
    assert found.exposed(0.0) == found.seconds and found.hidden(0.0) == 0.0
    assert found.exposed(1e9) == pytest.approx(found.seconds / 10) and found.hidden(1e9) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ranks": 0}, {"ranks": 6, "local_ranks": 4, "intra": 1.0}, {"local_ranks": 2}, {"link": 0.0}, {"latency": -1.0},
        {"ranks": 1 << 30},
    ],
)  # fmt: skip
def test_networks_that_cannot_be(arguments: dict) -> None:
    with pytest.raises(SpecError):
        Network(**{"ranks": 8, "link": 1e9, **arguments})


# -- the command


def test_plan_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --ranks 1024 --rate 25gbit --model 7b --local-ranks 8 --intra 400gbit --codec uniform:4 --bits 0.5"
    assert main([*words.split(), "--codec-speed", "100", "--step-seconds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["codec"], row["way"]): row for row in found["rows"]}
    assert found["numel"] == 7_000_000_000 and found["network"]["link"] == 25e9 / 8 and found["codec_speeds"] == "given"
    spec = str(commpress.codec("hadamard+bitshift:0.5,length=8"))
    assert set(rows) == {
        ("fp32", None), ("16 bits", None), *((c, w) for c in ("uniform:4", spec) for w in ("flat", "hierarchical"))
    }  # fmt: skip
    assert rows["fp32", None]["seconds"] == pytest.approx(2 * rows["16 bits", None]["seconds"], rel=0.05)
    ours = rows["uniform:4", "hierarchical"]
    assert ours["bytes_leaving_a_node"] < 0.3 * rows["16 bits", None]["bytes_leaving_a_node"]
    assert ours["break_even_bits_per_second"] is None or ours["break_even_bits_per_second"] > 1e9
    assert 0 <= ours["hidden_share"] <= 1 and ours["step_seconds"] >= 2


def test_plan_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--ranks", "64", "--rate", "10gbit", "--model", "125m", "--codec", "uniform:4"]) == 0
    shown = capsys.readouterr().out
    assert (
        "timed here" in shown and "125,000,000 parameters" in shown and "uniform:4" in shown and "break-even" in shown
    )


@pytest.mark.parametrize(
    "words",
    ["--local-ranks 3 --intra 1gbit", "--local-ranks 8", "--codec lowrank:4", "--codec nonsense", "--bits 9",
     "--codec-speed 0", "--step-seconds -1"],
)  # fmt: skip
def test_plan_refuses(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--ranks", "64", "--rate", "10gbit", "--model", "1m", *words.split()]) == 2
    assert "SpecError" in capsys.readouterr().err


def test_rates_of_the_plan() -> None:
    assert (_rate("25gbit"), _rate("3.2tbit"), _rate("400gbit"), _rate("10mbit")) == (25e9 / 8, 4e11, 5e10, 1.25e6)
    for text in ("fast", "10", "0gbit", "1e9gbit"):
        with pytest.raises(argparse.ArgumentTypeError):
            _rate(text)


def test_cluster_names() -> None:
    assert set(cluster.__all__) >= {
        "Calibration",
        "CodecCost",
        "Network",
        "exact",
        "flat",
        "hierarchical",
        "break_even",
    }
