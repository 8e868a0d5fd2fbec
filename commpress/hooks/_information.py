"""The record of how much information a step's bits carried, against the Gaussian limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from commpress import information
from commpress.hooks._statistics import LayerStatistics
from commpress.hooks._sums import total_captured


def information_record(
    statistics: LayerStatistics,
    names: list[str],
    dims: np.ndarray,
    bits: np.ndarray,
    rates: tuple[float, float, float],
    *,
    memory: str | None,
    extra_bytes: int,
) -> dict[str, Any]:
    """What telemetry says of a sampled step.

    A message about ``x = theta + noise`` with captured fraction G is, after scaling, x plus an error of variance ``(1/G - 1) e``, e the mean square of what
    was encoded (x, or less if it was predicted). So it carries
    ``d / (s + (1/G - 1) e)`` of the trace of Fisher information about theta, which is ``(d/s) G`` where theta is small beside the noise (theory: Barnes, Han, Ozgur 2021).

    Args:
        statistics: of the step. names, dims: of the layers. bits: payload bits per coordinate of each.
        rates: bits per coordinate sent by this rank: payloads of phase 1, of phase 2, and everything on the wire.
        memory: what the encoder remembers ("error feedback", "prediction"), which lifts the memoryless limit; or None.
        extra_bytes: what this rank sent to gather the statistics.
    """
    g1, s, e = statistics.captured1, statistics.variances, statistics.encoded
    usable = np.isfinite(g1) & np.isfinite(s) & (s > 0) & (g1 > 0)
    effective = np.where(usable, 0.0, np.nan)
    effective[usable] = s[usable] / (s[usable] + (1 / g1[usable] - 1) * e[usable])
    together: dict[str, Any] = {"achieved": None, "allocated": None, "optimum": None}
    together |= {"eta_codec": None, "eta_alloc": None}
    if usable.any():
        found = information.achieved_information(dims[usable], s[usable], bits[usable], effective[usable])
        together = {name: value for name, value in found.as_dict().items() if name != "binding"}
    phases: dict[str, dict[str, Any]] = {}
    for phase in (1, 2):
        g, r = total_captured(statistics.table, phase), rates[phase - 1]
        phases[f"phase{phase}"] = {
            "captured": g,
            "rate": r,
            "eta": _eta(g, r),
        }
    one, two = phases["phase1"], phases["phase2"]
    limits = [information.fisher_fraction(phase["rate"]) for phase in (one, two)]
    found_both = [phase["captured"] for phase in (one, two)]
    if statistics.passed_on:  # half of the coordinates each, and nothing is quantised twice
        both, limit = sum(found_both) / 2, sum(limits) / 2
    else:
        both, limit = found_both[0] * found_both[1], limits[0] * limits[1]
    return (
        {
            "label": "of the Gaussian limit",
            "binding": f"with memory ({memory})" if memory else "memoryless",
            "world_size": statistics.world_size,
        }
        | together
        | {
            "rate_payload": (one["rate"] + two["rate"]) / 2,
            "rate_wire": rates[2],
            "extra_bytes": extra_bytes,
        }
        | phases
        | {
            "together": {
                "captured": both,
                "rate": one["rate"] + two["rate"],
                "eta": both / limit if limit else None,
            },
            "layers": [
                {
                    "name": name,
                    "numel": int(dims[i]),
                    "bits": float(bits[i]),
                    "variance": float(s[i]),
                    "captured": float(g1[i]),
                    "captured2": float(statistics.captured2[i]),
                    "eta": _eta(float(g1[i]), float(bits[i])),
                }
                for i, name in enumerate(names)
            ],
        }
    )


def _eta(g: float, rate: float) -> float | None:
    return information.efficiency(g, rate) if g == g and rate > 0 else None
