"""Mutants of the CUDA kernels: do test_kernels, test_formats, test_topk, test_bitshift, test_entropy and test_entropy_encoder catch bugs of the kinds that kernels have?

    python tests/cuda/mutants.py [--builds plain,sanitize,threads] [--no-baseline] [NAME ...]

Each mutant (in mutations/) replaces one text of a file csrc/kernels/cuda_*.h. A copy of those files with the change is compiled
into build/mutants/NAME and linked with the objects of `make -C tests/cuda`; then its test runs in the builds in
turn, the likeliest first, until one catches it. Prints what caught each, and leaves the last output in
build/mutants/NAME/BUILD/output.txt; the exit status is 1 if fewer than 95 % are caught. A text that is not found
exactly once is an error, as is a mutant that does not compile and a test that fails without any mutant.

Mutants that change nothing that can be observed are left out. Among them are barriers that are redundant in every
present caller: the last ones of block_largest, fold, fill_tables, deliver_all and write_piece, where another barrier
comes before the memory is written again. So is a swizzle or an index that only exchanges two accumulators whose sum is
taken next: addition commutes. And the zeros behind a trellis's bits, without which the executor of PTX complains, are
read and masked away.
"""

import argparse
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

from mutations import MUTANTS, TESTS, Error

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "csrc" / "kernels"
OUT = ROOT / "build" / "mutants"
NEEDED = 0.95
TIMEOUT = 120  # seconds of processor time, which a busy machine does not use up; ten times as many pass at most
# Arguments of the tests: seed, order, blocks in flight, every how many-th case.
RUNS = {
    "kernels": {
        "plain": [(1, 0, 1, 3), (2, 1, 4, 3), (3, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 3), (5, 2, 8, 5)],
        "threads": [(6, 0, 1, 20), (7, 2, 8, 20), (8, 2, 8, 9)],
    },
    "formats": {
        "plain": [(1, 0, 1, 9), (2, 2, 4, 3)],
        "sanitize": [(4, 0, 1, 9), (5, 2, 8, 9)],
        "threads": [(6, 0, 1, 40), (7, 2, 8, 20)],
    },
    "sparse": {
        "plain": [(1, 0, 1, 3), (2, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 9), (5, 2, 8, 9)],
        "threads": [(6, 0, 1, 40), (7, 2, 8, 20)],
    },
    "trellis": {
        "plain": [(1, 0, 1, 9), (2, 2, 4, 12)],
        "sanitize": [(4, 0, 1, 40), (5, 2, 8, 40)],
        "threads": [(6, 0, 1, 90), (7, 2, 8, 60)],
    },
    "entropy": {
        "plain": [(1, 0, 1, 5), (2, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 5), (5, 2, 8, 7)],
        "threads": [(6, 0, 8, 40), (7, 2, 8, 20)],
    },
    "entropy_encoder": {
        "plain": [(1, 0, 1, 5), (2, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 5), (5, 2, 4, 7)],
        "threads": [(6, 0, 4, 20), (7, 2, 4, 10)],
    },
}
BUILDS = list(RUNS["kernels"])
CAUGHT = [
    (r"simt: ERROR", "simt error"),
    (r"ERROR: AddressSanitizer", "ASan"),
    (r"runtime error", "UBSan"),
    (r"ThreadSanitizer: data race", "race"),
    (r"FAILED: .*(before|behind) the buffer", "guard"),
    (r"FAILED: ", "mismatch"),
]


def run(command, timeout, processor_time=None):
    """Exit status and output; None for a time-out."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}

    def limit():
        if processor_time is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (processor_time, processor_time + 5))

    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=timeout,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return None, ""
    return done.returncode, done.stdout.decode(errors="replace")


def make(*arguments):
    code, output = run(["make", "-s", "-C", str(ROOT / "tests" / "cuda"), *arguments], 600)
    if code != 0:
        raise Error(output)


def verdict(program, runs):
    """What caught it, and where; None if nothing did."""
    for arguments in runs:
        code, output = run([str(program), *map(str, arguments)], 10 * TIMEOUT, TIMEOUT)
        program.with_name("output.txt").write_text(output)
        if code is None:
            return "timeout", ""
        if code != 0:
            for pattern, name in CAUGHT:
                found = re.search(f".*{pattern}.*", output)
                if found:
                    summary = re.search(r"SUMMARY: .*", output)
                    return name, (summary or found)[0].replace(f"{OUT}/", "")
            return "crash", f"exit status {code}"
    return None


def examine(mutant, builds):
    """As verdict(), and the build."""
    folder = OUT / mutant.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "cuda" / f"{mutant.emulated}_emulated.cpp", folder)
    for path in KERNELS.glob("cuda_*.h"):
        shutil.copy(path, folder)
    path = folder / mutant.file
    path.write_text(mutant.apply(path.read_text()))
    for build in sorted(builds, key=lambda build: build != mutant.first):
        program = folder / build / mutant.test
        make(f"MUTANT={folder}", f"EMULATED={mutant.emulated}", f"TEST={mutant.test}", str(program))
        caught = verdict(program, RUNS[mutant.emulated][build])
        program.unlink()
        if caught:
            return build, *caught
    return None


def check_texts():
    """A list of complaints about texts that are not found once, and about names."""
    complaints = []
    for mutant in MUTANTS:
        try:
            mutant.apply((KERNELS / mutant.file).read_text())
        except Error as error:
            complaints.append(str(error))
    names = [mutant.name for mutant in MUTANTS]
    return complaints + [f"two mutants are called {name}" for name in sorted(set(names)) if names.count(name) > 1]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; all of them if none is named")
    parser.add_argument("--builds", default=None, help="plain,sanitize,threads: those to try, in this order")
    parser.add_argument("--no-baseline", action="store_true", help="don't run the tests without a mutant first")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise Error(f"no such mutant: {', '.join(sorted(unknown))}")
    builds = options.builds.split(",") if options.builds else list(BUILDS)
    if "threads" in builds and shutil.which(os.environ.get("CLANG", "clang++")) is None:
        print("threads NOT TESTED: no clang++ (on Debian and Ubuntu: apt-get install clang)")
        builds.remove("threads")
    complaints = check_texts()
    if complaints:
        raise Error("\n".join(complaints))
    made = ROOT / "build" / "cudatest"
    make(*[f"../../build/cudatest/{build}/{test}" for build in builds for test in TESTS.values()])
    for build in [] if options.no_baseline else builds:
        for emulated, runs in RUNS.items():
            test = TESTS[emulated]
            caught = verdict(made / build / test, runs[build])
            if caught:
                raise Error(f"{test} fails without any mutant, in {build}: {' '.join(caught)}")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.no_baseline:
        print("the tests were not run without a mutant: what fails below may be the kernels' own fault")
    survivors = []
    for mutant in chosen:
        start = time.monotonic()
        caught = examine(mutant, builds)
        what = f"{caught[0]:8} {caught[1]:10} {caught[2][:150]}" if caught else "SURVIVES"
        print(f"{mutant.name:40} {time.monotonic() - start:4.0f} s  {what}", flush=True)
        if not caught:
            survivors.append(mutant.name)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} caught"
        + "".join(f"\n  survives: {name}" for name in survivors)
    )
    return 1 if len(chosen) - len(survivors) < NEEDED * len(chosen) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        sys.exit(f"mutants: {error}")
