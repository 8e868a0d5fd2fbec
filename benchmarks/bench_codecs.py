"""Speed of encode and of decode-and-accumulate beside ``tensor.copy_`` of the same tensor, in turn in one process, on one thread.

    python -m benchmarks.bench_codecs [--mib 25] [--rounds 15] [--isa avx512 avx2 plain] [CODEC ...]

Medians; a ratio above 1 is faster than the copy. ``vNMSE`` is that of N(0,1), ``bits`` the payload's bits per coordinate.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import commpress
from commpress import ops
from commpress.codecs._bitshift import BitshiftCodec
from commpress.codecs._ecsq import EntropyCodec
from commpress.codecs._formats import FormatCodec
from commpress.codecs._sparse import SparseCodec

CODECS = ["uniform:4", "hadamard+lloyd:1", "hadamard+lloyd:2", "hadamard+lloyd:4", "lloyd:2", "cast:bf16"]
CODECS += ["topk:0.01", "randk:0.01", "ecsq:2", "ecdq:2", "trellis:2"]
CODECS += ["hadamard+bitshift:1,length=8", "hadamard+bitshift:0.1,length=8"]
CODECS += [
    "float:e4m3",
    "float:e8m7",
    "mxfp8",
    "mxfp4",
    "nvfp4",
    "natural",
    "int8",
    "qsgd:7",
    "ternary",
    "sign",
    "onebit",
]
CODECS += [f"{spec},rounding=nearest" for spec in ("float:e4m3", "mxfp4", "nvfp4", "int8")]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def measure(spec: str, isa: ops.Isa, mib: float, rounds: int) -> str:
    """One row of the table."""
    codec, key = commpress.codec(spec), commpress.Key(seed=1)
    x = torch.randn(int(mib * 2**18), generator=torch.Generator().manual_seed(0))
    y = torch.zeros_like(x)
    payload = codec.encode(x, key)
    drawn = {}  # what an encoder alone takes
    if isinstance(codec, FormatCodec):
        encode, decode, common = ops.format_encode, ops.format_decode, {"format": codec.format, "gain": 1.0}
        drawn = {"seed": key.seed, "words": key.words(), "offset": 0}
    elif isinstance(codec, SparseCodec):
        encode, decode, common = ops.sparse_encode, ops.sparse_decode, codec.arguments(key, 0, 1.0)
    elif isinstance(codec, BitshiftCodec):
        encode, decode = ops.bitshift_encode, ops.bitshift_decode
        common = {**codec.arguments(key), "offset": 0, "gain": 1.0}
    elif isinstance(codec, EntropyCodec):
        encode, decode, common = ops.ecsq_encode, ops.ecsq_decode, codec.arguments(key, 0, 1.0)
    else:
        encode, decode = ops.encode, ops.decode
        common = {
            "family": int(codec.family),
            "rate": codec.rate,
            "centroid": codec.centroid,
            "seed": key.seed,
            "words": key.words(),
            "offset": 0,
            "gain": 1.0,
        }
    works = {
        "copy": lambda: y.copy_(x),
        "encode": lambda: encode(x, payload, isa=isa, **common, **drawn),
        "decode": lambda: decode(payload, y, accumulate=True, beta=1.0, isa=isa, **common),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name, work in works.items():
            elapsed = milliseconds(work)
            if turn >= 2:
                times[name].append(elapsed)
    copied, encoded, decoded = (statistics.median(times[name]) for name in works)
    y = codec.decode(payload, key, out=y)
    vnmse = float((y - x).square().sum(dtype=torch.float64) / x.square().sum(dtype=torch.float64))
    bits = 8 * payload.numel() / x.numel()
    return (
        f"{spec:>27} {isa.name.lower():>7} {copied:8.2f} {encoded:10.2f} {decoded:10.2f} {copied / encoded:11.2f} "
        f"{copied / decoded:11.2f} {vnmse:9.5f} {bits:8.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", metavar="CODEC", default=CODECS)
    parser.add_argument("--mib", type=float, default=25, help="size of the tensor in MiB of fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", nargs="*", default=["best"], choices=[isa.name.lower() for isa in ops.Isa])
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mib, rounds = (1.0, 3) if args.quick else (args.mib, args.rounds)
    print(
        f"{'codec':>27} {'path':>7} {'copy ms':>8} {'encode ms':>10} {'decode ms':>10} {'encode/copy':>11} "
        f"{'decode/copy':>11} {'vNMSE':>9} {'bits':>8}"
    )
    for spec in args.codecs:
        for name in args.isa:
            isa = ops.Isa[name.upper()]
            if ops.isa_available(isa):
                print(measure(spec, isa, mib, rounds), flush=True)
            else:
                print(f"{spec:>27} {name:>7} not available on this machine")


if __name__ == "__main__":
    main()
