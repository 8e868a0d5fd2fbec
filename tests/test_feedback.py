"""Error feedback: what is left out is sent later, to the last coordinate, and no step that failed leaves a trace."""

import dataclasses
import io

import pytest
import torch

from commpress.errors import StateError
from commpress.feedback import ErrorFeedback, Layout, merge_residuals

BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Key:
    phase: int
    sender: int


@dataclasses.dataclass(frozen=True)
class Coarse:
    """A biased codec: rounds down to multiples of 1/4 of the gained value, in one byte; code -128 is NaN."""

    lossless: bool = False

    def encode(self, x, key, *, gain=1.0):
        return (x * gain * 4).floor().clamp(-127, 127).nan_to_num(-128.0).to(torch.int8).view(torch.uint8)

    def decode(self, payload, key, *, out, accumulate=False, offset=0, gain=1.0, beta=1.0):
        code = payload.view(torch.int8).float()
        value = torch.where(code == -128, torch.nan, code / 4 * gain)
        return out.copy_(out * beta + value if accumulate else value)


def shards(numel, n):
    blocks = -(-numel // BLOCK)
    return [(min(numel, r * blocks // n * BLOCK), min(numel, (r + 1) * blocks // n * BLOCK)) for r in range(n)]


class World:
    """n ranks in one process that reduce buckets as the collective does, with one ErrorFeedback each."""

    def __init__(self, n, layouts, *, codec=Coarse()):
        self.n, self.codec, self.layouts, self.encoded = n, codec, layouts, 0
        self.ranks = [
            ErrorFeedback(codec, rank=r, world_size=n, shard=lambda numel, _, r=r: shards(numel, n)[r])
            for r in range(n)
        ]

    def step(self, gradients, *, commit=True, mean_residual=True, hold=()):
        """gradients[rank][name]. Returns the mean by name that all ranks get."""
        result = {}
        for rank in self.ranks:
            rank.arrange(self.layouts)
        for index, layout in enumerate(self.layouts):
            flat = [torch.cat([g[name] for name in layout.parameters]) for g in gradients]
            owners = shards(layout.numel, self.n)
            feed = [rank.bucket(index) if rank.active else None for rank in self.ranks]
            mean = torch.zeros(layout.numel)
            for r in range(self.n):
                if feed[r]:
                    feed[r].add_input(flat[r])
                for o, (start, stop) in enumerate(owners):
                    if o == r:
                        mean[start:stop] += flat[r][start:stop] / self.n
                        continue
                    payload, key = self.codec.encode(flat[r][start:stop], None, gain=1 / self.n), Key(1, r)
                    self.encoded += stop - start
                    if feed[r]:
                        feed[r].record_sent(flat[r], payload, key, start, stop)
                    self.codec.decode(payload, key, out=mean[start:stop], accumulate=True)
            for o, (start, stop) in enumerate(owners):
                if feed[o] and mean_residual:
                    feed[o].add_mean(mean, start, stop)
                payload, key = self.codec.encode(mean[start:stop], None), Key(2, o)
                if feed[o] and mean_residual:
                    feed[o].record_mean(mean, payload, key, start, stop)
                self.codec.decode(payload, key, out=mean[start:stop])
            for name, start, stop in layout.segments():
                result[name] = mean[start:stop].clone()
                if name in hold:
                    result[name].zero_()
                    for f in feed:
                        f.hold(start, stop)
        if commit:
            for rank in self.ranks:
                rank.commit()
        return result

    def owed(self):
        """By parameter: what the next mean would receive on top of the gradients."""
        owed = [rank.owed() for rank in self.ranks]
        return {name: sum(o[name] for o in owed) / self.n for name in owed[0]}


OLD = [Layout(("a", "b"), (13, 30)), Layout(("c",), (5,))]
NEW = [Layout(("c", "b"), (5, 30)), Layout(("a",), (13,))]


def gradients(n, seed):
    g = torch.Generator().manual_seed(seed)
    return [{k: torch.randn(s, generator=g) for k, s in (("a", 13), ("b", 30), ("c", 5))} for _ in range(n)]


def total(list_of_dicts):
    return {k: sum(d[k].double() for d in list_of_dicts) for k in list_of_dicts[0]}


def run(n, steps=6, **options):
    """The largest coordinate error of (sum of results + owed) against the sum of the true means."""
    world = World(n, OLD)
    true, got = [], []
    for t in range(steps):
        grads = gradients(n, t)
        true.append({k: v / n for k, v in total(grads).items()})
        got.append(world.step(grads, **options))
    assert world.encoded > 0 or n == 1
    want, have, owed = total(true), total(got), world.owed()
    return max(float((have[k] + owed[k] - want[k]).abs().max()) for k in want)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_what_was_sent_and_what_is_owed_add_up_to_the_true_means(n):
    assert run(n) < 1e-5


@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_the_phase_2_residual_they_do_not(n):
    assert run(n, mean_residual=False) > 0.1


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_new_layout_conserves_what_is_owed(n):
    world = World(n, OLD)
    for t in range(3):
        world.step(gradients(n, t))
    before = world.owed()
    assert max(float(v.abs().max()) for v in before.values()) > 0.05
    for rank in world.ranks:
        assert rank.arrange(NEW)
        assert not rank.arrange(NEW)
    after = world.owed()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-6)
    world.layouts = NEW
    more = world.step(gradients(n, 9))
    end, mean = world.owed(), total(gradients(n, 9))
    for name in before:
        want = (before[name] + mean[name] / n).float()
        torch.testing.assert_close(end[name] + more[name], want, rtol=1e-5, atol=1e-5)


def test_a_layout_of_other_parameters_is_refused():
    world = World(2, OLD)
    world.step(gradients(2, 0))
    with pytest.raises(StateError, match="'b'"):
        world.ranks[0].arrange([Layout(("a", "b"), (13, 31)), Layout(("c",), (5,))])
    with pytest.raises(StateError, match="'d'"):
        world.ranks[0].arrange([*OLD, Layout(("d",), (1,))])


def test_a_step_that_is_not_committed_leaves_no_trace():
    world, other = World(2, OLD), World(2, OLD)
    for w in (world, other):
        w.step(gradients(2, 0))
    before = world.owed()
    bad = gradients(2, 1)
    bad[0]["b"][3] = float("nan")
    spoilt = world.step(bad, commit=False)
    assert torch.isnan(spoilt["b"][3]), "the fault did not fire"
    assert all(torch.equal(world.owed()[k], before[k]) for k in before)
    for t in (2, 3):
        a, b = world.step(gradients(2, t)), other.step(gradients(2, t))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_held_parameter_keeps_its_residual_and_its_neighbours_do_not():
    world = World(2, OLD)
    world.step(gradients(2, 0))
    before = world.owed()
    grads = gradients(2, 1)
    for g in grads:
        g["b"].zero_()
    result = world.step(grads, hold=("b",))
    after = world.owed()
    assert torch.equal(after["b"], before["b"])
    assert before["b"].abs().max() > 0.05
    assert torch.equal(result["b"], torch.zeros(30))
    assert not torch.equal(after["a"], before["a"])


def test_a_lossless_codec_stores_nothing():
    rank = ErrorFeedback(Coarse(lossless=True), rank=0, world_size=2, shard=lambda n, _: (0, n))
    assert not rank.active
    assert not rank.arrange(OLD)
    assert rank.owed() == {}


def test_what_the_codec_hits_exactly_leaves_exactly_zero():
    world = World(4, OLD)
    world.step([{k: torch.full((s,), 4.0) for k, s in (("a", 13), ("b", 30), ("c", 5))} for _ in range(4)])
    assert world.encoded > 0
    assert all(torch.equal(v, torch.zeros_like(v)) for v in world.owed().values())


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_loaded_state_goes_on_bit_for_bit(n):
    world = World(n, OLD)
    for t in range(3):
        world.step(gradients(n, t))
    states = [through_a_file(rank.state_dict()) for rank in world.ranks]
    other = World(n, OLD)
    for rank, state in zip(other.ranks, states, strict=True):
        rank.load_state_dict(state)
    for t in (3, 4):
        a, b = world.step(gradients(n, t)), other.step(gradients(n, t))
        assert all(torch.equal(a[k], b[k]) for k in a)
    fresh = World(n, OLD).step(gradients(n, 3))
    assert any(not torch.equal(fresh[k], a[k]) for k in a), "the residuals made no difference: nothing was tested"


@pytest.mark.parametrize("new_size", [1, 2, 5])
def test_merged_states_pay_the_same_debt_in_a_world_of_another_size(new_size):
    world = World(3, OLD)
    for t in range(3):
        world.step(gradients(3, t))
    merged = through_a_file(merge_residuals([rank.state_dict() for rank in world.ranks]))
    other = World(new_size, OLD)
    for rank in other.ranks:
        rank.load_state_dict(merged)
    owed, want = other.owed(), world.owed()
    for name in want:
        torch.testing.assert_close(owed[name], want[name], rtol=1e-5, atol=1e-6)
    other.step(gradients(new_size, 5))


def test_states_that_do_not_fit_are_refused():
    world = World(2, OLD)
    world.step(gradients(2, 0))
    states = [rank.state_dict() for rank in world.ranks]
    with pytest.raises(StateError, match="rank 1"):
        world.ranks[0].load_state_dict(states[1])
    with pytest.raises(StateError, match="2 ranks, not of 3"):
        World(3, OLD).ranks[0].load_state_dict(states[0])
    with pytest.raises(StateError, match=r"ranks \[0, 0\]"):
        merge_residuals([states[0], states[0]])
    del states[0]["residuals"]["c"]
    with pytest.raises(StateError, match="'c'"):
        world.ranks[0].load_state_dict(states[0])
