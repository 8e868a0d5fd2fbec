"""What the codecs promise about their errors, measured; every test has a control that must fail it."""

import numpy as np
import pytest
import torch
from _inputs import normal

import commpress
from commpress import reference
from commpress.reference import _rates

KEYS = 64


def decoded(codec: object, x: torch.Tensor, keys: list[commpress.Key]) -> torch.Tensor:
    """(keys, numel), float64."""
    out = torch.empty(len(keys), x.numel())
    for row, key in zip(out, keys, strict=True):
        codec.decode(codec.encode(x, key), key, out=row)
    return out.to(torch.float64)


def keys_of(count: int, seed: int = 0) -> list[commpress.Key]:
    return [commpress.Key(seed=1000 * seed + 7, step=i) for i in range(count)]


def vnmse(x: torch.Tensor, y: torch.Tensor) -> float:
    x = x.to(torch.float64)
    return float(((y - x) ** 2).sum(1).mean() / (x**2).sum())


def lognormal(n: int, seed: int) -> np.ndarray:
    return (np.exp(normal(n, seed)) * np.sign(normal(n, seed + 1))).astype(np.float32)


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.5708), (2, 0.1331), (3, 0.03578), (4, 0.009592)])
@pytest.mark.parametrize(("make", "within"), [(normal, 0.02), (lognormal, 0.03)])
def test_distortion_of_hadamard_lloyd(bits, expected, make, within):
    codec = commpress.codec(f"hadamard+lloyd:{bits}")
    x = torch.from_numpy(make(2**18, 5))
    y = decoded(codec, x, keys_of(4))
    assert codec.payload_nbytes(x.numel()) * 8 <= (bits + 0.01) * x.numel()  # of a payload that is as small as it says
    assert vnmse(x, y) == pytest.approx(expected, rel=within)


def test_distortion_of_the_others():
    x = torch.from_numpy(normal(2**18, 5))
    assert 0.030 < vnmse(x, decoded(commpress.codec("uniform:4"), x, keys_of(4))) <= 0.040
    # theory: D of Lloyd-Max quantisers, and omega = D / (1 - D) where the estimate is made unbiased
    for bits, d in ((1, 0.363380), (2, 0.117482), (3, 0.034548), (4, 0.009501), (5, 0.002505), (6, 0.000644)):
        assert vnmse(x, decoded(commpress.codec(f"lloyd:{bits}"), x, keys_of(1))) == pytest.approx(d, rel=0.02)
        centroid = commpress.codec(f"hadamard+lloyd:{bits},scale=centroid")
        assert vnmse(x, decoded(centroid, x, keys_of(2))) == pytest.approx(d, rel=0.02)
    # one bit for each of a fraction p of the coordinates: (pi / 2) / p - 1
    for p in (0.5, 0.1, 0.01):
        y = decoded(commpress.codec(f"hadamard+lloyd:{p}"), x, keys_of(8))
        assert vnmse(x, y) == pytest.approx(np.pi / 2 / p - 1, rel=0.03)


def cases(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    spikes = np.zeros(n, np.float32)
    spikes[rng.permutation(n)[: max(1, min(3, n // 40))]] = [1.0, 0.6, 0.3][: max(1, min(3, n // 40))]
    equal = np.zeros(n, np.float32)
    equal[rng.permutation(n)[:33]] = 1
    return {
        "dense": normal(n, n),
        "lognormal": lognormal(n, n),
        "very heavy tails": (np.exp(3 * normal(n, n + 2)) * np.sign(normal(n, n))).astype(np.float32),
        "nearly empty": spikes,
        "33 equal spikes": equal,
        "spike in noise": spikes * np.float32(np.sqrt(n / 30)) + normal(n, n + 3),
        "constant": np.full(n, 0.7, np.float32),
        "ramp": np.linspace(-1, 2, n, dtype=np.float32),
        "tiny": (normal(n, n) * 1e-12).astype(np.float32),
    }


def steps_of(spec: str, x: np.ndarray) -> np.ndarray:
    """The step of each coordinate's group, float64, for `uniform` at one bit or more."""
    payload, parsed, steps, at = reference.encode(x, spec, keys_of(1)[0]), _rates.parse(spec), [], 0
    for _, index, n, _ in _rates.pieces(parsed, x.size, 0):
        for _, m, bits in _rates.code_runs(parsed, index, n):
            scale = np.array([int(payload[at]) << 16 | int(payload[at + 1]) << 24], np.uint32).view(np.float32)[0]
            steps.append(np.full(m, scale, np.float64))
            at += 2 + _rates.packed_nbytes(m, bits)
    assert at == payload.size
    return np.concatenate(steps)


def exact_vnmse(spec: str, x: np.ndarray) -> float:
    """Of `uniform` at two bits or more: sum of step^2 p (1 - p) over |x|^2."""
    x64, step = x.astype(np.float64), steps_of(spec, x)
    p = np.divide(x64, step, out=np.zeros_like(x64), where=step > 0) % 1
    return float((step**2 * p * (1 - p)).sum() / (x64**2).sum())


def bias_ratio(x: np.ndarray, y: torch.Tensor, least: float = 0.0) -> float:
    """|mean - x|^2 in units of vNMSE / keys |x|^2: 1 for an unbiased codec, give or take chance; the bar is 1.3.

    ``least`` is the vNMSE where it is known exactly: when rounding seldom goes the rare way, 64 keys may not show it.
    """
    t = torch.from_numpy(x).to(torch.float64)
    error = float(((y.mean(0) - t) ** 2).sum() / (t**2).sum())
    return error / (max(vnmse(t, y), least) / len(y))


UNBIASED = [f"{family}:{rate}" for family in ("uniform", "hadamard+lloyd") for rate in ("1", "2", "3", "4", "1.5", "8")]
UNBIASED += ["uniform:0.5", "hadamard+lloyd:0.5", "hadamard+lloyd:0.1"]


@pytest.mark.parametrize("spec", UNBIASED)
def test_no_bias(spec):
    """Where few coordinates carry the error chance alone would pass a fixed bar: the ratio's spread is allowed for."""
    codec = commpress.codec(spec)
    assert codec.unbiased
    for n in (12345, 4096, 1001, 300):
        for name, x in cases(n).items():
            y = decoded(codec, torch.from_numpy(x), keys_of(KEYS))
            error = y - torch.from_numpy(x).to(torch.float64)
            total = float((error**2).sum(1).mean())
            if total == 0:
                continue
            # The ratio has mean 1 and variance 2 tr(C^2) / tr(C)^2; tr(C^2) from products of different keys' errors.
            gram = error @ error.T
            off = gram - torch.diag(torch.diag(gram))
            spread = float(torch.sqrt(2 * (off**2).sum() / (KEYS * (KEYS - 1))) / total)
            least = exact_vnmse(spec, x) if spec.startswith("uniform") and codec.bits >= 2 else 0.0
            assert bias_ratio(x, y, least) <= 1.3 + 4 * spread, (n, name, bias_ratio(x, y, least), spread)
            if n == 12345 and name in ("dense", "lognormal"):
                assert bias_ratio(x, y) <= 1.3, name  # no allowance needed


@pytest.mark.parametrize("spec", ["hadamard+lloyd:1", "hadamard+lloyd:2", "hadamard+lloyd:0.05", "uniform:1"])
@pytest.mark.parametrize("n", [128, 300])
def test_no_bias_to_a_finer_measure(spec, n):
    """1500 keys, where a bias hidden by 64 would show: few non-zeros, short blocks, a handful of coordinates sent."""
    codec, count = commpress.codec(spec), 1500
    for name, x in cases(n).items():
        t = torch.from_numpy(x).to(torch.float64)
        y = decoded(codec, torch.from_numpy(x), keys_of(count))
        energy = float((t**2).sum())
        along = (y @ t) / energy  # the estimate's length along x; one with the wrong scale misses here first
        assert float(along.mean()) == pytest.approx(1, abs=5 * float(along.std()) / count**0.5 + 1e-6), name
        variance = float(((y - y.mean(0)) ** 2).sum()) / (count - 1)
        squared_bias = (float(((y.mean(0) - t) ** 2).sum()) - variance / count) / energy
        allowed = 0.3 * variance / energy / KEYS
        assert squared_bias <= 0.5 * allowed, (name, squared_bias, allowed)


def test_deterministic_rounding_fails_the_bias_test():
    x = normal(12345, 1)
    for spec in ("lloyd:2", "hadamard+lloyd:2,scale=centroid", "cast:bf16"):
        assert bias_ratio(x, decoded(commpress.codec(spec), torch.from_numpy(x), keys_of(KEYS))) > 2, spec
    # `uniform` itself, with its random words replaced by a half: rounding to nearest
    step = np.abs(x).max() / 7
    nearest = torch.from_numpy(np.rint(x / step) * step).to(torch.float64).repeat(KEYS, 1)
    assert bias_ratio(x, nearest) == pytest.approx(KEYS)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_variance_of_stochastic_rounding_is_exact(bits):
    """Given the input, E(y - x)^2 = step^2 p (1 - p), coordinate by coordinate: QSGD's conditional formula."""
    codec, count = commpress.codec(f"uniform:{bits}"), 2000
    x = normal(512 * 3, bits)
    y = decoded(codec, torch.from_numpy(x), keys_of(count)).numpy()
    x64 = x.astype(np.float64)
    step = steps_of(str(codec), x)
    if bits == 1:
        low, width = -step, 2 * step
    else:
        low, width = np.floor(x64 / step) * step, step
    p = (x64 - low) / width
    exact = width**2 * p * (1 - p)
    assert ((np.abs(y - low) < 1e-6 * step) | (np.abs(y - low - width) < 1e-6 * step)).all()
    assert ((y - x64) ** 2).mean(0).sum() == pytest.approx(exact.sum(), rel=0.01)
    # each coordinate's own frequency, as a chi-square over all of them
    z2 = (((y > low + width / 2).mean(0) - p) ** 2 * count / np.maximum(p * (1 - p), 1e-3))[p * (1 - p) > 1e-3]
    assert z2.size > 1000 and z2.mean() == pytest.approx(1, abs=0.2)


def test_roundings_of_different_coordinates_are_independent():
    """Coordinates share words, rotated: their errors must not be correlated, at any distance within a group."""
    codec, count, n = commpress.codec("uniform:4"), 3000, 512
    x = normal(n, 3)
    errors = decoded(codec, torch.from_numpy(x), keys_of(count)) - torch.from_numpy(x).to(torch.float64)
    errors = (errors / errors.std(0)).numpy()
    for distance in (1, 2, 15, 16, 17, 32, 48, 64, 128, 256):
        r = (errors[:, :-distance] * errors[:, distance:]).mean(0)
        assert np.abs(r).max() < 5.5 / count**0.5, distance
        assert (r**2).mean() * count == pytest.approx(1, abs=0.3), distance


@pytest.mark.parametrize("spec", ["uniform:2", "hadamard+lloyd:2", "hadamard+lloyd:0.3"])
def test_errors_of_different_keys_are_independent(spec):
    codec, n = commpress.codec(spec), 2**16
    x = torch.from_numpy(normal(n, 9))
    base = commpress.Key(seed=5, step=5, sender=5, tensor=5, phase=1)
    others = [
        base.replace(**{field: value}) for field in ("seed", "step", "sender", "tensor") for value in (4, 6, 5 + 2**20)
    ]
    others += [base.replace(phase=2), base.replace(seed=5 + 2**32), base.replace(seed=5 + 2**63)]
    errors = decoded(codec, x, [base, *others]) - x.to(torch.float64)
    errors /= errors.norm(dim=1, keepdim=True)
    gram = errors @ errors.T
    gram -= torch.diag(torch.diag(gram))
    assert float(gram.abs().max()) < 5.5 / n**0.5
    again = decoded(codec, x, [base]) - x.to(torch.float64)  # the control: the same key, the same error
    assert float(again[0] @ errors[0] / again.norm()) == pytest.approx(1)


def test_errors_of_different_blocks_are_independent():
    """The same values at another index of the tensor get other randomness."""
    for spec in ("uniform:2", "hadamard+lloyd:2", "hadamard+lloyd:0.3"):
        codec, key = commpress.codec(spec), commpress.Key(seed=1)
        x = torch.from_numpy(normal(4096, 2)).repeat(16)
        y = codec.decode(codec.encode(x, key), key, out=torch.empty(x.numel()))
        errors = (y - x).reshape(16, 4096).to(torch.float64)
        errors /= errors.norm(dim=1, keepdim=True)
        gram = errors @ errors.T - torch.eye(16, dtype=torch.float64)
        assert float(gram.abs().max()) < 5.5 / 64, spec


@pytest.mark.parametrize("bits", ["1", "2", "4", "0.5", "0.05"])
def test_feedback_converges_with_the_centroid_scale_and_not_with_the_unbiased_one(bits):
    """Also in the coordinates of a short rest: |x - y| <= |x| for every piece, so that what is left out is bounded."""
    n = 4096 + 128 + 77
    codec = commpress.codec(f"hadamard+lloyd:{bits}")
    left = {}
    for chosen in (codec.for_feedback(), codec):
        residual = torch.zeros(n)
        for step in range(60):
            total = torch.from_numpy(normal(n, step)) + residual
            key = commpress.Key(step=step)
            residual = total - chosen.decode(chosen.encode(total, key), key, out=torch.empty(n))
            if chosen is not codec:
                for part in (slice(0, 4096), slice(4096, 4224), slice(4224, n)):
                    assert residual[part].norm() <= 1.00001 * total[part].norm()
        left[chosen] = float(residual.norm() / n**0.5)
    assert left[codec.for_feedback()] < 3 * (1 / min(1, float(bits)))
    if float(bits) < 1:
        assert not left[codec] < 1e3  # grows without bound
