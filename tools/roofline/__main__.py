"""python -m tools.roofline CUBIN... --gates gates.json: prints a table; exit code 1 if a gate is not held, 2 on errors."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from tools import roofline
from tools.roofline import _gpu
from tools.roofline._figures import Figures, failures, predict, unneeded, work_of
from tools.roofline._sass import Code, RooflineError, disassemble


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.roofline",
        description=roofline.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cubin", type=pathlib.Path, nargs="+")
    parser.add_argument("--gates", type=pathlib.Path, required=True, help="what each kernel must hold, as JSON")
    parser.add_argument(
        "--counts", type=pathlib.Path, help="the folder of the gates' counts; default: that of the gates"
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures there")
    args = parser.parse_args(arguments)
    try:
        gates = json.loads(args.gates.read_text())
        codes = {name: code for cubin in args.cubin for name, code in disassemble(cubin).items()}
        found, failed = _examine(codes, gates, args.counts or args.gates.parent)
    except (RooflineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failed else 0


def _examine(codes: dict[str, Code], gates: dict[str, Any], folder: pathlib.Path) -> tuple[dict[str, Any], bool]:
    print(
        f"H100: {_gpu.MULTIPROCESSORS} multiprocessors, {_gpu.CLOCK / 1e9:.2f} GHz, {_gpu.DRAM / 1e12:.2f} TB/s of DRAM"
    )
    found, failed = {}, False
    for key, gate in gates.items():
        part = gate.get("kernel", key)
        names = [name for name in codes if part in name]
        if len(names) != 1:
            raise RooflineError(f"{part!r} is part of the names of {len(names)} kernels: {names or sorted(codes)}")
        code = codes[names[0]]
        work = work_of(code, gate, folder)
        figures = predict(code, work, gate)
        problems = failures(figures, gate)
        failed |= bool(problems)
        found[key] = {**dataclasses.asdict(figures), "origin": work.origin, "failures": problems}
        _print(key, figures, work.origin, problems)
        for name in unneeded(figures, gate):
            print(f"  for_now can go: {name} is within its limit")
    return found, failed


def _print(key: str, f: Figures, origin: str, problems: list[str]) -> None:
    share = f"{100 * f.dram_share:.0f} % of what DRAM allows"
    print(f"\n{key}: {'FAIL' if problems else 'pass'}")
    print(f"  {f.time:.3f} ps per element, {1000 / f.time:.0f} G elements/s, bound by {f.bound}; {share}")
    print(
        f"  ps per element: DRAM {f.time_dram:.3f}, issue {f.time_issue:.3f}, ALU {f.time_alu:.3f}, FMA {f.time_fma:.3f}, "
        f"LSU {f.time_lsu:.3f}, special {f.time_special:.3f}"
    )
    print(
        f"  {f.instructions_per_element:.2f} instructions and {f.bytes_per_element:.3f} DRAM bytes per element: "
        f"{f.instructions_per_byte:.2f} per byte"
    )
    print(
        f"  {f.registers} registers, {f.spills} spills ({f.spills_per_element:.2f} per element), {f.stack} B stack, {f.shared} B shared, {f.warps} warps; "
        f"loads {f.loads_128} of 128 bits, {f.loads_narrow} narrower; stores {f.stores_128}, {f.stores_narrow}"
    )
    print(f"  {origin}; agreement {f.agreement:.3f}")
    for problem in problems:
        print(f"  FAIL {problem}")


if __name__ == "__main__":
    sys.exit(main())
