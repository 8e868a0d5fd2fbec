"""The CUDA kernels against a device copy of the same run, and against what was predicted without a GPU.

    python -m benchmarks.bench_cuda [--mi N] [--out DIR] [CODEC ...]

Time is the median of events around single launches; three sets of buffers take turns, so that caches hold nothing of the last call. GB/s are the bytes that must cross
DRAM (values read, or read and written, in fp32, and payloads) by that time. `copy` is `tensor.copy_` of as many fp32 values. Predictions (benchmarks/cuda_predictions.json, written
by tools/roofline) are for an H100 at 1.70 GHz with 90 % of 3.35 TB/s; the column is measured time by predicted time. DIR gets cuda.json and cuda.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing

import commpress
from commpress import collectives, ops

CODECS = [
    *(f"uniform:{b}" for b in (1, 2, 3, 4, 8)),
    *(f"hadamard+lloyd:{b}" for b in (1, 2, 2.5, 3, 4, 8)),
    "hadamard+lloyd:2,scale=centroid",
    "cast:bf16",
    *("mxfp8", "mxfp6", "mxfp4", "nvfp4", "float:e4m3", "int8", "qsgd:7", "ternary", "natural", "sign"),
]
NCCL_CODECS = ("uniform:4", "hadamard+lloyd:4", "hadamard+lloyd:2")
PREDICTIONS = pathlib.Path(__file__).with_name("cuda_predictions.json")
MI = 1 << 20
Row = dict[str, object]


def median_seconds(call: Callable[[int], object], repeats: int = 30) -> float:
    """Seconds on the device; ``call`` is given the number of the turn."""
    for turn in range(3):
        call(turn)
    times = []
    for turn in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call(turn)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(specs: list[str], numel: int) -> list[Row]:
    """A row for each kernel, printed as it is measured; the first is the copy."""
    device, sets = torch.device("cuda", 0), 3
    torch.manual_seed(0)
    xs = [torch.randn(numel, device=device) for _ in range(sets)]
    out = [torch.empty_like(x) for x in xs]
    predictions = json.loads(PREDICTIONS.read_text())
    rows: list[Row] = []

    def report(name: str, seconds: float, nbytes: int, predicted: str = "") -> None:
        row: Row = {"kernel": name, "microseconds": seconds * 1e6, "GB/s": nbytes / seconds / 1e9}
        row["of copy"] = row["GB/s"] / rows[0]["GB/s"] if rows else 1.0  # type: ignore[operator]
        if predicted in predictions:
            times = predictions[predicted]
            longest = max(value for name, value in times.items() if name.startswith("time_"))
            row["measured/predicted"] = seconds / (longest * 1e-12 * numel)
        rows.append(row)
        ratio = f"{row['measured/predicted']:5.2f} of predicted" if "measured/predicted" in row else ""
        print(
            f"{name:48s} {row['microseconds']:8.1f} us {row['GB/s']:6.0f} GB/s {row['of copy']:5.2f} of copy  {ratio}",
            flush=True,
        )

    report("copy", median_seconds(lambda turn: out[turn % sets].copy_(xs[(turn + 1) % sets])), 8 * numel)
    found = ops.new_report(device)
    for spec in specs:
        codec = commpress.codec(spec)
        nbytes = codec.payload_nbytes(numel)
        payloads = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(4)]
        keys = [commpress.Key(seed=1, sender=i) for i in range(4)]

        def encode(turn: int, values: list[torch.Tensor]) -> None:
            codec.encode(values[turn % sets], keys[turn % 4], out=payloads[turn % 4])  # noqa: B023

        report(f"encode {spec}", median_seconds(lambda turn: encode(turn, xs)), 4 * numel + nbytes, f"{spec} encode")
        if spec in ("uniform:4", "hadamard+lloyd:4"):
            for dtype in (torch.bfloat16, torch.float16):
                narrow = [x.to(dtype) for x in xs]
                seconds = median_seconds(lambda turn: encode(turn, narrow))  # noqa: B023
                report(f"encode {spec} from {str(dtype)[6:]}", seconds, 2 * numel + nbytes)
        for turn in range(4):
            encode(turn, xs)
        table = ops.device_table([ops.DeviceLayer(codec.kind, 0, 0, numel, nbytes)], device)
        for senders, accumulate in ((1, True), (4, True)):
            words = [key.words()[1] for key in keys[:senders]]

            def decode(turn: int) -> None:
                ops.decode_table(
                    payloads[:senders],  # noqa: B023
                    out[turn % sets],
                    table,  # noqa: B023
                    seed=1,
                    senders=words,  # noqa: B023
                    step=0,
                    tensor=0,
                    report=found,
                    accumulate=accumulate,  # noqa: B023
                )

            name = f"decode {spec}, {senders} sender{'s' * (senders > 1)}, added"
            predicted = f"{spec} decode and add{' from four' * (senders == 4)}"
            report(name, median_seconds(decode), 8 * numel + senders * nbytes, predicted)
    if found.tolist() != [0, 0]:
        raise SystemExit(f"a decoder calls payloads of its own invalid: {found.tolist()}")
    return rows


def _nccl_rank(rank: int, ranks: int, rendezvous: str, numel: int, answer: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        bucket = torch.zeros(numel, dtype=dtype, device="cuda")
        seconds[f"NCCL {str(dtype)[6:]}"] = median_seconds(lambda _: dist.all_reduce(bucket))  # noqa: B023
    for codec in NCCL_CODECS:
        bucket = torch.randn(numel, device="cuda")
        # The current stream waits for the communication stream, so its events hold the whole all-reduce.
        seconds[f"commpress {codec}"] = median_seconds(lambda _: commpress.all_reduce(bucket, codec))  # noqa: B023
    collectives.close()
    if rank == 0:
        pathlib.Path(answer).write_text(json.dumps(seconds))
    dist.destroy_process_group()


def measure_nccl(numel: int = 25 * MI // 4) -> dict[str, float]:
    """Seconds of NCCL's `all_reduce` of 25 MiB of fp32, and of as many bf16 values, and of commpress's, over all GPUs here. With one GPU nothing is sent."""
    ranks = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        answer = os.path.join(folder, "answer.json")
        torch.multiprocessing.spawn(_nccl_rank, (ranks, os.path.join(folder, "meet"), numel, answer), nprocs=ranks)
        return json.loads(pathlib.Path(answer).read_text())


def markdown(rows: list[Row], nccl: dict[str, float], about: dict[str, object]) -> str:
    """The report as a page."""
    lines = [
        f"# CUDA kernels on {about['GPU']}",
        "",
        ", ".join(f"{name}: {value}" for name, value in about.items()),
        "",
    ]
    lines += ["| kernel | us | GB/s | of copy | measured / predicted |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['measured/predicted']:.2f}" if "measured/predicted" in row else ""
        lines.append(
            f"| {row['kernel']} | {row['microseconds']:.1f} | {row['GB/s']:.0f} | {row['of copy']:.2f} | {ratio} |"
        )
    times = ", ".join(f"{dtype} {seconds * 1e6:.0f} us" for dtype, seconds in nccl.items())
    lines += ["", f"All-reduce of 25 MiB of fp32 (bf16: as many values) over {about['GPUs']} GPU(s): {times}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", metavar="CODEC", default=CODECS)
    parser.add_argument("--mi", type=float, default=64, help="size of the bucket in Mi values")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the report")
    args = parser.parse_args()
    if not (torch.cuda.is_available() and ops.cuda_built()):
        print("left out: this benchmark needs a CUDA device, and a build of commpress with CUDA kernels")
        return
    numel = MI if args.quick else int(args.mi * MI)
    about: dict[str, object] = {
        "GPU": torch.cuda.get_device_name(),
        "GPUs": torch.cuda.device_count(),
        "torch": torch.__version__,
        "bucket": f"{numel / MI:g} Mi values",
        "date": datetime.date.today().isoformat(),
    }
    print(about)
    rows = measure(args.codecs[:2] if args.quick else args.codecs, numel)
    if args.out:
        nccl = measure_nccl()
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "cuda.json").write_text(
            json.dumps({"about": about, "kernels": rows, "nccl": nccl}, indent=1) + "\n"
        )
        (args.out / "cuda.md").write_text(markdown(rows, nccl, about))
        print(f"report: {args.out / 'cuda.md'}")


if __name__ == "__main__":
    main()
