"""Hugging Face's Trainer with compressed gradients; the callback below is all there is to copy.

torchrun --nproc_per_node=2 examples/transformers_trainer.py
torchrun --nproc_per_node=2 examples/transformers_trainer.py --resume

The model is a tiny one, made here: nothing is downloaded.
"""

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import commpress


class Compression(TrainerCallback):
    """Compresses the gradients of a Trainer's DDP model, and saves the compressor's state beside its checkpoints.

    Args:
        trainer: its `model_wrapped` is the DDP model once training begins; callbacks are shown the bare model only.
        options: of `commpress.register`, such as ``bits=2.0``.
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        self.trainer = trainer
        self.options = options
        self.state: commpress.HookState | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.state = commpress.register(self.trainer.model_wrapped, **self.options)
        if state.global_step:  # resumed
            path = self._path(args, state)
            self.state.load_state_dict(torch.load(path, weights_only=True))

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        # On all ranks; each has its own.
        assert self.state is not None
        torch.save(self.state.state_dict(), self._path(args, state))

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        assert self.state is not None
        if args.process_index == 0:
            print(
                f"step {self.state.step}, compressed coordinates: {self.state.counts['compressed_numel']}", flush=True
            )
        self.state.close()

    @staticmethod
    def _path(args: TrainingArguments, state: Any) -> str:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, f"commpress-{dist.get_rank()}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", help="folder for checkpoints", default="transformers_run")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    text = torch.randint(64, (256, 32), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        model,
        TrainingArguments(
            options.out,
            use_cpu=True,
            ddp_backend="gloo",
            per_device_train_batch_size=4,
            max_steps=options.steps,
            save_steps=options.steps,
            logging_steps=4,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in text],
    )
    trainer.add_callback(Compression(trainer, bits=2.0))
    trainer.train(resume_from_checkpoint=options.resume)


if __name__ == "__main__":
    main()
