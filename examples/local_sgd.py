"""A complete training script in which every rank trains alone for eight steps, and then all average what they have moved, at four bits.

torchrun --nproc_per_node=2 examples/local_sgd.py
torchrun --nproc_per_node=2 examples/local_sgd.py --outer        # with an outer optimiser, as in DiLoCo
"""

import sys

import torch
import torch.distributed as dist

import commpress


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU())
    model.append(torch.nn.Linear(512, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    outer = {"outer_lr": 0.7, "outer_momentum": 0.9} if "--outer" in sys.argv[1:] else {}

    data = torch.Generator().manual_seed(1 + rank)  # each rank sees other data
    # No DistributedDataParallel: rank 0's parameters are sent to all here, and averaged differences are all that travels later.
    with commpress.LocalSGD(model, codec="hadamard+lloyd:4", every=8, **outer) as local:
        for step in range(200):
            x = torch.randn(64, 64, generator=data)
            y = torch.tanh(x[:, :4].sum(dim=1, keepdim=True))  # something to learn
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            local.step()  # the one line in the loop
            if rank == 0 and step % 20 == 19:
                print(f"step {step + 1}: loss {loss.item():.4f}")
    # Leaving the block has averaged once more: all ranks hold the same model now.
    digest = torch.cat([p.detach().flatten() for p in model.parameters()]).double().sum()
    sums = [torch.zeros_like(digest) for _ in range(dist.get_world_size())]
    dist.all_gather(sums, digest)
    if rank == 0:
        fp32 = 200 * 4 * sum(p.numel() for p in model.parameters())
        sent = local.counts["payload_bytes"]
        print(f"{local.counts['rounds']} rounds, {sent:,} bytes sent: {sent / fp32:.1%} of one fp32 gradient a step")
        print("equal on all ranks:", all(bool(s == digest) for s in sums))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
