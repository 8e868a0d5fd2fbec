"""Writes the Lloyd-Max tables of N(0,1): csrc/kernels/tables.h and commpress/codecs/_tables.py.

Run it from the repository's root: ``python tools/make_tables.py``. Both files are committed, since their values belong to the wire format.
Levels are cell centroids, thresholds the midpoints between them (Max 1960, Lloyd 1982), found by Newton's method in double precision. Thresholds are
stored in units of 1 / PER_SIGMA, in which every unit cell holds at most one, so that a code is found in one look-up and one comparison.
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


def cells(thresholds: np.ndarray) -> tuple[int, float]:
    """Number of positive cells and cells per sigma of the search table: every cell holds at most one threshold, away from the cell's edges."""
    size = 16
    while True:
        for per_sigma in np.arange(size / 2.0, size / 8.0, -0.0625):
            position = thresholds * per_sigma
            index = np.floor(position).astype(int)
            inside = np.abs(position - np.round(position)) > 1e-4
            if len(set(index)) == len(index) and (len(index) == 0 or index.max() < size - 1) and inside.all():
                return size, float(per_sigma)
        size *= 2


def text(values: np.ndarray, suffix: str = "f") -> str:
    return ", ".join(np.format_float_scientific(v, unique=True, trim="0") + suffix for v in values)


def main() -> None:
    root = pathlib.Path(__file__).resolve().parent.parent
    header = [
        "// Lloyd-Max quantisers of N(0,1) with 2^b levels, b = 1..8. Written by tools/make_tables.py; part of the wire format.",
        "// A value v in units of 1 / PER_SIGMA lies in cell floor(v), clamped to [-CELLS, CELLS); its code is CELL_BASE[] + (v >= CELL_THRESHOLD[]) at [cell + CELLS].",
        "// clang-format off",
        "#pragma once",
        "#include <cstdint>",
        "",
        "namespace commpress {",
        "template <int B>",
        "struct LloydMax;",
    ]
    tables: dict[str, dict[int, str]] = {"LEVELS": {}, "PRODUCT_LEVELS": {}, "THRESHOLDS": {}, "PER_SIGMA": {}}
    for bits in range(1, MAX_BITS + 1):
        positive, inner = lloyd_max(bits)
        size, per_sigma = cells(inner)
        levels = np.concatenate([-positive[::-1], positive])
        upper = np.float32(inner * per_sigma)
        # A value on a negative threshold belongs to the level further from zero, as on a positive one.
        lower = np.nextafter(-upper[::-1], np.float32(0))
        thresholds = np.concatenate([lower, np.zeros(1, np.float32), upper])
        edges = np.arange(-size, size)
        cell_threshold = np.full(2 * size, np.float32(3.0e38))
        inside = thresholds[thresholds != 0]  # zero is an edge
        cell_threshold[np.floor(inside).astype(int) + size] = inside
        base = [int((thresholds <= edge).sum()) for edge in edges]
        columns = {
            "LEVEL": np.float32(levels),
            "PRODUCT_LEVEL": np.float32(levels / per_sigma),
            "CELL_THRESHOLD": cell_threshold,
        }
        header += [
            "template <>",
            f"struct LloydMax<{bits}> {{",
            f"  static constexpr int CELLS = {size};",
            f"  static constexpr float PER_SIGMA = {per_sigma}f;",
            *(
                f"  static constexpr float {name}[{len(values)}] = {{{text(values)}}};"
                for name, values in columns.items()
            ),
            f"  static constexpr int32_t CELL_BASE[{2 * size}] = {{{', '.join(map(str, base))}}};",
            "};",
        ]
        tables["LEVELS"][bits] = f"({text(columns['LEVEL'], '')})"
        tables["PRODUCT_LEVELS"][bits] = f"({text(columns['PRODUCT_LEVEL'], '')})"
        tables["THRESHOLDS"][bits] = f"({text(thresholds, '')},)"
        tables["PER_SIGMA"][bits] = str(per_sigma)
    header.append("}  // namespace commpress")
    module = [
        '"""Lloyd-Max quantisers of N(0,1). Written by tools/make_tables.py; part of the wire format (docs/wire-format.md 4.3)."""',
        "",
        "# fmt: off",
    ]
    for name, rows in tables.items():
        module += [f"{name} = {{", *(f"    {bits}: {row}," for bits, row in rows.items()), "}"]
    (root / "csrc/kernels/tables.h").write_text("\n".join(header) + "\n")
    (root / "commpress/codecs/_tables.py").write_text("\n".join(module) + "\n")


if __name__ == "__main__":
    main()
