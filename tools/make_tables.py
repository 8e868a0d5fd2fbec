"""Writes the Lloyd-Max tables of N(0,1): csrc/kernels/tables.h and commpress/codecs/_tables.py.

Run it from the repository's root: ``python tools/make_tables.py``. Both files are committed, since their values belong to the wire format.
The quantiser of 2^b levels is symmetric: only its positive half is stored. ``levels`` are cell centroids, ``thresholds`` the midpoints between them
(Max 1960, Lloyd 1982), found by Newton's method in double precision.
"""

import math
import pathlib

import numpy as np

MAX_BITS = 8


def density(t: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)


def upper_tail(t: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(v / math.sqrt(2)) for v in t])


def centroids(levels: np.ndarray) -> np.ndarray:
    """E[X | X in the cell of each level]; cells are bounded by midpoints, the first begins at 0, the last ends at infinity."""
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2])
    mass = upper_tail(edges) - np.append(upper_tail(edges[1:]), 0.0)
    moment = density(edges) - np.append(density(edges[1:]), 0.0)
    return moment / mass


def lloyd_max(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive levels (2^(bits-1)) and the thresholds between them (one fewer)."""
    count = 1 << (bits - 1)
    # Panter and Dite: the point density goes as density^(1/3), that is N(0, 3).
    grid = np.linspace(0, 12, 200001)
    cumulative = np.cumsum(np.exp(-grid * grid / 6))
    levels = np.interp((np.arange(count) + 0.5) / count, cumulative / cumulative[-1], grid)
    for _ in range(60):
        gap = centroids(levels) - levels
        jacobian = np.empty((count, count))
        for j in range(count):
            step = 1e-6
            moved = levels.copy()
            moved[j] += step
            jacobian[:, j] = ((centroids(moved) - moved) - gap) / step
        change = np.linalg.solve(jacobian, -gap)
        levels = levels + change
        if np.abs(change).max() < 1e-13:
            break
    return levels, (levels[1:] + levels[:-1]) / 2


def cells(thresholds: np.ndarray) -> tuple[int, int]:
    """Number of cells and cells per sigma of the search table: every cell holds at most one threshold, away from the cell's edges."""
    size = 16
    while True:
        for per_sigma in np.arange(size / 2.0, size / 8.0, -0.0625):
            position = np.float32(thresholds) * np.float32(per_sigma)
            index = np.floor(position).astype(int)
            inside = np.abs(position - np.round(position)) > 1e-4
            if len(set(index)) == len(index) and (len(index) == 0 or index.max() < size - 1) and inside.all():
                return size, float(per_sigma)
        size *= 2


def main() -> None:
    root = pathlib.Path(__file__).resolve().parent.parent
    header = [
        "// Lloyd-Max quantisers of N(0,1) with 2^b levels, b = 1..8: positive half. Written by tools/make_tables.py; part of the wire format.",
        "// A magnitude is found in one step: cell = min(u * PER_SIGMA, CELLS - 1), magnitude = CELL_BASE[cell] + (u >= CELL_THRESHOLD[cell]).",
        "#pragma once",
        "#include <cstdint>",
        "",
        "namespace commpress {",
        "template <int B>",
        "struct LloydMax;",
    ]
    module = ['"""Lloyd-Max quantisers of N(0,1): positive half. Written by tools/make_tables.py; part of the wire format."""', "", "# fmt: off"]
    all_levels, all_thresholds = {}, {}
    for bits in range(1, MAX_BITS + 1):
        levels, thresholds = (a.astype(np.float32) for a in lloyd_max(bits))
        size, per_sigma = cells(thresholds)
        cell = np.floor(thresholds * np.float32(per_sigma)).astype(int)
        cell_threshold = np.full(size, np.float32(3.0e38))
        cell_threshold[cell] = thresholds
        base = [int((cell < c).sum()) for c in range(size)]
        text = lambda a: ", ".join(np.format_float_scientific(v, unique=True, trim="0") + "f" for v in a)  # noqa: E731
        header += [
            "template <>",
            f"struct LloydMax<{bits}> {{",
            f"  static constexpr int CELLS = {size};",
            f"  static constexpr float PER_SIGMA = {per_sigma}f;",
            f"  static constexpr float LEVEL[{len(levels)}] = {{{text(levels)}}};",
            f"  static constexpr float CELL_THRESHOLD[{size}] = {{{text(cell_threshold)}}};",
            f"  static constexpr int32_t CELL_BASE[{size}] = {{{', '.join(map(str, base))}}};",
            "};",
        ]
        all_levels[bits], all_thresholds[bits] = levels, thresholds
    header.append("}  // namespace commpress")
    for name, table in (("LEVELS", all_levels), ("THRESHOLDS", all_thresholds)):
        module.append(f"{name} = {{")
        module += [f"    {b}: ({''.join(np.format_float_scientific(v, unique=True, trim='0') + ', ' for v in t)})," for b, t in table.items()]
        module.append("}")
    (root / "csrc/kernels/tables.h").write_text("\n".join(header) + "\n")
    (root / "commpress/codecs/_tables.py").write_text("\n".join(module) + "\n")


if __name__ == "__main__":
    main()
