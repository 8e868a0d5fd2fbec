"""What the allocator is told where nodes add up their ranks' gradients: the figures of the nodes' means."""

from __future__ import annotations

import numpy as np
import torch

from commpress.codecs import Key, codec
from commpress.feedback import BucketFeedback, ErrorFeedback, Layout
from commpress.hooks._statistics import statistics_of
from commpress.hooks._sums import Column

DIMS = np.array([40_000.0, 25_000.0])
PER_NODE, NODES = 2, 3


def tables() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of six ranks on three nodes, and of three ranks that have the nodes' means for gradients."""
    generator = np.random.default_rng(3)
    world = PER_NODE * NODES
    ranks = [np.zeros((2, len(Column))) for _ in range(world)]
    means = [np.zeros((2, len(Column))) for _ in range(NODES)]
    for layer, (d, signal) in enumerate(zip(DIMS.astype(int), (1.0, 0.05), strict=True)):
        theta = signal * generator.standard_normal(d)
        gradients = theta + generator.standard_normal((world, d))
        mean, previous = gradients.mean(0), theta + 0.2 * generator.standard_normal(d)
        for rank in range(world):
            g, row = gradients[rank], ranks[rank][layer]
            row[[Column.LOCAL, Column.MEAN]] = g @ g, mean @ mean
            row[[Column.CROSS, Column.PREVIOUS]] = g @ previous, previous @ previous
            node, local = divmod(rank, PER_NODE)
            part = slice(local * d // 2, (local + 1) * d // 2)
            total = gradients[node * PER_NODE : (node + 1) * PER_NODE].sum(0)[part]
            row[[Column.DOT1, Column.ENERGY1, Column.DECODED1]] = total @ total
        for node in range(NODES):
            m, row = gradients[node * PER_NODE : (node + 1) * PER_NODE].mean(0), means[node][layer]
            row[[Column.LOCAL, Column.DOT1, Column.ENERGY1, Column.DECODED1]] = m @ m
            row[[Column.MEAN, Column.CROSS, Column.PREVIOUS]] = mean @ mean, m @ previous, previous @ previous
    return ranks, means


def test_statistics_of_nodes_are_those_of_their_means():
    ranks, means = tables()
    found = statistics_of(7, ranks, DIMS, unbiased=True, senders=NODES)
    want = statistics_of(7, means, DIMS, unbiased=True)
    assert found.world_size == want.world_size == NODES and found.step == 7
    np.testing.assert_allclose(found.variances, want.variances, rtol=0.03)
    np.testing.assert_allclose(found.table[:, Column.LOCAL], want.table[:, Column.LOCAL], rtol=0.02)
    for column in (Column.MEAN, Column.CROSS, Column.PREVIOUS, Column.ENERGY1, Column.DOT1):
        np.testing.assert_allclose(found.table[:, column], want.table[:, column], rtol=1e-9)
    np.testing.assert_allclose(found.encoded, want.encoded, rtol=1e-9)
    np.testing.assert_allclose(found.encoded_energies, want.encoded_energies, rtol=1e-9)
    np.testing.assert_array_equal(found.captured1, want.captured1)
    # Without being told of the nodes, all of it would be wrong.
    flat = statistics_of(7, ranks, DIMS, unbiased=True)
    assert (np.abs(flat.variances / want.variances - 1) > 0.5).all()
    assert (np.abs(flat.table[:, Column.LOCAL] / want.table[:, Column.LOCAL] - 1) > 0.5).all()


def test_as_many_senders_as_ranks_change_nothing():
    ranks, _ = tables()
    one, other = (statistics_of(0, ranks, DIMS, unbiased=True, senders=s) for s in (None, len(ranks)))
    np.testing.assert_array_equal(one.table, other.table)
    np.testing.assert_array_equal(one.variances, other.variances)


def test_residuals_outside_the_part_are_given_on_once():
    """As after DDP has rebuilt its buckets: what a rank owes lies where another rank of its node encodes now."""
    layout = Layout(("a", "b"), (6_000, 10_384))
    bucket = BucketFeedback(layout, codec("uniform:2").for_feedback(), 4, (8_192, 12_288), (8_192, 16_384), 2)
    owed = {"a": torch.randn(6_000), "b": torch.randn(10_384)}
    bucket.preset(owed)
    flat = torch.zeros(layout.numel)
    bucket.add_input(flat)
    assert torch.equal(flat, torch.cat(list(owed.values())))
    key = Key()
    payload = codec("uniform:2").for_feedback().encode(flat[12_288:16_384], key, offset=12_288, gain=0.25)
    bucket.record_sent(flat, payload, key, 12_288, 16_384)
    bucket.commit()
    again = torch.zeros(layout.numel)
    bucket.add_input(again)
    assert not again[:12_288].any() and again[12_288:].any()


def test_a_mean_residual_of_another_weight_is_folded():
    """Two senders pass contributions on (weight 1), four ranks do not: a state goes from one to the other."""
    spec, layout = codec("uniform:2").for_feedback(), Layout(("a",), (8_192,))
    assert spec.passes_on(2) and not spec.passes_on(4)

    def feedback(senders):
        return ErrorFeedback(
            spec, rank=0, world_size=4, shard=lambda n, c: (0, 4096), part=lambda n, c: (0, n), senders=senders
        )

    saving, loading = feedback(4), feedback(2)
    saving.arrange([layout])
    flat, key = torch.randn(8_192), Key()
    payload = spec.encode(flat[:4096], key)
    saving.bucket(0).add_input(torch.zeros(8_192))
    saving.bucket(0).record_mean(flat, payload, key, 0, 4096)
    saving.commit()
    loading.load_state_dict(saving.state_dict())
    assert saving.owed()["a"].any()
    assert torch.allclose(loading.owed()["a"], saving.owed()["a"])
