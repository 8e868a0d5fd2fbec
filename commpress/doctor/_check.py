"""One check and its outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import final

STATUSES = ("ok", "warn", "fail")


@final
@dataclasses.dataclass(frozen=True)
class Check:
    """What was looked at, and what was found.

    Attributes:
        name: one word or two.
        status: "ok"; "warn": works, but slowly, or not in every use; "fail": does not work.
        text: what was found.
        remedy: how to mend it; empty if there is nothing to mend.
        host: where, in a group of several machines.
    """

    name: str
    status: str
    text: str
    remedy: str = ""
    host: str = ""


def ok(name: str, text: str) -> Check:
    """All is well."""
    return Check(name, "ok", text)


def warn(name: str, text: str, remedy: str) -> Check:
    """It works, but."""
    return Check(name, "warn", text, remedy)


def fail(name: str, text: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, "fail", text, remedy)


def worst(checks: Iterable[Check]) -> str:
    """The worst status among them; "ok" if there are none."""
    return max((check.status for check in checks), key=STATUSES.index, default="ok")
