"""Lightning with compressed gradients, on CPUs or GPUs; the callback below is all there is to copy.

python examples/lightning_ddp.py                            # Lightning starts two processes on this machine
torchrun --nproc_per_node=2 examples/lightning_ddp.py       # or torchrun does
python examples/lightning_ddp.py --resume FOLDER/last.ckpt

`DDPStrategy(ddp_comm_hook=...)` would do on GPUs only: on CPUs Lightning ignores it, without a word.
"""

import argparse
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

import commpress
from commpress.hooks import merge_states


class Compression(lightning.Callback):
    """Compresses the gradients of a DDP run, and keeps the compressor's state in Lightning's checkpoints.

    Args:
        options: of `commpress.register`, such as ``bits=2.0``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.state: commpress.HookState | None = None
        self.saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.state = commpress.register(trainer.strategy.model, **self.options)
        if self.saved is not None:
            self.state.load_state_dict(self.saved)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning calls this on all ranks, and rank 0 writes. What ranks keep differs: all of it goes into the file.
        if self.state is not None:
            states: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(states, self.state.state_dict())
            checkpoint["commpress"] = merge_states(states)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint.get("commpress")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.state is not None and trainer.is_global_zero:
            sent = self.state.counts["compressed_numel"]
            print(f"step {self.state.step}, compressed coordinates: {sent}", flush=True)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # Not before: a last checkpoint may be saved when training has ended.
        if self.state is not None:
            self.state.close()
            self.state = None


class Regression(lightning.LightningModule):
    """Something to train."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn
        self.net = layers.Sequential(layers.Linear(16, 256), layers.ReLU(), layers.Linear(256, 1))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self) -> Any:
        x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).tanh()), 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", help="folder for checkpoints", default="lightning_run")
    parser.add_argument("--resume", metavar="FILE")
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        callbacks=[
            Compression(bits=2.0),
            lightning.pytorch.callbacks.ModelCheckpoint(options.out, save_last=True, every_n_train_steps=8),
        ],
        max_steps=options.steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), ckpt_path=options.resume)


if __name__ == "__main__":
    main()
