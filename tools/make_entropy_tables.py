"""Writes the constants of the entropy-coded quantisers: csrc/kernels/entropy_tables.h and commpress/codecs/_entropy_tables.py.

Run it from the repository's root: ``python tools/make_entropy_tables.py``. Both files are committed, since their values belong to the wire format.

* SURVIVAL: for generalised normal densities exp(-|x/a|^shape) with E|x| = 1, P(X > z) in units of 2^-30 on a grid of 32 points per octave of z from 1/16 to 32.
* DEAD_ZONE, RATE: of a normal source whose mean magnitude is 2^(level/16) steps, level from -64 to 64: the offset f (in 1/256 step) for which the quantiser
  floor(|x| + f) has the least D + lambda R, and its entropy there in 1/4096 bit. lambda is 0.1 for coarse quantisers and goes to the 2 ln 2 / 12 of fine ones.
* STEP_COARSE, STEP_FINE: 2^(i/32) and 2^(i/2048) as binary32; LEVEL: mantissas of 2^(i/16); INVERSE: 2^(-i/32) in units of 2^-16.
"""

import pathlib
import subprocess

import numpy as np
from scipy import special, stats

SHAPES = (3.0, 2.0, 1.5, 1.2, 0.95, 0.75, 0.6, 0.45)
LAMBDA = 0.1, np.log(2) / 6
LEVELS = range(-64, 65)


def survival(shape: float) -> np.ndarray:
    z = np.concatenate([2.0 ** (octave - 4) * (1 + np.arange(32) / 32) for octave in range(9)] + [[32.0]])
    a = special.gamma(1 / shape) / special.gamma(2 / shape)
    return np.rint(0.5 * special.gammaincc(1 / shape, (z / a) ** shape) * 2**30).astype(int)


def operating_point(sigma: float, offset: float) -> tuple[float, float]:
    """Entropy and squared error over step^2 of a normal source of the given deviation in steps, centroid decoder."""
    t = (np.arange(1, 400) - offset) / sigma
    above = np.append(stats.norm.sf(t), 0)
    p = above[:-1] - above[1:]
    zero = 1 - 2 * above[0]
    density = stats.norm.pdf(np.append(t, np.inf))
    moment = (density[:-1] - density[1:]) * sigma
    kept = p > 1e-290
    entropy = -zero * np.log2(zero) - 2 * np.sum(p[kept] * np.log2(p[kept]))
    return entropy, sigma**2 - 2 * np.sum(moment[kept] ** 2 / p[kept])


def tables() -> dict[str, tuple[str, np.ndarray]]:
    dead, rate = [], []
    for level in LEVELS:
        price = np.interp(level, (0, 16), LAMBDA)
        sigma = 2 ** (level / 16) * np.sqrt(np.pi / 2)
        _, _, offset, entropy = min(
            (d + price * h, d, offset, h)
            for offset in range(32, 136)
            for h, d in [operating_point(sigma, offset / 256)]
        )
        dead.append(offset)
        rate.append(round(entropy * 4096))
    return {
        "SURVIVAL": ("uint32_t", np.stack([survival(shape) for shape in SHAPES])),
        "DEAD_ZONE": ("uint8_t", np.array(dead)),
        "RATE": ("uint16_t", np.array(rate)),
        "STEP_COARSE": ("float", np.float32(2 ** (np.arange(32) / 32))),
        "STEP_FINE": ("float", np.float32(2 ** (np.arange(64) / 2048))),
        "LEVEL": ("uint32_t", np.float32(2 ** (np.arange(16) / 16)).view(np.uint32) & 0x7FFFFF),
        "INVERSE": ("uint32_t", np.rint(2 ** (16 - np.arange(32) / 32)).astype(int)),
    }


def in_c(name: str, kind: str, values: np.ndarray) -> str:
    sizes = "".join(f"[{n}]" for n in values.shape)
    rows = values.reshape(-1, values.shape[-1])
    text = [
        "{" + ", ".join(f"{float(v).hex()}f" if kind == "float" else str(int(v)) for v in row) + "}" for row in rows
    ]
    body = text[0] if values.ndim == 1 else "{" + ", ".join(text) + "}"
    return f"constexpr {kind} {name}{sizes} = {body};\n"


def in_python(name: str, kind: str, values: np.ndarray) -> str:
    cast = float if kind == "float" else int
    rows = [tuple(cast(v) for v in row) for row in values.reshape(-1, values.shape[-1])]
    return f"{name} = {rows[0] if values.ndim == 1 else tuple(rows)!r}\n"


def main() -> None:
    made = tables()
    header = pathlib.Path("csrc/kernels/entropy_tables.h")
    header.write_text(
        "// Made by tools/make_entropy_tables.py; part of the wire format. See there for what each table holds.\n"
        "#pragma once\n#include <cstdint>\n\nnamespace commpress {\nnamespace entropy {\n\n"
        + "\n".join(in_c(name, kind, values) for name, (kind, values) in made.items())
        + "\n}  // namespace entropy\n}  // namespace commpress\n"
    )
    module = pathlib.Path("commpress/codecs/_entropy_tables.py")
    module.write_text(
        '"""Constants of the entropy-coded quantisers, made by ``tools/make_entropy_tables.py``; part of the wire format."""\n\n'
        + "".join(in_python(name, kind, values) for name, (kind, values) in made.items())
    )
    subprocess.run(["clang-format", "-i", str(header)], check=True)
    subprocess.run(["ruff", "format", "-q", str(module)], check=True)


if __name__ == "__main__":
    main()
