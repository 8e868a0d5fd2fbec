"""A byte-level GPT: the standard pre-norm decoder with rotary positions, so that only the communication is on trial."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256  # a token is a byte


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the model; the default has 2.5 million parameters."""

    width: int = 256
    layers: int = 3
    heads: int = 4
    context: int = 64


SHAPES = {"base": Shape(), "large": Shape(width=384, layers=6, heads=6)}
"""Models by name: 2.5 and 10.8 million parameters."""


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each on a normalised copy of the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """float (batch, length, width), and `_angles` of that length and the heads' width -> as x."""
        batch, length, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(_rotate(query, turn), _rotate(key, turn), value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))


class ByteGPT(nn.Module):
    """Predicts the next byte."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2's initialisation: what adds to the residual stream is smaller the more layers add.
                adds = name.endswith(("attention_out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if adds else 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (batch, length) -> float32 logits (batch, length, 256)."""
        x = self.embedding(tokens)
        turn = _angles(tokens.shape[1], self.shape.width // self.shape.heads)
        for block in self.blocks:
            x = block(x, turn)
        return self.head(self.norm(x))


def _angles(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of rotary position embeddings, float32 (length, width / 2) each."""
    # Not a buffer of the model: DDP would send it.
    half = width // 2
    angles = torch.outer(torch.arange(length), 1e-4 ** (torch.arange(half) / half))
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosine, sine = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


def loss_of(model: nn.Module, windows: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats of predicting bytes 1..n from those before; windows: int64 (batch, n + 1)."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)
