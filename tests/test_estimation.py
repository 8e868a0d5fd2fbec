"""Estimation from few bits: one-bit means, thresholds, cells, cosines, ranks that stand out. Against exact formulas and scipy, with controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from commpress.errors import SpecError, StateError, TensorError
from commpress.estimation import (
    CosineEstimator,
    OneBitMean,
    ProbitTable,
    Queries,
    ThresholdDensity,
    best_bits,
    fisher_information,
    fisher_information_unquantised,
    lloyd_max_cells,
    rectangle_probabilities,
    rectangle_slopes,
    spread_information,
    standing_out,
)

LLOYD_MAX = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501}
TABLE = {(1, 0.5): 1.645, (2, 0.5): 1.392, (3, 0.5): 1.549, (1, 0.8): 0.579, (2, 0.8): 0.368, (3, 0.8): 0.320}
TABLE |= {(1, 0.9): 0.231, (2, 0.9): 0.147, (3, 0.9): 0.0997}


def drive(mean, samples, most=10**9):
    """Asks until the budget is used up, or the next round would pass `most`."""
    while (queries := mean.next_queries()) is not None and mean.asked + queries.count <= most:
        mean.tell(queries.answer(samples(queries.count)))
    return mean.estimate()


def normal(streams, mu, seed=1):
    generator = np.random.default_rng(seed)
    return lambda count: mu + generator.standard_normal((streams, count))


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"budget": 2000}, 1.35, 1.85),
        ({"budget": 2000, "noise": "subgaussian"}, 3.0, 4.4),
        ({"budget": 2000, "sigma": (0.1, 20.0)}, 1.5, 2.6),
        ({"budget": 2000, "two_stages": True}, 2.4, 3.6),
        ({"budget": 2000, "two_stages": True, "noise": "subgaussian"}, 5.0, 8.5),
        ({"budget": None}, 1.35, 2.0),
    ],
)
def test_one_bit_means_of_normal_samples(options, low, high):
    streams = 1200
    mu = np.random.default_rng(3).uniform(-100, 100, (streams, 1))
    mean = OneBitMean(100.0, **({"sigma": 1.0} | options), streams=streams, seed=5)
    error = drive(mean, normal(streams, mu), 2200) - mu[:, 0]
    assert low < mean.asked * np.square(error).mean() < high
    assert mean.asked == 2000 if options["budget"] else 1000 < mean.asked <= 2200
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(streams)
    if options.get("two_stages"):
        assert mean.rounds == 2


def test_a_wrong_model_is_seen():
    """Skewed samples: the Gaussian likelihood finds the median, the distribution-free form the mean."""
    streams, shift = 300, 1.0
    generator = np.random.default_rng(8)
    samples = lambda count: generator.exponential(1.0, (streams, count)) - shift  # noqa: E731  mean 0, median ln 2 - 1
    found = {}
    for noise in ("gaussian", 3.0):
        mean = OneBitMean(50.0, sigma=1.5, noise=noise, budget=8000, streams=streams, seed=2)
        found[noise] = drive(mean, samples)
    assert abs(found["gaussian"].mean() - (math.log(2) - 1)) < 0.03
    assert abs(found[3.0].mean()) < 5 * found[3.0].std() / math.sqrt(streams) + 0.01


@pytest.mark.parametrize("half_width", [0.1, 1.0, 1.5, 7.0, 1e6])
@pytest.mark.parametrize("noise", ["gaussian", "subgaussian", 2.0])
def test_any_half_width(half_width, noise):
    streams = 50
    mu = np.random.default_rng(3).uniform(-half_width, half_width, (streams, 1))
    mean = OneBitMean(half_width, sigma=1.0, noise=noise, budget=4000, streams=streams)
    error = drive(mean, normal(streams, mu)) - mu[:, 0]
    assert np.square(error).mean() < 0.02 and mean.asked == 4000 and np.abs(mean.estimate()).max() <= half_width


def test_location_grows_by_a_constant_per_doubling():
    asked = []
    for doublings in range(4, 30):
        mean = OneBitMean(2.0**doublings, sigma=1.0, budget=3000)
        drive(mean, normal(1, 0.0))
        asked.append(mean.located_after)
    assert len(set(np.diff(asked))) == 1


def test_the_order_of_calls_and_bad_arguments():
    mean = OneBitMean(4.0, sigma=1.0, budget=200, streams=2)
    queries = mean.next_queries()
    assert mean.next_queries() is queries
    with pytest.raises(TensorError):
        mean.tell(np.zeros((2, queries.count + 1), dtype=bool))
    with pytest.raises(TensorError):
        mean.tell(np.zeros((2, queries.count)))
    with pytest.raises(TensorError):
        queries.answer(np.zeros((2, 1)))
    drive(mean, normal(2, 0.0))
    assert mean.next_queries() is None
    with pytest.raises(StateError):
        mean.tell(np.zeros((2, 1), dtype=bool))
    for options in (
        {"sigma": 0.0},
        {"sigma": (2.0, 1.0)},
        {"sigma": 1.0, "noise": "cauchy"},
        {"sigma": 1.0, "noise": 1.0},
        {"sigma": 1.0, "streams": 0},
        {"sigma": 1.0, "two_stages": True},
        {"sigma": (0.5, 1.0), "two_stages": True, "budget": 9000},
        {"sigma": 1e-9, "budget": 20},
    ):
        with pytest.raises(SpecError):
            OneBitMean(100.0, **options)


def test_gray_code_questions():
    samples = np.array([[-7.5, -0.5, 0.5, 7.5]])
    # Cells of width 1 from -8 on: 0, 7, 8, 15. Gray: 0000, 0100, 1100, 1000.
    for bit, wanted in ((0, [0, 0, 0]), (2, [0, 1, 1]), (3, [0, 0, 1])):
        bits_up_to_three = Queries(4, None, 1.0, -8.0, np.array([bit, bit, bit, 3]))
        found = bits_up_to_three.answer(samples)[0, :3].astype(int).tolist()
        assert found == wanted


@pytest.mark.parametrize("centre", [0.0, 0.7])
def test_threshold_densities_are_unbiased_with_the_variance_they_say(centre):
    generator = np.random.default_rng(4)
    for density in (ThresholdDensity.gaussian(1.0), ThresholdDensity.moment(2.5, 1.0, 50.0)):
        thresholds, weights = density.draw(generator.random(400_000))
        x = generator.standard_normal(400_000)
        values = np.where(thresholds >= 0, x > centre + thresholds, (x > centre + thresholds) - 1.0) * weights
        variance = density.variance(stats.norm.sf, centre)
        assert abs(values.mean() + centre) < 5 * math.sqrt(variance / 400_000)
        # Far thresholds that hit are rare and weigh much: the sample's variance has no variance of its own to speak of.
        assert values.var() == pytest.approx(variance, rel=0.1)
        # the density itself
        counts, edges = np.histogram(thresholds, 40, range=(-2, 2))
        middle = 0.5 * (edges[1:] + edges[:-1])
        one = 1 / np.interp(middle, np.sort(thresholds[::50]), weights[::50][np.argsort(thresholds[::50])])
        assert counts / 400_000 / (edges[1] - edges[0]) == pytest.approx(one, rel=0.15)
    assert ThresholdDensity.gaussian(1.0).variance(stats.norm.sf) == pytest.approx(3.40, rel=0.003)
    assert ThresholdDensity.gaussian(3.0).variance(lambda t: stats.norm.sf(t / 3)) == pytest.approx(9 * 3.398, rel=1e-3)
    for bad in ((1.0, 1.0, 5.0), (2.0, 1.0, 0.0), (2.0, -1.0, 1.0)):
        with pytest.raises(SpecError):
            ThresholdDensity.moment(*bad)


def test_information_of_thresholds_and_its_likelihood():
    assert fisher_information(np.zeros(1))[0] == pytest.approx(2 / math.pi)
    t = np.linspace(-3, 3, 13)
    exact = stats.norm.pdf(t) ** 2 / (stats.norm.cdf(t) * stats.norm.sf(t))
    assert fisher_information(t) == pytest.approx(exact, rel=1e-10)
    assert np.isfinite(fisher_information(np.array([-40.0, 40.0]))).all()
    assert spread_information() == pytest.approx(1.80639, abs=1e-4)
    table = ProbitTable(2)
    for threshold, yes in ((-1.0, (80, 10)), (0.5, (40, 2)), (30.0, (0, 0))):
        table.add(np.full((2, 1), threshold), 100, np.array(yes)[:, None])
    found = table.fit(np.zeros((2, 1)), np.ones((1, 1)))
    for row, yes in enumerate(((80, 40), (10, 2))):
        grid = np.linspace(-4, 4, 80001)
        log = sum(
            y * stats.norm.logcdf(grid - t) + (100 - y) * stats.norm.logsf(grid - t)
            for t, y in zip((-1.0, 0.5), yes, strict=True)
        )
        assert found[row, 0] == pytest.approx(grid[log.argmax()], abs=2e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_cells_rectangles_and_information(bits):
    boundaries, levels = lloyd_max_cells(bits)
    edges = np.concatenate([[-np.inf], boundaries, [np.inf]])
    p = np.diff(stats.norm.cdf(edges))
    assert 1 - p @ np.square(levels) == pytest.approx(LLOYD_MAX[bits], abs=1e-6)
    estimator = CosineEstimator(bits)
    assert estimator.fisher_information(0.0) == pytest.approx((1 - LLOYD_MAX[bits]) ** 2, abs=2e-6)
    rhos = np.array([-0.999, -0.6, 0.0, 0.3, 0.9, 0.999])
    tables = rectangle_probabilities(boundaries, rhos)
    assert (
        tables.min() >= 0
        and tables.sum((1, 2)) == pytest.approx(1.0)
        and tables.sum(2) == pytest.approx(np.tile(p, (6, 1)))
    )
    for rho, table in zip(rhos, tables, strict=True):
        law = stats.multivariate_normal(cov=[[1, rho], [rho, 1]])
        for i, j in ((0, 0), (len(boundaries) // 2, len(boundaries) - 1)):
            corner = law.cdf([boundaries[i], boundaries[j]])
            assert table[: i + 1, : j + 1].sum() == pytest.approx(corner, abs=1e-7)
    for rho in (-0.6, 0.3, 0.9):
        near = rectangle_probabilities(boundaries, np.array([rho - 1e-5, rho + 1e-5]))
        assert rectangle_slopes(boundaries, np.array([rho]))[0] == pytest.approx((near[1] - near[0]) / 2e-5, abs=1e-6)
    assert rectangle_probabilities(boundaries, np.array([1.0]))[0] == pytest.approx(np.diag(p), abs=1e-9)


def test_information_of_the_theory():
    assert CosineEstimator(1).fisher_information(0.0) == pytest.approx(4 / math.pi**2, abs=1e-9)
    for rho in (-0.5, 0.2, 0.5, 0.9):
        exact = (math.pi**2 / 4 - math.asin(rho) ** 2) * (1 - rho * rho)
        assert CosineEstimator(1).variance(rho) == pytest.approx(exact, rel=1e-9)
    assert CosineEstimator(1).variance(0.5) == pytest.approx(math.pi**2 / 6)
    for (bits, rho), value in TABLE.items():
        assert bits * CosineEstimator(bits).variance(rho) == pytest.approx(value, rel=0.003)
    whole = fisher_information_unquantised(np.array([0.5]))[0]
    assert 1 / whole == pytest.approx(0.75**2 / 1.25)
    assert [CosineEstimator(b).fisher_information(0.5) < whole for b in (1, 2, 3, 4)] == [True] * 4
    assert [best_bits(rho) for rho in (0.1, 0.5, 0.8, 0.95)] == [1, 2, 3, 4]
    assert best_bits(0.1, budget_bits=False) == 4
    for bad in (0, 5, True, 1.5):
        with pytest.raises(SpecError):
            CosineEstimator(bad)
    for rho in (1.0, -1.0, math.nan):
        with pytest.raises(SpecError):
            CosineEstimator(2).fisher_information(rho)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_maximum_likelihood_cosines(bits):
    estimator, m, repeats = CosineEstimator(bits), 2000, 1200
    generator = np.random.default_rng(6)
    for rho in (-0.7, 0.0, 0.9):
        x = generator.standard_normal((repeats, m))
        y = rho * x + math.sqrt(1 - rho * rho) * generator.standard_normal((repeats, m))
        counts = estimator.counts(estimator.cells(x), estimator.cells(y))
        assert counts.sum(1) == pytest.approx(m)
        found = estimator.maximum_likelihood(counts)
        assert found.var() / estimator.variance(rho, m) == pytest.approx(1.0, abs=0.19)  # 4.5 standard errors
        assert abs(found.mean() - rho) < 5 * found.std() / math.sqrt(repeats) + 1e-4
        naive = estimator.naive(counts)
        assert naive.mean() == pytest.approx(estimator.naive_limit(rho), abs=5 * naive.std() / math.sqrt(repeats))
        if rho:  # the control: codes read as numbers are off by far more than chance
            assert abs(naive.mean() - rho) > (20 if bits < 4 else 5) * naive.std() / math.sqrt(repeats)


def test_cosines_at_the_ends():
    for bits in (1, 2, 3, 4):
        estimator = CosineEstimator(bits)
        x = np.random.default_rng(7).standard_normal((1, 1024))
        same, opposite = (estimator.counts(estimator.cells(x), estimator.cells(s * x)) for s in (1, -1))
        assert estimator.maximum_likelihood(same)[0] == pytest.approx(1.0, abs=1e-4)
        assert estimator.maximum_likelihood(opposite)[0] == pytest.approx(-1.0, abs=1e-4)
    with pytest.raises(TensorError):
        estimator.counts(np.zeros((1, 4), np.uint8), np.zeros((1, 5), np.uint8))


def cosines(n, usual=0.6, **bad):
    found = np.full((n, n), usual)
    for rank, value in bad.items():
        found[int(rank[1:]), :] = found[:, int(rank[1:])] = value
    np.fill_diagonal(found, 1.0)
    return found


def test_who_stands_out():
    assert standing_out(cosines(4), np.ones(4), 0.03) == []
    (one,) = standing_out(cosines(4, r2=0.1), np.ones(4), 0.03)
    assert (one.rank, one.why, one.cosine, one.others) == (2, "cosine", pytest.approx(0.1), pytest.approx(0.6))
    assert standing_out(cosines(4, r2=0.5), np.ones(4), 0.03) == []  # within five standard errors
    assert standing_out(cosines(4, r2=0.5), np.ones(4), 0.003)[0].rank == 2
    assert [
        x.rank for x in standing_out(cosines(6, r2=0.0, r4=0.0), np.ones(6), 0.03)
    ] == []  # two of six: no majority of one
    assert standing_out(cosines(2, usual=0.0), np.ones(2), 0.03) == []  # who of two?
    (one,) = standing_out(cosines(3), np.array([1.0, 9.0, 1.0]), 0.03)
    assert (one.rank, one.why, one.norm) == (1, "norm", 9.0)
    (one,) = standing_out(cosines(3, r0=np.nan), np.array([np.nan, 1.0, 1.0]), 0.03)
    assert (one.rank, one.why) == (0, "not finite")
    assert standing_out(np.ones((1, 1)), np.ones(1), 0.03) == []
    assert standing_out(np.full((3, 3), np.nan), np.zeros(3), 0.03) == []  # all zero
    with pytest.raises(TensorError):
        standing_out(np.ones((2, 3)), np.ones(2), 0.03)


def test_sampling_noise_alone_names_nobody():
    """False alarms of the rule at the monitor's accuracy, over many looks at ranks that are alike."""
    estimator = CosineEstimator(2)
    generator = np.random.default_rng(12)
    error = math.sqrt(estimator.variance(0.0, 1024))
    alarms = 0
    for _ in range(60):
        shared = generator.standard_normal(1024)
        cells = [estimator.cells((0.6 * shared + 0.8 * generator.standard_normal(1024))[None, :]) for _ in range(4)]
        found = np.eye(4)
        for i in range(4):
            for j in range(i):
                found[i, j] = found[j, i] = estimator.maximum_likelihood(estimator.counts(cells[i], cells[j]))[0]
        alarms += len(standing_out(found, np.ones(4), error))
    assert alarms == 0
