"""A DDP training script that goes on where it was after ranks, or whole machines, were lost, with as many ranks as there are then.

TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc_per_node=2 --max_restarts=3 examples/elastic_training.py --out FOLDER

launch/elastic.sh does that on several machines, and says what the variable is for.

Rank 0 saves model, optimizer and the compressor's state in one file; FOLDER must be one that all machines see. With error feedback each rank keeps
residuals of its own: `merge_states` makes of all of them one state that any number of ranks may load, in which nothing is lost.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import commpress
from commpress.hooks import merge_states


def save(path: Path, step: int, model: Any, optimizer: Any, state: commpress.HookState) -> None:
    """Collective. A file of that name is always a whole one, whenever the process is killed."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state.state_dict())
    if dist.get_rank() == 0:
        kept = {"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**kept, "commpress": merge_states(states)}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)


def load(path: Path, model: Any, optimizer: Any, state: commpress.HookState) -> int:
    """Collective. The step to go on with; 0 if nothing has been saved."""
    found = [torch.load(path, weights_only=True) if dist.get_rank() == 0 and path.exists() else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0
    model.module.load_state_dict(found[0]["model"])
    optimizer.load_state_dict(found[0]["optimizer"])
    state.load_state_dict(found[0]["commpress"])
    return int(found[0]["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("elastic_run"), help="folder of the checkpoint")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "last.pt"

    dist.init_process_group("gloo")
    rank, restarts = dist.get_rank(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    state = commpress.register(model, codec="topk:0.05")  # with error feedback, as it is not unbiased

    first = load(path, model, optimizer, state)
    if rank == 0:
        print(f"{dist.get_world_size()} ranks, restart {restarts}, from step {first}", flush=True)
    for step in range(first, options.steps):
        # What a rank sees depends on step and rank alone, so a step that is done again is the same.
        data = torch.Generator().manual_seed(1000 * step + rank)
        x = torch.randn(64, 16, generator=data)
        loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True).tanh())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(path, step + 1, model, optimizer, state)
    if rank == 0:
        sent = state.counts["compressed_numel"]
        print(f"done: step {options.steps}, loss {loss.item():.4f}, compressed coordinates: {sent}", flush=True)
    state.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
