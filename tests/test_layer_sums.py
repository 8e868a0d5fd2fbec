"""Sums over layers of what a hook encodes, and what the planner makes of them."""

import numpy as np
import pytest
import torch

from commpress.allocation import Allocator
from commpress.feedback import Layout
from commpress.hooks._planner import Planner, PlanSettings
from commpress.hooks._statistics import statistics_of
from commpress.hooks._sums import Column, LayerSums

LAYOUT = Layout(("a", "none", "b", "c"), (5, 0, 4096, 1000))
NUMEL = 5101


def pair():
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(3))
    return x, 0.3 * torch.randn(NUMEL, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("start", "stop"), [(0, NUMEL), (0, 3), (3, 4100), (5, 5), (5, 4101), (4101, NUMEL)])
def test_what_was_encoded_by_layer(start, stop):
    x, left = pair()
    sums = LayerSums(LAYOUT, distortion=True)
    sums.add_encoded(2, start, stop, x[start:stop], left[start:stop])
    for row, (_, first, last) in zip(sums.table, LAYOUT.segments(), strict=True):
        piece = slice(max(first, start), max(first, start, min(last, stop)))
        value, error = x[piece].double().numpy(), left[piece].double().numpy()
        want = np.zeros(len(Column))
        want[Column.ERROR] = error @ error
        want[Column.DOT2] = value @ (value - error)
        want[Column.ENERGY2] = value @ value
        want[Column.DECODED2] = (value - error) @ (value - error)
        assert row == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_energies_alone_are_the_same_energies():
    x, left = pair()
    full, energies = LayerSums(LAYOUT, distortion=True), LayerSums(LAYOUT, distortion=False)
    full.add_encoded(1, 3, 4500, x[3:4500], left[3:4500])
    energies.add_encoded(1, 3, 4500, x[3:4500], None)
    assert np.array_equal(full.table[:, Column.ENERGY1], energies.table[:, Column.ENERGY1])
    assert full.table[2, Column.ENERGY1] > 0
    assert not np.delete(energies.table, Column.ENERGY1, axis=1).any()


def test_the_first_large_gradients_do_not_decide_for_long():
    """Energies halve from step to step, and from the second on the other layer has more of them."""
    dims = {"a": 100_000, "b": 100_000}
    planner = Planner(dims, PlanSettings(2.0, floor=0.1), feedback=False)
    control = Allocator(list(dims), list(dims.values()), bits=2.0)
    for step, share in enumerate((0.6, 0.45, 0.45)):
        energies = np.array([share, 1 - share]) * 2.0**-step
        table = np.zeros((2, len(Column)))
        table[:, Column.ENERGY1] = energies * 4
        planner.observe(
            statistics_of(
                step, [table, 0 * table], np.array([1e5, 1e5]), unbiased=True, passed_on=True, distortion=False
            )
        )
        control.observe(step, energies)
    a, b = planner.allocator.statistics.energies  # what plans are made of
    assert a < b and a + b == pytest.approx(1)
    a, b = control.statistics.energies
    assert a > b, "the control follows the last steps, too"
