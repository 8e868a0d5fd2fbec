"""Noise shaping: what it multiplies by, when it begins, and what it does to a codec's error."""

import pytest
import torch

from commpress.codecs import Key, codec
from commpress.errors import SpecError, StateError
from commpress.feedback import Layout
from commpress.hooks._shaping import (
    EXPONENTS,
    Shaper,
    _blocks,
    _guess,
    _power,
    _ratio,
    _relative,
    _sum,
    check_exponent,
    exponent_of,
)

N = 3 * 4096 + 700


def sizes(seed=0, spread=1.5, numel=N):
    """Standard deviations that differ from coordinate to coordinate."""
    return torch.exp(spread * torch.randn(numel, generator=torch.Generator().manual_seed(seed)))


def gradients(scale, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(scale.numel(), generator=generator) for _ in range(count)]


def shaper_after(looks, exponent=0.75, numel=N):
    shaper = Shaper({"w": numel}, exponent)
    for mean in looks:
        shaper.look("w", mean)
        shaper.refresh()
    return shaper


def through(coder, x, key, weight):
    """Encoded and decoded with noise shaping."""
    return coder.decode(coder.encode(x / weight, key), key, out=torch.empty_like(x)) * weight


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_powers_by_square_roots(exponent):
    u = torch.logspace(-6, 6, 1001, dtype=torch.float32)
    assert torch.allclose(_power(u.clone(), exponent).double(), u.double() ** (exponent / 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("numel", [1, 2, 3, 7, 4095, 4096, 4097, 10_001])
def test_sums(numel):
    x = torch.rand(numel, generator=torch.Generator().manual_seed(numel))
    assert _sum(x) == pytest.approx(float(x.double().sum()), rel=1e-6)
    assert _blocks(x).tolist() == pytest.approx([float(b.double().sum()) for b in x.split(4096)], rel=1e-6)


@pytest.mark.parametrize("spread", [0.5, 0.8, 1.0])
def test_the_ratio_is_that_of_the_theory(spread):
    """(sum sqrt v)^2 / (d sum v) of each block."""
    scale = sizes(spread=spread, numel=1 << 19)
    rows = scale.double().square().view(-1, 4096)
    expected = float(rows.sqrt().sum(1).square().sum() / 4096 / rows.sum())
    assert _ratio(gradients(scale, 1)[0].square(), scale) == pytest.approx(expected, rel=0.03)


def test_the_error_follows_the_ratio():
    scale = sizes(numel=(1 << 17) + 1000, spread=1.0)
    x, key = gradients(scale, 1)[0], Key(seed=5)
    coder = codec("hadamard+lloyd:2")
    weight = _power(_relative(scale.square()), 0.5)
    forecast = _ratio(x.square(), _relative(scale.square()).sqrt())

    def error(w):
        return float((through(coder, x, key, w) - x).double().square().sum())

    assert forecast < 0.5
    assert error(weight) / error(torch.ones_like(x)) == pytest.approx(forecast, rel=0.05)


def test_every_coordinate_gets_the_error_of_its_size():
    scale = sizes(numel=1 << 16, spread=0.6)  # few come near the least u
    coder = codec("hadamard+lloyd:2")
    weight = _power(_relative(scale.square()), 1.0)
    large, small = scale > scale.quantile(0.9), scale < scale.quantile(0.1)
    for w, low, high in ((weight, 0.7, 1.5), (torch.ones_like(weight), 0.0, 0.1)):
        errors, energy = torch.zeros_like(scale), torch.zeros_like(scale)
        for step, x in enumerate(gradients(scale, 8)):
            errors += (through(coder, x, Key(seed=1, step=step), w) - x).square()
            energy += x.square()
        relative = [float(errors[group].sum() / energy[group].sum()) for group in (large, small)]
        assert low < relative[0] / relative[1] < high  # without shaping the noise is in the small ones


def test_no_bias():
    """The mean over keys comes near to x as fast as errors that are independent do; nearest rounding does not."""
    scale = sizes(numel=20_000, spread=1.0)
    x = gradients(scale, 1)[0]
    weight = _power(_relative(scale.square()), 0.75)
    for name, unbiased in (("hadamard+lloyd:1", True), ("lloyd:1", False)):
        decoded = [through(codec(name), x, Key(seed=3, step=k), weight) for k in range(64)]
        single = sum(float((y - x).square().sum()) for y in decoded) / 64
        mean = float((sum(decoded) / 64 - x).square().sum())
        assert (mean < 1.3 * single / 64) == unbiased


def test_it_begins_where_sizes_differ_and_only_there():
    assert shaper_after(gradients(sizes(), 8)).active
    assert not shaper_after(gradients(sizes(), 3)).active  # too early
    for seed in range(5):
        assert not shaper_after(gradients(torch.ones(N), 40, seed)).active
    heavy = [x.sign() * x.abs() ** 3 for x in gradients(torch.ones(N), 40)]
    assert not shaper_after(heavy).active  # heavy tails that are elsewhere each time are no sizes
    between = torch.repeat_interleave(torch.tensor([1.0, 9.0, 0.1]), 4096)
    assert not shaper_after(gradients(between, 20), numel=3 * 4096).active  # blocks have their own scales


@pytest.mark.parametrize("looks", [3, 7, 15, 40])
def test_what_guessing_costs(looks):
    """Coordinates that are all alike: the ratio that running second moments of so many looks give."""
    drawn = gradients(torch.ones(1 << 17), looks + 1)
    held = drawn[0].square()
    for number, x in enumerate(drawn[1:looks], 2):
        held += (x.square() - held) / min(number, 16)
    assert _ratio(drawn[-1].square(), _relative(held).sqrt()) == pytest.approx(_guess(looks), rel=0.025)


def test_it_begins_where_guessing_costs_more_than_it_gains_in_error():
    """Sizes that differ little: the total error grows, but the quiet coordinates are spared."""
    looks = gradients(sizes(spread=0.3, numel=1 << 16), 40)
    shaper = shaper_after(looks, numel=1 << 16)
    assert shaper.active and 0.9 < shaper.ratios["w"] < 0.98


def test_at_low_rates_every_layer_is_shaped():
    """There the noise in the means hides how coordinates differ."""
    alike = gradients(torch.ones(N), 4)
    for rate, active in ((0.25, True), (0.75, False), (2.0, False), (None, False)):
        shaper = Shaper({"w": N, "exact": N, "silent": N}, 1.0, rate)
        for mean in alike:
            shaper.look("w", mean)
            shaper.look("exact", mean)
            shaper.look("silent", torch.zeros(N))
            shaper.refresh(exact={"exact"})
        assert (shaper.weight("w") is not None) == active
        assert shaper.weight("exact") is None and shaper.weight("silent") is None


def test_it_ends_where_the_sizes_are_gone():
    shaper = shaper_after(gradients(sizes(), 8))
    for mean in gradients(torch.ones(N), 80, seed=4):
        shaper.look("w", mean)
        shaper.refresh()
    assert not shaper.active


@pytest.mark.parametrize("exponent", EXPONENTS[1:])
def test_shape_and_unshape(exponent):
    looks = gradients(sizes(), 8)
    shaper = shaper_after(looks, exponent)
    weight = shaper.weight("w")
    v = sum(x.double().square() for x in looks) / len(looks)
    assert torch.allclose(weight.double(), (v / v.mean() + 0.01) ** (exponent / 2), rtol=1e-5)
    bucket = shaper.bucket(Layout(("v", "w", "b"), (5, N, 3)))
    x = torch.randn(N + 8)
    y = x.clone()
    bucket.shape(y)
    assert torch.equal(y[:5], x[:5]) and torch.equal(y[-3:], x[-3:]) and torch.equal(y[5:-3], x[5:-3] / weight)
    for start, stop in ((0, N + 8), (0, 5), (2, 300), (N, N + 8), (700, 701)):
        assert torch.allclose(bucket.plain(start, y[start:stop]), x[start:stop], rtol=1e-6)
    assert bucket.plain(0, y[:5]).data_ptr() == y.data_ptr()
    bucket.unshape(y)
    assert torch.allclose(y, x, rtol=1e-6)


def test_when_it_looks():
    shaper = Shaper({"w": N}, 0.75)
    assert all(shaper.due(s) for s in range(9))
    assert not Shaper({"b": 4095}, 0.75).due(0)


def test_exact_layers_and_small_ones_are_left_alone():
    shaper = Shaper({"w": N, "b": 4095}, 0.75)
    for mean in gradients(sizes(), 8):
        shaper.look("w", mean)
        shaper.look("b", mean[:4095])
        shaper.look("elsewhere", mean)
    shaper.refresh()
    assert shaper.weight("w") is not None and shaper.weight("b") is None
    shaper.refresh(exact={"w"})
    assert shaper.weight("w") is None


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e18, 3e38])
def test_no_scale_to_speak_of(value):
    assert not shaper_after([torch.full((N,), value)] * 6).active


def test_a_layer_that_falls_silent_keeps_finite_weights():
    shaper = shaper_after(gradients(sizes(), 6))
    for _ in range(300):
        shaper.look("w", torch.zeros(N))
        shaper.refresh()
        weight = shaper.weight("w")
        assert weight is None or bool(torch.isfinite(weight).all() and (weight > 0).all())


def test_state():
    looks = gradients(sizes(), 12)
    whole, first = shaper_after(looks), shaper_after(looks[:7])
    again = Shaper({"w": N}, 0.75)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.weight("w"), first.weight("w"))
    for mean in looks[7:]:
        again.look("w", mean)
        again.refresh()
    assert torch.equal(again.weight("w"), whole.weight("w")) and again.ratios == whole.ratios
    with pytest.raises(StateError, match="other layers"):
        Shaper({"other": N}, 0.75).load_state_dict(first.state_dict())
    with pytest.raises(StateError, match="other layers"):
        Shaper({"w": N + 1}, 0.75).load_state_dict(first.state_dict())
    with pytest.raises(StateError, match=r"shaping 0\.75"):
        Shaper({"w": N}, 0.5).load_state_dict(first.state_dict())


@pytest.mark.parametrize("value", [-0.25, 0.3, 2, float("nan"), "1", None, True])
def test_exponents_that_square_roots_do_not_give(value):
    with pytest.raises(SpecError, match=r"shaping must be one of 0, 0\.25, 0\.5, 0\.75, 1"):
        check_exponent(value)


def test_defaults():
    for spec, expected in {
        "hadamard+lloyd:2": 0.75,
        "uniform:0.75": 0.75,
        "hadamard+bitshift:0.25,length=8": 1.0,
        "hadamard+lloyd:0.5": 1.0,
        "topk:0.01": 0.0,
        "ecsq:0.5": 0.0,
    }.items():
        assert exponent_of(None, codec(spec), with_feedback=False) == expected, spec
        assert exponent_of(None, codec(spec), with_feedback=True) == 0.0
    assert exponent_of(0.5, codec("uniform:0.25"), with_feedback=False) == 0.5
    with pytest.raises(SpecError, match="exclude each other"):
        exponent_of(0.5, codec("uniform:2"), with_feedback=True)
