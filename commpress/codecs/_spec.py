"""The spec grammar: ``[transform+]family[:argument][,option=value...]``."""

from __future__ import annotations

import dataclasses
import decimal

from commpress.errors import SpecError

RATE_ONE = 1_000_000  # a rate is held in millionths of a bit


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec; ``str`` gives its canonical text."""

    family: str
    argument: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        head = self.family if self.argument is None else f"{self.family}:{self.argument}"
        return ",".join([head, *(f"{name}={value}" for name, value in self.options)])


def parse(text: str) -> Spec:
    """Splits a spec into its parts; what they mean is for the family to say.

    Raises:
        SpecError: the text does not follow the grammar.
    """
    if not isinstance(text, str):
        raise SpecError(f"a codec spec is a string such as 'hadamard+lloyd:2', got {type(text).__name__}")
    head, *options = text.strip().split(",")
    family, colon, argument = head.partition(":")
    if not family or (colon and not argument) or len(text) > 200:
        raise SpecError(
            f"malformed codec spec {text!r}: write [transform+]family[:bits][,option=value...], for example 'hadamard+lloyd:2'"
        )
    pairs = []
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise SpecError(f"malformed option {option!r} in codec spec {text!r}: write name=value")
        pairs.append((name.strip(), value.strip()))
    if len({name for name, _ in pairs}) < len(pairs):
        raise SpecError(f"an option is given twice in codec spec {text!r}")
    return Spec(family.strip(), argument.strip() if colon else None, tuple(sorted(pairs)))


def parse_rate(spec: Spec) -> int:
    """The bits argument in millionths of a bit per coordinate.

    Raises:
        SpecError: it is missing, not a number in (0, 8], or has more than six decimals.
    """
    try:
        value = decimal.Decimal(spec.argument or "")
    except decimal.InvalidOperation:
        raise SpecError(f"{str(spec)!r} needs a number of bits per coordinate, for example '{spec.family}:2'") from None
    scaled = value * RATE_ONE if value.is_finite() else decimal.Decimal(0)
    return check_rate(int(scaled) if scaled == scaled.to_integral_value() else 0, str(spec))


def check_rate(rate: int, spec: str) -> int:
    """``rate`` itself. Raises SpecError if it is not from 1 to 8,000,000 millionths of a bit."""
    if not 1 <= rate <= 8 * RATE_ONE:
        raise SpecError(f"bits per coordinate must lie in (0, 8] with at most six decimals, in {spec!r}")
    return rate


def format_rate(rate: int) -> str:
    """Canonical decimal text of a rate."""
    return format((decimal.Decimal(rate) / RATE_ONE).normalize(), "f")
