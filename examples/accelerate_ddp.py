"""Hugging Face Accelerate with compressed gradients: one line after `prepare`, one more for checkpoints.

torchrun --nproc_per_node=2 examples/accelerate_ddp.py
torchrun --nproc_per_node=2 examples/accelerate_ddp.py --resume
(or `accelerate launch --cpu --num_processes 2 ...`)

`DistributedDataParallelKwargs(comm_hook=...)` takes the names of torch's own hooks only, and ignores a function, without a word.
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

import commpress
from commpress.hooks import merge_states


class InCheckpoints:
    """A HookState for `Accelerator.register_for_checkpointing`, which lets rank 0 write. What ranks keep differs: all of it goes into the file."""

    def __init__(self, state: commpress.HookState) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.state.state_dict())
        return merge_states(states)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.state.load_state_dict(saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", help="folder for the checkpoint", default="accelerate_run")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).tanh()), 32)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)

    state = commpress.register(model, bits=2.0)  # the one line
    accelerator.register_for_checkpointing(InCheckpoints(state))
    if options.resume:
        accelerator.load_state(options.out)

    for (inputs, targets), _ in zip(data, range(options.steps), strict=False):
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.save_state(options.out)
    accelerator.print(f"step {state.step}, compressed coordinates: {state.counts['compressed_numel']}")
    state.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
