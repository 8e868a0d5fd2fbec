"""An optimizer whose states live in a codec's format between steps."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, final

import torch

from commpress.codecs import Codec, Key
from commpress.codecs import codec as make_codec
from commpress.errors import SpecError, StateError, TensorError
from commpress.optim._schedule import MantissaSchedule

Format: TypeAlias = "str | Codec | MantissaSchedule"
_FORMAT = 1
_PHASE = 3  # of keys: 1 and 2 are a collective's
_NAME_BITS = 12  # of a key's tensor number: which state
_OCTAVES = 64
# States under a root or in a denominator, by a setting that tells which optimizers have them: one that is rounded to zero makes a step without bound.
_DIVISORS = {
    "betas": ("exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
    "alpha": ("square_avg",),
    "rho": ("square_avg", "acc_delta"),
    "lr_decay": ("sum",),
}
_ALL_DIVISORS = frozenset(name for names in _DIVISORS.values() for name in names)


class _Packed:
    """One state of one parameter: its bytes, and what is needed to read them."""

    __slots__ = ("codec", "dtype", "payload", "step")

    def __init__(self, payload: torch.Tensor, codec: Codec, step: int, dtype: torch.dtype) -> None:
        self.payload, self.codec, self.step, self.dtype = payload, codec, step, dtype


@final
class PackedStates(torch.optim.Optimizer):
    """Keeps an optimizer's states as payloads of a codec, so that they take the codec's bytes.

    States with the shape of their parameter are packed: Adam's moments, the momentum of SGD and Muon. At a step they are decoded, a part of the model at a time, updated by the
    optimizer itself in the states' own dtype, and encoded again. With stochastic rounding (`float:eXmY`, the default of that codec) a running average is right on average however
    small its steps are; rounded to nearest it sticks once (1 - beta) v is less than half a unit in the last place.

    Use it wherever the optimizer was: learning-rate schedulers, gradient clipping and ``zero_grad`` work on it. All randomness comes from seed, step, parameter and state
    alone, so replicas with equal gradients keep equal bytes, and a run that is loaded from ``state_dict()`` continues with the same ones.

    Args:
        optimizer: a torch optimizer that treats each parameter by itself: AdamW, SGD with momentum, Muon and the like; not LBFGS. It must not be stepped by anybody else.
        states: the format: a spec, a codec, or a :class:`MantissaSchedule`; or a mapping from a state's name to one of these, "*" for all others. What is not named stays as it is.
        seed: 63 bits, equal on all replicas.
        chunk: coordinates of the parameters that are decoded at a time, at least one parameter. What a step needs for a while is two or three float32 for each.

    Raises:
        SpecError: the optimizer is not of that kind; a format is malformed, needs other ranks or side information; or one for a second moment cannot hold one: such a state spans
            dozens of octaves and must not become zero or negative, so its format needs multiplicative noise and 7 or 8 bits of exponent.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        states: Format | Mapping[str, Format] = "float:e8m9",
        *,
        seed: int = 0,
        chunk: int = 1 << 22,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, (torch.optim.LBFGS, PackedStates)):
            raise SpecError(
                f"PackedStates needs a torch optimizer that treats parameters one by one, such as torch.optim.AdamW, got {type(optimizer).__name__}"
            )
        if chunk < 1:
            raise SpecError(f"chunk must be at least 1, got {chunk}")
        named = states if isinstance(states, Mapping) else {"*": states}
        self._formats = {name: _checked(one) for name, one in named.items()}
        if not self._formats:
            raise SpecError('states names no format: give one, such as "float:e8m9"')
        for setting, names in _DIVISORS.items():
            if setting in optimizer.defaults:
                used = names[2:] if isinstance(optimizer, torch.optim.Adamax) else names[:2]
                for name in used:
                    _check_divisor(name, self._format(name, 0))
        self._key = Key(seed=seed, phase=_PHASE)
        self._inner, self._chunk, self._count = optimizer, chunk, 0
        self._packed: dict[torch.Tensor, dict[str, _Packed]] = {}
        self._ready = False
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._ready = True
        self._share()
        self._pack(self._parameters(), 0)

    # -- what an optimizer does

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of all states as they are kept: payloads, and what is not packed."""
        packed = sum(one.payload.numel() for states in self._packed.values() for one in states.values())
        plain = (v for state in self._inner.state.values() for v in state.values() if isinstance(v, torch.Tensor))
        return packed + sum(v.numel() * v.element_size() for v in plain)

    @property
    def plain_nbytes(self) -> int:
        """Bytes that the same states would take without packing."""
        packed = (one.dtype.itemsize * p.numel() for p, states in self._packed.items() for one in states.values())
        plain = (v for state in self._inner.state.values() for v in state.values() if isinstance(v, torch.Tensor))
        return sum(packed) + sum(v.numel() * v.element_size() for v in plain)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimizer on every parameter that has a gradient. Returns what the closure, which is called once, returns.

        Raises:
            TensorError: a parameter is of a kind that no codec reads (sharded, complex), or on a device for which the codec has no kernels. Nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = list(self._inner.param_groups)
        parts = list(self._parts())
        for _, parameters in parts:
            self._check(parameters)
        try:
            for group, parameters in parts:
                self._step_on(group, parameters)
        finally:
            self._inner.param_groups[:] = groups
        self._count += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        self._inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        if self._ready:
            self._inner.add_param_group(param_group)
            self._share()
        else:  # from torch's constructor
            super().add_param_group(param_group)

    def unpacked(self, parameter: torch.Tensor) -> dict[str, Any]:
        """A parameter's states, decoded; copies."""
        found = dict(self._inner.state.get(parameter, {}))
        for name, one in self._packed.get(parameter, {}).items():
            found[name] = self._decoded(parameter, name, one)
        return found

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own ``state_dict``, whose packed states stand apart as payloads: ``torch.load(..., weights_only=True)`` reads it, and a run that loads it continues to the bit."""
        packed = {
            self._numbers[p]: {
                name: {
                    "payload": one.payload.clone(),
                    "codec": str(one.codec),
                    "step": one.step,
                    "dtype": str(one.dtype).removeprefix("torch."),
                }
                for name, one in states.items()
            }
            for p, states in self._packed.items()
        }
        mine = {"format": _FORMAT, "steps": self._count, "seed": self._key.seed, "packed": packed}
        return {**self._inner.state_dict(), "commpress": mine}

    def plain_state_dict(self) -> dict[str, Any]:
        """What the optimizer alone would have saved, for going on without packing."""
        content = self._inner.state_dict()
        for p, states in self._packed.items():
            decoded = {name: self._decoded(p, name, one) for name, one in states.items()}
            content["state"][self._numbers[p]] = {**content["state"].get(self._numbers[p], {}), **decoded}
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`: of this class, or of the plain optimizer, whose states are packed then. The formats from now on are those of this object.

        Raises:
            StateError: it is of another version or seed, or of other parameters.
        """
        content = dict(state_dict)
        mine = content.pop("commpress", None)
        if mine is not None:
            if mine.get("format") != _FORMAT or mine.get("seed") != self._key.seed:
                raise StateError(
                    f"the saved states have format {mine.get('format')} and seed {mine.get('seed')}, this optimizer {_FORMAT} and {self._key.seed}"
                )
            packed = self._read(mine["packed"])
        try:
            self._inner.load_state_dict(content)
        except (ValueError, KeyError) as error:
            raise StateError(f"the saved states are of another optimizer: {error}") from error
        self._share()
        if mine is None:
            self._packed.clear()
            self._pack(self._parameters(), self._count)
        else:
            self._packed, self._count = packed, int(mine["steps"])

    # -- inside

    def _share(self) -> None:
        # One list of groups, that of the optimizer: a scheduler that sets a learning rate here sets it there.
        self.param_groups, self.state = self._inner.param_groups, self._inner.state
        self._numbers = {p: i for i, p in enumerate(self._parameters())}

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._inner.param_groups for p in group["params"]]

    def _step_on(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """The optimizer's own code, on these parameters of a group alone."""
        part = {**group, "params": parameters}
        self._inner.param_groups[:] = [part]
        try:
            for p in parameters:
                for name, one in self._packed.get(p, {}).items():
                    self._inner.state[p][name] = self._decoded(p, name, one)
            self._inner.step()
            group.update({name: value for name, value in part.items() if name != "params"})  # what it changes there
            self._pack(parameters, self._count + 1)
        finally:
            for p in parameters:
                for name in self._packed.get(p, {}):
                    self._inner.state[p].pop(name, None)

    def _parts(self) -> Iterator[tuple[dict[str, Any], list[torch.Tensor]]]:
        """Group by group, parameters with a gradient, about `chunk` coordinates at a time."""
        for group in list(self._inner.param_groups):
            part: list[torch.Tensor] = []
            numel = 0
            for p in group["params"]:
                if p.grad is None:
                    continue
                if part and numel + p.numel() > self._chunk:
                    yield group, part
                    part, numel = [], 0
                part.append(p)
                numel += p.numel()
            if part:
                yield group, part

    def _format(self, name: str, step: int) -> Codec | None:
        one = self._formats.get(name, self._formats.get("*"))
        return one.codec(step) if isinstance(one, MantissaSchedule) else one

    def _key_of(self, p: torch.Tensor, name: str, step: int) -> Key:
        which = zlib.crc32(name.encode()) % (1 << _NAME_BITS)
        return self._key.replace(step=step, tensor=self._numbers[p] << _NAME_BITS | which)

    def _check(self, parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if type(p) not in (torch.Tensor, torch.nn.Parameter) or not p.dtype.is_floating_point:
                raise TensorError(
                    f"PackedStates takes plain floating-point parameters, got {type(p).__name__} of {p.dtype}: leave sharded and complex ones to an optimizer of their own"
                )
            for name in self._formats:
                codec = self._format(name, self._count)
                if codec is not None and not codec.runs_on(p.device):
                    raise TensorError(f"a parameter is on {p.device}, where {codec} has no kernels in this build")

    def _pack(self, parameters: list[torch.Tensor], step: int) -> None:
        for p in parameters:
            state = self._inner.state.get(p, {})
            for name in list(state):
                value, codec = state[name], self._format(name, step)
                if codec is None or not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
                    continue
                if value.shape != p.shape or not p.dim():  # a step's number, a factor
                    continue
                if name in _ALL_DIVISORS:
                    _check_divisor(name, codec)
                before = self._packed.setdefault(p, {}).get(name)
                room = before.payload if before is not None and before.codec == codec else None
                payload = codec.encode(value, self._key_of(p, name, step), out=room)
                self._packed[p][name] = _Packed(payload, codec, step, value.dtype)
                del state[name]

    def _decoded(self, p: torch.Tensor, name: str, one: _Packed) -> torch.Tensor:
        out = torch.empty_like(p, dtype=one.dtype, requires_grad=False)
        return one.codec.decode(one.payload, self._key_of(p, name, one.step), out=out)

    def _read(self, saved: Mapping[int, Mapping[str, Any]]) -> dict[torch.Tensor, dict[str, _Packed]]:
        parameters = self._parameters()
        found: dict[torch.Tensor, dict[str, _Packed]] = {}
        for index, states in saved.items():
            if not 0 <= index < len(parameters):
                raise StateError(f"the saved states are of {index + 1} parameters or more, here are {len(parameters)}")
            p = parameters[index]
            found[p] = {}
            for name, one in states.items():
                codec, dtype, payload = make_codec(one["codec"]), getattr(torch, one["dtype"]), one["payload"]
                nbytes = codec.payload_nbytes(p.numel(), dtype=dtype)
                if payload.dtype != torch.uint8 or payload.numel() != nbytes:
                    raise StateError(
                        f"the saved {name} of parameter {index} has {payload.numel()} bytes, this parameter's {nbytes}: it is of another model"
                    )
                found[p][name] = _Packed(payload.to(p.device).clone(), codec, int(one["step"]), dtype)
        return found


def _checked(one: Format) -> Codec | MantissaSchedule:
    if isinstance(one, MantissaSchedule):
        return one
    codec = make_codec(one)
    if codec.needs_side:
        raise SpecError(f"{codec} decodes with side information, which an optimizer's state has not")
    codec.payload_nbytes(1)  # raises SpecError if it has no payload of one rank's own
    return codec


@functools.lru_cache(maxsize=64)
def _holds_divisors(codec: Codec) -> bool:
    """Whether values over dozens of octaves that share a block come back within a factor of two."""
    if codec.noise not in ("multiplicative", "none"):
        return False
    x = torch.exp2(-torch.arange(_OCTAVES, dtype=torch.float32))
    y = codec.decode(codec.encode(x, Key()), Key(), out=torch.empty_like(x))
    return bool(((y >= 0.5 * x) & (y <= 2.0 * x)).all())


def _check_divisor(name: str, codec: Codec | None) -> None:
    if codec is not None and not _holds_divisors(codec):
        raise SpecError(
            f"{codec} cannot hold {name}, whose values span dozens of octaves and are divided by: one that is rounded to zero makes a step without bound. "
            'Use floats with 7 or 8 bits of exponent for it (float:e8m9), as in states={"exp_avg": "int8", "exp_avg_sq": "float:e8m9"}'
        )
