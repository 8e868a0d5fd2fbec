"""A scale common to all ranks, one bit for each rank and round, on the in-process communicators."""

from __future__ import annotations

import math

import pytest
import torch
from _threads import run_ranks, values
from hypothesis import given, settings
from hypothesis import strategies as st

from commpress.collectives import FakeWorld, common_scale, common_scales
from commpress.errors import PeerError, SpecError, TensorError


def scales(own, **options):
    return values(len(own), lambda rank, group: common_scale(torch.tensor([own[rank], -own[rank] / 2]), group=group, **options))  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("digits", [0, 3, 7, 23])
def test_max_and_median(size, digits):
    own = [0.3 * (1 + rank) ** 3 for rank in range(size)]
    for across, place in (("max", size - 1), ("median", (size - 1) // 2)):
        for one in scales(own, across=across, digits=digits):
            assert float(torch.tensor(own[place])) <= one.value <= own[place] * (1 + 2.0**-digits) * (1 + 1e-6)
            assert one.rounds == one.bits == 8 + digits
            assert one.messages == one.bytes_sent == (8 + digits) * (size - 1)
            assert one.wire_bytes >= one.bytes_sent


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=4),
    st.floats(0, 2.0**127, width=32),
    st.sampled_from(["max", "median"]),
)
def test_a_search_from_anywhere_finds_the_same(own, near, across):
    plain = scales(own, across=across)
    started = scales(own, across=across, near=near)
    assert {one.value for one in plain + started} == {plain[0].value}
    assert all(one.rounds == started[0].rounds <= 2 * (8 + 7) + 2 for one in started)


def test_a_scale_that_hardly_moved_takes_few_rounds():
    assert scales([1.0, 1.0], near=1.0)[0].rounds == 2
    assert scales([1.01, 1.0], near=1.0)[0].rounds <= 4
    assert scales([2.0, 1.0], near=1.0)[0].rounds <= 16 and scales([0.0, 0.0])[0].value == 0.0


def test_quantiles_and_empty_tensors():
    x = torch.arange(1.0, 1001.0)
    for quantile, wanted in ((1.0, 1000), (0.999, 999), (0.5, 500), (1e-9, 1)):
        found = values(
            2, lambda rank, group, q=quantile: common_scale(x * (1 - 2 * rank), quantile=q, digits=23, group=group)
        )
        assert [one.value for one in found] == [wanted, wanted] and found[0].own == wanted
    found = values(2, lambda rank, group: common_scale(x[: 5 * rank], group=group, digits=23))
    assert found[0].own == 0 and found[0].value == found[1].value == 5


def test_bits_on_the_wire_are_those_counted():
    found, worlds = run_ranks(3, lambda rank, group: common_scale(torch.ones(7) * rank, group=group))
    sent = [sum(world.nbytes_sent[rank] for world in worlds) for rank in range(3)]
    assert sent == [one.bytes_sent for one in found] == [30, 30, 30]


def test_on_a_communicator():
    world = FakeWorld(1)
    assert common_scale(torch.tensor([3.0]), group=world.communicator(0)).value == 3.0


def test_errors():
    x = torch.ones(3)
    for options in ({"quantile": 0.0}, {"quantile": 1.1}, {"across": "mean"}, {"digits": 24}, {"digits": True}, {"near": -1.0}, {"near": math.inf}):  # fmt: skip
        with pytest.raises(SpecError):
            common_scale(x, **options)
    for bad in (torch.ones(3, dtype=torch.int64), [1.0]):
        with pytest.raises(TensorError):
            common_scale(bad)
    found, _ = run_ranks(3, lambda rank, group: common_scale(x / (rank != 1), group=group))
    assert all(isinstance(one, TensorError) and "rank 1 " in str(one) for one in found)
    for name, options in (("near", [1.0, 2.0]), ("digits", [7, 8])):
        found, _ = run_ranks(
            2, lambda rank, group, n=name, o=options: common_scale(x, group=group, **{n: o[rank]}), timeout=20
        )
        assert all(isinstance(one, PeerError) and "other options" in str(one) for one in found)


# ---- many at once


def many(own, **options):
    def one(rank, group):
        return common_scales(torch.tensor(own[rank], dtype=torch.float32), group=group, **options)

    return values(len(own), one)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 11), st.sampled_from(["max", "median"]), st.sampled_from([0, 2, 7]), st.booleans())
def test_many_at_once_are_those_found_one_by_one(data, count, across, digits, known):
    numbers = st.one_of(st.just(0.0), st.floats(2.0**-126, 2.0**127, width=32))
    rows = st.lists(numbers, min_size=count, max_size=count)
    own, near = [data.draw(rows) for _ in range(3)], data.draw(rows)
    started = {"near": torch.tensor(near, dtype=torch.float32)} if known else {}
    found = many(own, across=across, digits=digits, **started)
    assert len(found[0].values) == count
    rounds = 0
    for i in range(count):
        each = {"near": near[i]} if known else {}
        alone = scales([row[i] for row in own], across=across, digits=digits, **each)[0]
        assert all(float(one.values[i]) == alone.value for one in found)
        rounds = max(rounds, alone.rounds)
    head = count != 1  # a byte, in which the ranks make sure that they search for the same
    for one in found:
        assert one.rounds == rounds and one.messages_each == rounds + head
        assert one.bytes_each == rounds * -(-count // 8) + head


def test_bytes_of_many_are_those_counted():
    own = [[1.0 * (1 + rank)] * 20 for rank in range(3)]
    found, worlds = run_ranks(3, lambda rank, group: common_scales(torch.tensor(own[rank]), group=group, digits=2))
    sent = [sum(world.nbytes_sent[rank] for world in worlds) for rank in range(3)]
    assert sent == [2 * one.bytes_each for one in found] == [2 * (10 * 3 + 1)] * 3
    again = many(own, digits=2, near=found[0].values)[0]
    assert again.rounds == 2 and again.bytes_each == 7  # 20 scales that did not move, 40 bits and the byte of a head


def test_errors_of_many():
    x = torch.ones(4)
    for bad in (torch.ones(2, 2), torch.ones(2, dtype=torch.int32), -x, 3.0):
        with pytest.raises(TensorError):
            common_scales(bad)
    for near in (torch.ones(3), x * math.inf):
        with pytest.raises(SpecError):
            common_scales(x, near=near)
    found, _ = run_ranks(3, lambda rank, group: common_scales(x / (rank != 1), group=group))
    assert all(isinstance(one, TensorError) and "rank 1 " in str(one) for one in found)
    for sizes in ((4, 3), (1, 2)):  # before a message of another size is sent
        found, _ = run_ranks(2, lambda rank, group, n=sizes: common_scales(x[: n[rank]], group=group), timeout=20)
        assert all(isinstance(one, PeerError) and "other options" in str(one) for one in found)
