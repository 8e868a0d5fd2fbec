"""Low-rank tracking of one matrix: the numerics that all ranks must share, the tracker's figures, and the spec."""

import fractions
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import commpress
from commpress import lowrank
from commpress.codecs import LowRankCodec
from commpress.collectives import FactorPlan, MatrixShape, matrix_shape, worth
from commpress.errors import SpecError, StateError
from commpress.reference import _random


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- what all ranks must compute alike


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 300), st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e20]))
def test_orthonormal_rows_span_what_was_given(r, more, seed, scale):
    m = r + more
    x = normal(r, m, seed=seed) * scale
    q = lowrank.orthonormal(x).double()
    assert float((q @ q.T - torch.eye(r)).abs().max()) < 1e-6
    unit = (x / scale).double()
    assert float((unit - unit @ q.T @ q).norm() / unit.norm()) < 1e-5
    # Row i has no part along the given rows before it.
    if r > 1 and m > r + 5:
        assert float((unit[0] @ q[1:].T).abs().max()) < 1e-5 * float(unit[0].norm())


def test_it_is_gram_schmidt():
    x = normal(5, 400)
    q, upper = np.linalg.qr(x.double().numpy().T)
    q = q * np.sign(np.diag(upper))
    assert np.abs(lowrank.orthonormal(x).numpy().T - q).max() < 1e-6


@pytest.mark.parametrize("rows", [[0], [0, 1], [2], [0, 1, 2, 3]])
def test_zero_and_dependent_rows_become_zero(rows):
    x = normal(4, 50)
    x[rows] = 0
    x[3] = x[0] - 2 * x[1] if 3 not in rows else 0
    q = lowrank.orthonormal(x)
    lengths = q.norm(dim=1)
    assert bool(((lengths == 0) | ((lengths - 1).abs() < 1e-6)).all())
    assert bool((lengths[rows] == 0).all())
    assert int((lengths > 0).sum()) == int(torch.linalg.matrix_rank(x.double(), atol=1e-4))


def test_wide_ranges_and_denormals():
    x = normal(4, 100) * torch.tensor([3e37, 1e-38, 1.0, 1e-44])[:, None]
    q = lowrank.orthonormal(x).double()
    assert float((q @ q.T - torch.eye(4)).abs().max()) < 1e-6


def test_inner_products_are_those_of_whole_numbers():
    """`_gram` against Python's integers: nothing was rounded on the way but the rows themselves."""
    x = (normal(3, 1000) * torch.tensor([1.0, 1e10, 1e-20])[:, None]).double().numpy()
    bits = lowrank._bits(1000)
    assert 2 * bits + 10 <= 53
    for a, b in ((0, 0), (0, 1), (1, 2)):
        units = [fractions.Fraction(2) ** (math.frexp(np.abs(x[i]).max())[1] - 2 * bits) for i in (a, b)]
        whole = [[round(fractions.Fraction(v) / unit) for v in x[i]] for i, unit in zip((a, b), units, strict=True)]
        exact = sum(p * q for p, q in zip(*whole, strict=True)) * units[0] * units[1]
        got = lowrank._gram(x)[a, b]
        assert abs(fractions.Fraction(got) - exact) <= abs(exact) / 2**50


def test_the_same_bits_whatever_the_order_of_summation():
    """Sums forwards and backwards agree where the operands were shortened, and do not where they were not: the control."""
    x = normal(2, 4097).double().numpy()
    bits = lowrank._bits(4097)
    short = np.rint(np.ldexp(x, bits - 3))
    forwards, backwards = sum(short[0] * short[1]), sum((short[0] * short[1])[::-1])
    assert forwards == backwards == short[0] @ short[1]
    assert sum(x[0] * x[1]) != sum((x[0] * x[1])[::-1])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (4, 300, 70), (4, 1, 300), (33, 70, 90)])
def test_product_is_rounded_once(shape):
    r, m, n = shape
    left, right = normal(r, m), normal(r, n, seed=1)
    out = torch.full((m, n), float("nan"))
    lowrank.product(left, right, out)
    exact = left.double().T @ right.double()
    limit = 2.0**-23 if r <= 32 else 2.0**-21
    assert float((out - exact).abs().max()) <= limit * float(left.abs().max() * right.abs().max()) * r
    zero = lowrank.product(torch.zeros(r, m), right, torch.full((m, n), 1.0))
    assert not bool(zero.any())


def test_product_has_the_same_bits_on_any_number_of_threads_and_by_another_library():
    left, right = normal(4, 700), normal(4, 900, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((lowrank.product(left, right, torch.empty(700, 900)), lowrank.orthonormal(right)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    shortened = []
    for factor in (left, right):
        x = factor.double().numpy()
        exponent = math.frexp(np.abs(x).max())[1]
        shortened.append(np.ldexp(np.rint(np.ldexp(x, 25 - exponent)), exponent - 25))
    terms = [shortened[0][k][:, None] * shortened[1][k][None] for k in (2, 0, 3, 1)]
    assert np.array_equal(found[0][0].numpy(), (terms[0] + terms[1] + (terms[2] + terms[3])).astype(np.float32))


def test_squares():
    x = normal(4, 513)
    assert lowrank.squares(x) == pytest.approx(float(x.double().square().sum()), rel=1e-9)
    assert lowrank.squares(torch.zeros(2, 3)) == 0.0
    assert lowrank.squares(torch.zeros(2, 0)) == 0.0


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1001])
def test_coins_are_the_words_of_philox(count):
    key = commpress.Key(seed=2**63 + 5, step=7, tensor=70000)
    words = _random.words(key, 11, 0, -(-count // 4)).reshape(-1)[:count]
    got = lowrank.coins(key, count)
    assert np.array_equal(got.numpy(), words.astype(np.float64) / 2**31 - 1)


# ---- the tracker


def drifting(steps, change, seed, n=256, r=4, noise=0.1, drift=0.05):
    """Matrices with singular values 10, 8, 6, 5 whose directions turn by `drift` radians a step, jump at `change`, in noise."""
    g = torch.Generator().manual_seed(seed)

    def fresh():
        return torch.linalg.qr(torch.randn(n, r, generator=g))[0]

    def turned(u):
        d = torch.randn(n, r, generator=g)
        d -= u @ (u.T @ d)
        return torch.linalg.qr(u * math.cos(drift) + d / d.norm(dim=0) * math.sin(drift))[0]

    values = torch.tensor([10.0, 8.0, 6.0, 5.0])
    u, v = fresh(), fresh()
    for step in range(steps):
        if step == change:
            u, v = fresh(), fresh()
        u, v = turned(u), turned(v)
        yield (u * values) @ v.T + noise * torch.randn(n, n, generator=g)


def follow(matrices, r=4, iterations=6, reset=0.7):
    """Fidelity over the best possible, and whether the step began with power iterations. As the passage through a reducer does it."""
    ratios, restarted, tracker = [], [], None
    for step, g in enumerate(matrices):
        key = commpress.Key(step=step)
        tracker = tracker or lowrank.Tracker(*g.shape, r, reset=reset)
        basis, captured = tracker.start(key), 0.0
        restarted.append(tracker.lost)
        for _ in range(iterations if tracker.lost else 0):
            right = lowrank.orthonormal(basis @ g.T) @ g
            basis, more = tracker.full(right, key), lowrank.squares(right)
            if more <= 1.01 * captured:
                break
            captured = more
        fidelity = tracker.update(lowrank.orthonormal(basis @ g.T) @ g, lowrank.squares(g), key)
        values = torch.linalg.svdvals(g).square()
        ratios.append(fidelity / float(values[:r].sum() / values.sum()))
    return ratios, restarted


@pytest.mark.parametrize("seed", range(3))
def test_fidelity_near_the_best_when_directions_drift_and_one_step_after_they_jump(seed):
    change = 14
    ratios, restarted = follow(drifting(change + 5, change, seed))
    assert min(ratios[1:change]) >= 0.99
    assert ratios[change] < 0.7, "the jump was none"
    assert min(ratios[change + 1 :]) >= 0.99
    assert [i for i, was in enumerate(restarted) if was] == [0, change + 1]


def test_without_the_reset_the_step_after_a_jump_is_not_near_the_best():
    ratios, restarted = follow(drifting(17, 14, 0), reset=0.0)
    assert ratios[15] < 0.97
    assert sum(restarted) == 1


def test_a_reset_that_does_not_help_is_followed_by_longer_and_longer_pauses():
    tracker = lowrank.Tracker(20, 30, 2)
    right = normal(2, 30)
    resets = []
    for step in range(400):
        # The fidelity falls for good each time the tracker has settled: nothing that a reset could cure.
        energy = lowrank.squares(right) * 1.1**step
        tracker.update(right, energy, commpress.Key(step=step))
        if tracker.lost:
            resets.append(step)
    gaps = np.diff(resets)
    assert len(resets) >= 5 and bool((gaps[1:] > 1.6 * gaps[:-1] - 8).all()) and gaps[-1] > 100


def test_a_matrix_of_lower_rank_and_a_zero_one():
    tracker = lowrank.Tracker(40, 30, 4)
    g = torch.outer(normal(40), normal(30, seed=1))
    for step in range(3):
        key = commpress.Key(step=step)
        left = lowrank.orthonormal(tracker.start(key) @ g.T)
        right = left @ g
        assert float((lowrank.product(left, right, torch.empty(40, 30)) - g).norm() / g.norm()) < 1e-5
        assert tracker.update(right, lowrank.squares(g), key) == pytest.approx(1.0, abs=1e-5)
        basis = tracker.basis.double()
        assert float((basis @ basis.T - torch.eye(4)).abs().max()) < 1e-6, "directions that the matrix lacks are drawn"
    before = tracker.state_dict()
    left = lowrank.orthonormal(tracker.start(key) @ torch.zeros(30, 40))
    assert not bool(left.any())
    assert tracker.update(torch.zeros(4, 30), 0.0, key) == 0.0
    after = tracker.state_dict()
    assert torch.equal(before.pop("basis"), after.pop("basis")) and before == after


def test_a_tracker_goes_on_bit_for_bit_from_its_state():
    matrices = list(drifting(6, 3, 5, n=40))
    whole, cut = lowrank.Tracker(40, 40, 4), lowrank.Tracker(40, 40, 4)
    for step, g in enumerate(matrices):
        key = commpress.Key(step=step)
        if step == 3:
            fresh = lowrank.Tracker(40, 40, 4)
            fresh.load_state_dict(cut.state_dict())
            cut = fresh
        for tracker in (whole, cut):
            tracker.update(lowrank.orthonormal(tracker.start(key) @ g.T) @ g, lowrank.squares(g), key)
    assert torch.equal(whole.basis, cut.basis)
    assert {**whole.state_dict(), "basis": 0} == {**cut.state_dict(), "basis": 0}
    with pytest.raises(StateError, match="40 by 40"):
        lowrank.Tracker(40, 41, 4).load_state_dict(whole.state_dict())
    with pytest.raises(StateError, match="4 dimensions"):
        lowrank.Tracker(40, 40, 3).load_state_dict(whole.state_dict())


# ---- matrices in a tensor


def test_a_parameter_is_a_matrix_of_what_is_outermost_in_memory():
    def found(x):
        return matrix_shape(0, x.shape, x.stride(), x.numel())

    assert found(torch.empty(6, 5)) == MatrixShape(0, 6, 5)
    assert found(torch.empty(6, 5).T) == MatrixShape(0, 6, 5)
    assert found(torch.empty(8, 3, 5, 5)) == MatrixShape(0, 8, 75)
    assert found(torch.empty(8, 3, 5, 5).to(memory_format=torch.channels_last)) == MatrixShape(0, 8, 75)
    assert found(torch.empty(1, 6, 5)) == MatrixShape(0, 6, 5)
    assert found(torch.empty(1, 1)) == MatrixShape(0, 1, 1)


def test_what_is_worth_factors():
    codec = commpress.codec("lowrank:4")
    assert worth(MatrixShape(0, 9, 9), codec) and not worth(MatrixShape(0, 8, 8), codec)
    assert not worth(MatrixShape(0, 1, 10**6), codec) and not worth(MatrixShape(0, 4, 10**6), codec)
    assert worth(MatrixShape(0, 5, 10**6), codec)


def test_a_plan_says_where_everything_lies_and_never_sends_more_than_the_matrix():
    codec = commpress.codec("lowrank:2")
    plan = FactorPlan(1000, [MatrixShape(10, 20, 20), MatrixShape(410, 10, 30)], codec)
    assert plan.exact == [(0, 10), (710, 1000)]
    last = plan.final()
    assert last.left.numel() == 300 + 4 + 2 * (20 + 10) and last.right.numel() == 2 * (20 + 30)
    assert [v.shape for v in last.lefts] == [(2, 20), (2, 10)]
    for i, shape in enumerate(plan.shapes):
        assert (plan.limit(i) + 1) * 2 * (shape.rows + shape.columns) <= shape.rows * shape.columns


# ---- the spec


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("lowrank:4", "lowrank:4"),
        (" lowrank:004,iterations=6,reset=0.70 ", "lowrank:4"),
        ("lowrank:1,reset=0", "lowrank:1,reset=0"),
        ("lowrank:8,iterations=0,factors=cast:bf16", "lowrank:8,iterations=0"),
        ("lowrank:8,factors=none", "lowrank:8,factors=none"),
        ("lowrank:8,factors=hadamard+lloyd:8", "lowrank:8,factors=hadamard+lloyd:8"),
        ("lowrank:8,factors=topk:0.1/values=fp32", "lowrank:8,factors=topk:0.1/values=fp32"),
    ],
)
def test_specs_have_one_canonical_form(spec, canonical):
    codec = commpress.codec(spec)
    assert isinstance(codec, LowRankCodec)
    assert str(codec) == canonical
    assert commpress.codec(canonical) == codec and hash(commpress.codec(canonical)) == hash(codec)
    assert not codec.unbiased and not codec.lossless
    assert commpress.codec(str(codec.for_feedback())) == codec.for_feedback()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("lowrank", "low-rank dimension"),
        ("lowrank:0", "from 1 to 1024"),
        ("lowrank:-1", "whole number"),
        ("lowrank:1.5", "whole number"),
        ("lowrank:1025", "from 1 to 1024"),
        ("lowrank:99999999999999999999", "whole number"),
        ("lowrank:4,iterations=x", "iterations="),
        ("lowrank:4,iterations=17", "0 to 16"),
        ("lowrank:4,reset=1", "reset="),
        ("lowrank:4,reset=nan", "reset="),
        ("lowrank:4,scale=none", "unknown option"),
        ("lowrank:4,factors=lowrank:2", "not lowrank again"),
        ("lowrank:4,factors=lloyd:9", "lloyd:9"),
        ("hadamard+lowrank:4", "unknown codec family"),
    ],
)
def test_malformed_specs_say_what_is_wrong(spec, text):
    with pytest.raises(SpecError, match=text):
        commpress.codec(spec)


def test_there_is_no_payload_of_one_ranks_own():
    codec, key = commpress.codec("lowrank:4"), commpress.Key()
    for call in (
        lambda: codec.encode(torch.zeros(9, 9), key),
        lambda: codec.decode(torch.zeros(9, dtype=torch.uint8), key, out=torch.zeros(9, 9)),
        lambda: codec.payload_nbytes(81),
        lambda: commpress.pack(torch.zeros(9, 9), codec, key),
    ):
        with pytest.raises(SpecError, match=r"commpress.register or commpress.all_reduce"):
            call()
    with pytest.raises(SpecError, match="names a family"):
        commpress.HookState("lowrank:4", bits=1.0)
