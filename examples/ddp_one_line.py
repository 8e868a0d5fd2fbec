"""A complete DDP training script, and the one line that compresses its communication.

torchrun --nproc_per_node=2 examples/ddp_one_line.py                # fp32 all-reduce, as DDP does it
torchrun --nproc_per_node=2 examples/ddp_one_line.py --compress     # with the line
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import commpress


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU())
    model.append(torch.nn.Linear(512, 1))
    ddp = DistributedDataParallel(model)

    state = None
    if "--compress" in sys.argv[1:]:
        state = commpress.register(ddp, codec="hadamard+lloyd:2")  # the one line

    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(1 + rank)  # each rank sees other data
    for step in range(200):
        x = torch.randn(64, 64, generator=data)
        y = torch.tanh(x[:, :4].sum(dim=1, keepdim=True))  # something to learn
        loss = torch.nn.functional.mse_loss(ddp(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    if state is not None:
        state.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
