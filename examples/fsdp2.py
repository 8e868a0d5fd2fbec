"""A complete FSDP2 training script, and the one line that compresses its communication.

torchrun --nproc_per_node=2 examples/fsdp2.py                          # fp32, as FSDP does it
torchrun --nproc_per_node=2 examples/fsdp2.py --compress               # gradients at 4 bits
torchrun --nproc_per_node=2 examples/fsdp2.py --compress --weights     # and weights at 8 bits
torchrun --nproc_per_node=4 examples/fsdp2.py --compress --replicas 2  # two replicas, each sharded over two ranks
"""

import argparse

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import commpress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compress", action="store_true", help="the one line")
    parser.add_argument("--weights", action="store_true", help="compress the all-gather of weights, too")
    parser.add_argument(
        "--replicas", type=int, default=1, help="copies of the model, each sharded over the other ranks"
    )
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (options.replicas, size // options.replicas), mesh_dim_names=("replicate", "shard"))

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU())
    model.append(torch.nn.Linear(512, 1))
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])

    state = None
    if options.compress:
        state = commpress.register(  # the one line
            model,
            codec="hadamard+lloyd:4",
            all_gather="uniform:8" if options.weights else None,
            replicate=mesh["replicate"] if options.replicas > 1 else None,
        )

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(1 + rank)  # each rank sees other data
    for step in range(options.steps):
        x = torch.randn(64, 64, generator=data)
        y = torch.tanh(x[:, :4].sum(dim=1, keepdim=True))  # something to learn
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    if state is not None:
        if rank == 0:
            for leg, sent in state.traffic.items():
                print(f"{leg}: {sent['wire_bytes'] / max(1, state.step) / 1e6:.3f} MB a step from this rank")
        state.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
