"""Writes tests/data/gradient.npz: some layers of one gradient of the main job, as a bucket of a data-parallel run would hold them.

    python tools/record_gradient.py

A few dozen steps of ``commpress train``'s model on its text, one rank. Values are rounded to bfloat16; their high and low bytes are stored apart, since only the high ones compress.
"""

import pathlib

import numpy as np
import torch

from commpress.experiments._model import ByteGPT, loss_of
from commpress.experiments._settings import Settings
from commpress.experiments._text import standard_library

STEPS = 30
LAYERS = (
    "embedding",
    "blocks.0.attention",
    "blocks.0.query",
    "blocks.0.feed",
    "blocks.0.up",
    "blocks.2.query",
    "norm",
    "head",
)


def main() -> None:
    settings = Settings(codec="fp32")
    torch.manual_seed(settings.seed)
    model, corpus = ByteGPT(settings.shape), standard_library(settings.text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate / 2, betas=(0.9, 0.95))
    for step in range(STEPS):
        windows = corpus.batch(settings.windows_per_rank, settings.shape.context, seed=settings.seed, step=step)
        optimizer.zero_grad()
        loss_of(model, windows).backward()
        optimizer.step()
    kept = [p.grad.flatten() for name, p in model.named_parameters() if name.startswith(LAYERS) and p.grad is not None]
    bits = torch.cat(kept).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    path = pathlib.Path("tests/data/gradient.npz")
    path.parent.mkdir(exist_ok=True)
    sizes = np.array([layer.numel() for layer in kept])
    np.savez_compressed(path, high=(bits >> 8).astype(np.uint8), low=(bits & 255).astype(np.uint8), sizes=sizes)
    print(path, bits.size, "coordinates", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
