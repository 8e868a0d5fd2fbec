"""A plan: how many bits each layer gets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, final

from commpress.allocation._objective import MICRO, OBJECTIVES
from commpress.errors import SpecError

FORMAT = 1


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """Rates of all layers. Frozen, and compared by value.

    Attributes:
        names: of the layers, in their order; each once.
        dims: coordinates of each layer.
        rates: bits per coordinate, multiples of 1e-6, from 0 (not sent) to 64.
        exact: which layers are sent without loss.
        objective: what the plan was made for.
        budget_bytes: the most bytes it might have used.
        planned_bytes: bytes it uses, by the cost it was made with; at most the budget.
        predicted: the objective's value, by the statistics it was made from; 0 before there were any.
        predicted_uniform: that of uniform rates within the same budget.

    Raises:
        SpecError: the fields are malformed or don't fit each other.
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    rates: tuple[float, ...]
    exact: tuple[bool, ...]
    objective: str
    budget_bytes: int
    planned_bytes: int
    predicted: float = 0.0
    predicted_uniform: float = 0.0

    def __post_init__(self) -> None:
        for name in ("names", "dims", "rates", "exact"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.names) == len(self.dims) == len(self.rates) == len(self.exact):
            raise SpecError("a plan has one name, size, rate and exact flag per layer")
        if not all(isinstance(name, str) for name in self.names) or len(set(self.names)) != len(self.names):
            raise SpecError("a plan's layers have names, each another one")
        if not all(_is_whole(d) and d >= 0 for d in self.dims):
            raise SpecError("a plan's dims are integers that are at least 0")
        if not all(isinstance(flag, bool) for flag in self.exact):
            raise SpecError("a plan's exact flags are booleans")
        if not all(isinstance(r, (int, float)) and not isinstance(r, bool) and 0 <= r <= 64 for r in self.rates):
            raise SpecError("a plan's rates are from 0 to 64 bits per coordinate")
        micro = tuple(round(r * MICRO) for r in self.rates)
        if any(abs(r * MICRO - m) > 1e-3 for r, m in zip(self.rates, micro, strict=True)):
            raise SpecError("a plan's rates are multiples of 1e-6 bits per coordinate")
        object.__setattr__(self, "rates", tuple(m / MICRO for m in micro))
        if self.objective not in (*OBJECTIVES, "time"):
            raise SpecError(f"unknown objective {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        if not _is_whole(self.budget_bytes) or not _is_whole(self.planned_bytes):
            raise SpecError("a plan's bytes are integers")
        if not 0 <= self.planned_bytes <= self.budget_bytes:
            raise SpecError(f"{self.planned_bytes} planned bytes exceed the budget of {self.budget_bytes}")
        for name in ("predicted", "predicted_uniform"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
                raise SpecError(f"{name} must be a number that is at least 0, got {value!r}")
            object.__setattr__(self, name, float(value))

    @property
    def micro_rates(self) -> tuple[int, ...]:
        """Rates in millionths of a bit per coordinate."""
        return tuple(round(r * MICRO) for r in self.rates)

    @property
    def bits(self) -> float:
        """Planned bits per coordinate over all layers; 0 without coordinates."""
        return 8.0 * self.planned_bytes / sum(self.dims) if sum(self.dims) else 0.0

    def digest(self) -> str:
        """BLAKE2b of what decides the bytes: names, sizes, rates in millionths, exact flags. 32 hexadecimal digits, equal on every machine."""
        state = hashlib.blake2b(b"commpress plan 1", digest_size=16)
        state.update(len(self.names).to_bytes(8, "little"))
        for name, d, micro, exact in zip(self.names, self.dims, self.micro_rates, self.exact, strict=True):
            text = name.encode("utf-8", "surrogatepass")
            state.update(len(text).to_bytes(8, "little") + text)
            state.update(d.to_bytes(8, "little") + micro.to_bytes(8, "little") + bytes([exact]))
        return state.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; an infinite prediction is the text "inf"."""
        fields: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self), "digest": self.digest()}
        for name, value in fields.items():
            if isinstance(value, tuple):
                fields[name] = list(value)
            elif isinstance(value, float) and math.isinf(value):
                fields[name] = "inf"
        return fields

    @classmethod
    def from_dict(
        cls, fields: Mapping[str, Any], *, names: Sequence[str] | None = None, dims: Sequence[int] | None = None
    ) -> Plan:
        """The plan that :meth:`to_dict` gave.

        Args:
            fields: in any order.
            names, dims: what the model has; None checks nothing.

        Raises:
            SpecError: ``fields`` is malformed, of another format, altered (the digest tells), or of another model.
        """
        if not isinstance(fields, Mapping):
            raise SpecError("this is no plan: not a JSON object")
        wanted = {field.name for field in dataclasses.fields(cls)} | {"format", "digest"}
        if set(fields) != wanted:
            raise SpecError(
                f"this is no plan: missing {sorted(wanted - set(fields))}, unknown {sorted(set(fields) - wanted)}"
            )
        if fields["format"] != FORMAT:
            raise SpecError(f"this plan has format {fields['format']!r}, readable is {FORMAT}")
        values = {name: fields[name] for name in wanted - {"format", "digest"}}
        for name in ("names", "dims", "rates", "exact"):
            if not isinstance(values[name], (list, tuple)):
                raise SpecError(f"this is no plan: {name} is not a list")
        for name in ("predicted", "predicted_uniform"):
            values[name] = math.inf if values[name] == "inf" else values[name]
        plan = cls(**values)
        if plan.digest() != fields["digest"]:
            raise SpecError(f"this plan was altered: its digest is {plan.digest()}, it says {fields['digest']}")
        plan.check(names, dims)
        return plan

    def check(self, names: Sequence[str] | None, dims: Sequence[int] | None) -> None:
        """SpecError that names the first difference, if the plan isn't one for these layers."""
        for what, mine, theirs in (("names", self.names, names), ("sizes", self.dims, dims)):
            if theirs is None or tuple(theirs) == mine:
                continue
            if len(theirs) != len(mine):
                raise SpecError(f"the plan has {len(mine)} layers, the model {len(theirs)}")
            i = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            raise SpecError(f"the plan's {what} differ from the model's at layer {i}: {mine[i]!r}, not {theirs[i]!r}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; the file at ``path`` is replaced in one step. OSError as usual."""
        target = pathlib.Path(path)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, target)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, names: Sequence[str] | None = None, dims: Sequence[int] | None = None
    ) -> Plan:
        """Reads what :meth:`save` wrote; arguments and errors as in :meth:`from_dict`, OSError if there is no such file."""
        try:
            fields = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise SpecError(f"{os.fspath(path)} is no plan: {error}") from None
        return cls.from_dict(fields, names=names, dims=dims)

    def table(self) -> str:
        """One line per layer (name, coordinates, bits per coordinate, share of all bits), and a line for all."""
        bits = [d * m for d, m in zip(self.dims, self.micro_rates, strict=True)]
        width = max([5, *(len(name) for name in self.names)])
        lines = [f"{'layer':<{width}} {'coordinates':>13} {'bits':>10} {'share':>7}"]
        for name, d, rate, exact, mine in zip(self.names, self.dims, self.rates, self.exact, bits, strict=True):
            shown = "exact" if exact else f"{rate:.6g}"
            lines.append(f"{name:<{width}} {d:>13} {shown:>10} {mine / max(1, sum(bits)):>7.1%}")
        lines.append(f"{'all':<{width}} {sum(self.dims):>13} {self.bits:>10.6g} {1:>7.1%}")
        lines.append(
            f"{self.objective}: {self.planned_bytes} of {self.budget_bytes} bytes, predicted {self.predicted:.6g}, "
            f"uniform {self.predicted_uniform:.6g}, digest {self.digest()}"
        )
        return "\n".join(lines)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
