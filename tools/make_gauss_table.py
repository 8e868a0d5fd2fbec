"""Writes the Gaussian table of the bitshift trellis: csrc/kernels/gauss_table.h and commpress/codecs/_gauss_table.py.

Run it from the repository's root: ``python tools/make_gauss_table.py``. Both files are committed, since their values belong to the wire format. Entry m is the
number of 15-bit words whose magnitude is at most m: the probability that |N(0,1)| < (m + 1/2) / 512, times 2^15, rounded. A word w therefore stands for the
magnitude (number of entries <= w) / 512.
"""

import math
import pathlib

ENTRIES = 2047  # magnitudes 0 to 2047, of 11 bits: a product with a value of 13 bits is exact in binary32


def main() -> None:
    root = pathlib.Path(__file__).resolve().parent.parent
    counts = [round(2**15 * math.erf((m + 0.5) / 512 / math.sqrt(2))) for m in range(ENTRIES)]
    lines = [", ".join(map(str, counts[i : i + 20])) for i in range(0, ENTRIES, 20)]
    header = [
        "// The normal distribution in steps of 1/512: entry m is 2^15 P(|N(0,1)| < (m + 1/2) / 512), rounded. Written by",
        "// tools/make_gauss_table.py; part of the wire format.",
        "// clang-format off",
        "#pragma once",
        "#include <cstdint>",
        "",
        "namespace commpress {",
        f"constexpr uint16_t GAUSS_COUNT[{ENTRIES}] = {{",
        *(f"    {line}," for line in lines),
        "};",
        "}  // namespace commpress",
    ]
    module = [
        '"""The normal distribution in steps of 1/512. Written by tools/make_gauss_table.py; part of the wire format."""',
        "",
        "# fmt: off",
        "GAUSS_COUNT = (",
        *(f"    {line}," for line in lines),
        ")",
    ]
    (root / "csrc/kernels/gauss_table.h").write_text("\n".join(header) + "\n")
    (root / "commpress/codecs/_gauss_table.py").write_text("\n".join(module) + "\n")


if __name__ == "__main__":
    main()
