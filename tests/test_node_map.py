"""Who is on which node: what the launcher said, contradictions, and what was asked for."""

from __future__ import annotations

import pytest
from test_hierarchical import nodes_of

from commpress.collectives import FakeWorld, Reducer, asked_of
from commpress.collectives.nodes import decide, own_facts
from commpress.errors import MismatchError, SpecError, StateError, TopologyError


def facts(*ranks: tuple, asked=None) -> list[dict]:
    """host, GROUP_RANK, LOCAL_RANK, LOCAL_WORLD_SIZE of each rank."""
    names = ("host", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return [{"asked": asked} | dict(zip(names, rank, strict=True)) for rank in ranks]


TWO_BY_TWO = [("a/1", 0, 0, 2), ("a/1", 0, 1, 2), ("b/2", 1, 0, 2), ("b/2", 1, 1, 2)]


def test_nodes_are_those_of_the_launcher():
    assert decide(facts(*TWO_BY_TWO)).as_lists() == [[0, 1], [2, 3]]
    assert decide(facts(*TWO_BY_TWO, asked=False)) is None
    assert decide(facts(*TWO_BY_TWO, asked=[[0, 2], [1, 3]])).as_lists() == [[0, 2], [1, 3]]
    # not contiguous; a subset of the job's ranks; two agents on one machine; no launcher at all
    mixed = [TWO_BY_TWO[i] for i in (0, 2, 1, 3)]
    assert decide(facts(*mixed)).as_lists() == [[0, 2], [1, 3]]
    wide = [(h, g, lr, 8) for h, g, lr, _ in TWO_BY_TWO]
    assert decide(facts(*wide)).as_lists() == [[0, 1], [2, 3]]
    one_machine = [("a/1", g, lr, n) for _, g, lr, n in TWO_BY_TWO]
    assert decide(facts(*one_machine)).as_lists() == [[0, 1], [2, 3]]
    alone = [(h, None, None, None) for h, *_ in TWO_BY_TWO]
    assert decide(facts(*alone)).as_lists() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("asked", [None, True])
def test_where_there_is_nothing_to_gain(asked):
    one_each = [("a/1", 0, 0, 1), ("b/2", 1, 0, 1)]
    assert decide(facts(*one_each, asked=asked)) is None
    single = [("a/1", 0, 0, 2), ("a/1", 0, 1, 2)]
    chosen = decide(facts(*single, asked=asked))
    assert chosen is None if asked is None else chosen.as_lists() == [[0, 1]]


CONTRADICTIONS = {
    "uneven": ([("a/1", 0, 0, 2), ("a/1", 0, 1, 2), ("b/2", 1, 0, 1)], "2, 1 ranks"),
    "same group rank": ([("a/1", 0, 0, 2), ("b/2", 0, 1, 2), ("c/3", 1, 0, 2), ("c/3", 1, 1, 2)], "GROUP_RANK=0"),
    "sizes": ([("a/1", 0, 0, 2), ("a/1", 0, 1, 3), ("b/2", 1, 0, 2), ("b/2", 1, 1, 2)], "LOCAL_WORLD_SIZE"),
    "too many": ([("a/1", 0, 0, 1), ("a/1", 0, 1, 1), ("b/2", 1, 0, 1), ("b/2", 1, 1, 1)], "LOCAL_WORLD_SIZE is 1"),
    "twice": ([("a/1", 0, 0, 2), ("a/1", 0, 0, 2), ("b/2", 1, 0, 2), ("b/2", 1, 1, 2)], "LOCAL_RANK"),
    "some": ([("a/1", 0, 0, 2), ("a/1", None, None, None), ("b/2", 1, 0, 2), ("b/2", 1, 1, 2)], "ranks [0, 2, 3] only"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_told(case, caplog):
    ranks, text = CONTRADICTIONS[case]
    with pytest.raises(TopologyError) as found:
        decide(facts(*ranks, asked=True))
    assert text in str(found.value) and "hierarchical=False" in str(found.value)
    assert decide(facts(*ranks)) is None  # what was not asked for is no reason to fail
    assert "stays flat" in caplog.text and text in caplog.text


def test_what_is_asked_for_must_be_the_same_everywhere():
    said = facts(*TWO_BY_TWO)
    said[2]["asked"] = True
    with pytest.raises(MismatchError, match=r"ranks disagree on hierarchical .*\[0, 1, 3\]: None; ranks \[2\]: True"):
        decide(said)


@pytest.mark.parametrize("bad", ["yes", 2, [0, 1], [["a"]], [[0, 0]], [[0], [2]], [[0, 1], []], [[True]]])
def test_malformed_nodes(bad):
    with pytest.raises(SpecError):
        asked_of(bad)


def test_nodes_of_other_sizes_are_refused():
    with pytest.raises(TopologyError, match="2, 1 ranks"):
        asked_of([[0, 1], [2]])
    with pytest.raises(TopologyError, match="hold 2 ranks, the group has 4"):
        decide(facts(*TWO_BY_TWO, asked=[[0], [1]]))
    world = FakeWorld(2)
    with pytest.raises(StateError, match="do not suit"):
        Reducer(world.communicator(0), world.communicator(0), timeout=1, nodes=nodes_of(2, 2))


def test_facts_are_torchruns():
    told = own_facts(None, {"GROUP_RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})
    assert (told["GROUP_RANK"], told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == (1, 0, 2)
    assert own_facts(True, {})["GROUP_RANK"] is None and own_facts(True, {"GROUP_RANK": "x"})["GROUP_RANK"] is None
