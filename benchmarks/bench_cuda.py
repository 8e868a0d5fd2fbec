"""The CUDA kernels against a device copy: time per bucket, GB/s of what must cross DRAM, and the same bytes as the CPU's.

The floor is what the kernel must read and write; `copy` is a device-to-device copy of the same fp32 bucket in the same run, in bytes read and written.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch

import commpress
from commpress import ops

MIB = 1 << 20


def median_time(call: Callable[[int], None], repeats: int = 30) -> float:
    """Seconds on the device; ``call`` is given a number so that it can go round several sets of buffers."""
    for i in range(3):
        call(i)
    times = []
    for i in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def table_of(codec: commpress.Codec, numel: int, device: torch.device) -> ops.DeviceTable:
    nbytes = codec.payload_nbytes(numel)
    return ops.device_table([(int(codec.family), codec.rate, int(codec.centroid), 0, 0, numel, nbytes)], device)


def main(numel: int = 64 * MIB) -> list[dict[str, object]]:
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    sets = 3
    xs = [torch.randn(numel, device=device) for _ in range(sets)]
    out = [torch.empty_like(x) for x in xs]
    copy = median_time(lambda i: out[i % sets].copy_(xs[(i + 1) % sets]))
    copied = 8 * numel / copy
    print(
        f"{torch.cuda.get_device_name()}: copy of {numel / MIB:g} Mi floats {copy * 1e6:.0f} us, {copied / 1e9:.0f} GB/s"
    )
    results: list[dict[str, object]] = []

    def report(name: str, seconds: float, nbytes: int) -> None:
        rate = nbytes / seconds
        print(f"{name:44s} {seconds * 1e6:8.1f} us {rate / 1e9:7.0f} GB/s  {rate / copied:5.2f} of copy")
        results.append({"name": name, "seconds": seconds, "bytes": nbytes, "of_copy": rate / copied})

    found = ops.new_report(device)
    for spec in sys.argv[1:] or (
        "uniform:1", "uniform:2", "uniform:3", "uniform:4", "uniform:8", "hadamard+lloyd:1", "hadamard+lloyd:2", "hadamard+lloyd:3",
        "hadamard+lloyd:4", "hadamard+lloyd:2.5", "hadamard+lloyd:8", "cast:bf16",
    ):  # fmt: skip
        codec = commpress.codec(spec)
        table = table_of(codec, numel, device)
        payloads = [torch.empty(table.nbytes, dtype=torch.uint8, device=device) for _ in range(4)]
        words = commpress.Key(seed=1).words()
        report(
            f"encode {spec}",
            median_time(lambda i: ops.encode_table(xs[i % sets], payloads[i % 4], table, seed=1, words=words)),
            4 * numel + table.nbytes,
        )
        if spec.endswith(":4"):
            for dtype in (torch.bfloat16, torch.float16):
                narrow = [x.to(dtype) for x in xs]
                report(
                    f"encode {spec} from {dtype}",
                    median_time(
                        lambda i: ops.encode_table(narrow[i % sets], payloads[i % 4], table, seed=1, words=words)
                    ),
                    2 * numel + table.nbytes,
                )
        for i, payload in enumerate(payloads):
            ops.encode_table(xs[i % sets], payload, table, seed=1, words=words)
        for senders, accumulate in ((1, True), (4, False)):
            sent = payloads[:senders]
            report(
                f"decode {spec} {senders} sender{'s' * (senders > 1)}{' added' * accumulate}",
                median_time(
                    lambda i: ops.decode_table(
                        sent,
                        out[i % sets],
                        table,
                        seed=1,
                        senders=[0] * senders,
                        step=0,
                        tensor=0,
                        report=found,
                        accumulate=accumulate,
                    )
                ),
                4 * numel * (1 + accumulate) + senders * table.nbytes,
            )
    assert found.tolist() == [0, 0], found
    return results


if __name__ == "__main__":
    main()
