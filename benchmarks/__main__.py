"""``python -m benchmarks [--quick]``: every benchmark, one after the other, each in a process of its own."""

import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller measurements: does it run at all?")
    parser.add_argument("names", nargs="*", help="some of them only, for example bench_codecs")
    args = parser.parse_args()
    every = sorted(path.stem for path in HERE.glob("bench_*.py"))
    unknown = set(args.names) - set(every)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    failed = []
    for name in args.names or every:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if args.quick else [])]
        if subprocess.run(command, cwd=HERE.parent).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
