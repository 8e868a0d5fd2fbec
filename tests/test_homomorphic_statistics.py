"""`homomorphic`: the mean's error against step^2 / (12 n), unbiasedness, independence between workers; each with a control that fails."""

import numpy as np
import pytest
import torch
from _homomorphic import mean_of
from _inputs import normal

import commpress

NUMEL = 1 << 18


def relative_mse(spec: str, n: int, seed: int, senders: list[int] | None = None, alike: bool = False) -> float:
    """The mean's squared error over step^2 / (12 n)."""
    inputs = [torch.from_numpy(normal(NUMEL, 0 if alike else 100 * seed + i)) for i in range(n)]
    got, step = mean_of(commpress.codec(spec), inputs, commpress.Key(seed=seed, step=3), senders)
    true = np.mean([x.double().numpy() for x in inputs], axis=0)
    return float(np.mean((got.double().numpy() - true) ** 2) / np.mean(step**2 / (12 * n)))


@pytest.mark.parametrize("spec", ["homomorphic:1", "homomorphic:2,block=4096", "homomorphic:4", "homomorphic:8"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_mse_of_the_mean(spec, n):
    """2^18 coordinates: one standard deviation is below 0.4 %."""
    assert abs(relative_mse(spec, n, seed=n) - 1) < 0.02


def test_equal_inputs_do_not_add_up_their_errors():
    """Pairwise independent dithers suffice for the variance, whatever the inputs."""
    assert abs(relative_mse("homomorphic:3", 4, seed=1, alike=True) - 1) < 0.02


def test_controls_of_the_mse():
    assert (
        relative_mse("homomorphic:4", 4, seed=1, senders=[0, 0, 0, 0]) > 1.5
    )  # dithers that the decoder does not know
    stochastic = relative_mse("homomorphic:4,rounding=stochastic", 4, seed=1)
    assert abs(stochastic - 2) < 0.06  # p (1 - p) is 1/6 of a step squared on average
    assert relative_mse("homomorphic:1,rounding=stochastic", 2, seed=1) > 2.5  # far from uniform within a step


@pytest.mark.parametrize("spec", ["homomorphic:1", "homomorphic:4", "homomorphic:3,rounding=stochastic"])
def test_unbiased(spec):
    """The mean over keys approaches the input at the rate of independent errors: a chi-square of 4096 degrees, 5 sigma = 11 %."""
    n, keys, numel = 3, 400, 4096
    inputs = [torch.from_numpy(normal(numel, i) ** 3) for i in range(n)]
    codec = commpress.codec(spec)
    true = np.mean([x.double().numpy() for x in inputs], axis=0)
    errors = np.stack(
        [mean_of(codec, inputs, commpress.Key(seed=7, step=k))[0].double().numpy() - true for k in range(keys)]
    )

    def ratio(errors: np.ndarray) -> float:
        return float(np.sum(errors.mean(0) ** 2) / (np.sum(errors.var(0)) / keys))

    assert ratio(errors) < 1.12
    assert ratio(errors + 0.2 * errors.std(0)) > 5  # control: a bias of a fifth of an error's deviation shows


def test_workers_dithers_are_pairwise_uncorrelated():
    codec, numel = commpress.codec("homomorphic:2"), 1 << 16
    x = torch.from_numpy(normal(numel))
    errors = {}
    for sender in (0, 1, 2, 3, 258, 1024):
        key = commpress.Key(sender=sender, phase=1)
        errors[sender] = (codec.decode(codec.encode(x, key), key, out=torch.empty(numel)) - x).double().numpy()
    for i in errors:
        for j in errors:
            correlation = np.corrcoef(errors[i], errors[j])[0, 1]
            assert correlation > 0.999 if i == j else abs(correlation) < 5 / numel**0.5, (i, j)
