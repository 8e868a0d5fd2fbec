"""Ranks agree on the range of a 4-bit quantiser, at one bit for each rank and round, and add up their codes; one rank's gradient has exploded.

torchrun --nproc_per_node=3 examples/common_scale.py
"""

import torch
import torch.distributed as dist

from commpress.collectives import common_scale, make_channels


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    channel, spare = make_channels()  # once: connections of our own, for every step
    spare.close()
    near = None
    for step in range(4):
        gradient = (1.0 + 0.05 * step) * torch.randn(100_000, generator=generator)
        if rank == size - 1:
            gradient *= 1e6
        found = common_scale(gradient, quantile=0.999, across="median", near=near, group=channel)
        near = found.value
        codes = torch.clamp(torch.round(gradient / found.value * 7), -7, 7).to(torch.int32)
        dist.all_reduce(codes)  # whole numbers: their sum is exact
        if rank == 0:
            print(
                f"step {step}: range {found.value:.4g} (own {found.own:.4g}) after {found.rounds} rounds, {found.bits} bits told, "
                f"{found.bytes_sent} bytes in messages, {found.wire_bytes} on the wire"
            )
    largest = common_scale(gradient, group=channel)
    if rank == 0:
        print(f"with the maximum it would have been {largest.value:.3g}")
        print("the majority was not moved:", near < 10 < largest.value)
    channel.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
