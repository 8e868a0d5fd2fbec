"""Real text that every machine has: the Python standard library's own source files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sysconfig
from pathlib import Path

import torch

from commpress.errors import CommpressError

# Left out: third-party code (it differs between machines), the test suites (some distributions ship them, some do not),
# the character tables of `encodings` (numbers, not text) and the build's own configuration (it names this machine).
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "lib-dynload"}
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
_HELD_OUT_ONE_IN = 12
MINIMUM_TRAIN_BYTES = 1 << 20
MINIMUM_HELD_OUT_BYTES = 1 << 16


class CorpusError(CommpressError, OSError):
    """Too little text was found to train on."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes of other files to test on.

    Attributes:
        train: 1-D uint8 tensor.
        held_out: 1-D uint8 tensor, of files none of which is in ``train``.
        train_files: number of files in ``train``.
        held_out_files: number of files in ``held_out``.
        digest: SHA-256 of both, hexadecimal; equal on ranks that read the same text.
    """

    train: torch.Tensor
    held_out: torch.Tensor
    train_files: int
    held_out_files: int
    digest: str

    def unigram_loss(self) -> float:
        """Held-out cross-entropy, in nats per byte, of the best model that knows byte frequencies only."""
        seen = torch.bincount(self.train.long(), minlength=256).double() + 1.0
        wanted = torch.bincount(self.held_out.long(), minlength=256).double()
        return float(-(wanted / wanted.sum() * (seen / seen.sum()).log()).sum())

    def batch(self, windows: int, context: int, *, seed: int, step: int) -> torch.Tensor:
        """Training windows of one step: int64 (windows, context + 1), the same on every rank and in every run."""
        # A generator per step, so that a restarted run continues with the same data without replaying the stream.
        digest = hashlib.sha256(f"commpress main job {seed} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        starts = torch.randint(0, len(self.train) - context, (windows,), generator=generator)
        return self.train[starts[:, None] + torch.arange(context + 1)].long()

    def held_out_windows(self, windows: int, context: int) -> torch.Tensor:
        """A fixed sample, evenly spread over the held-out files: int64, shape (windows, context + 1). No randomness."""
        windows = min(windows, (len(self.held_out) - 1) // context)
        starts = torch.arange(windows) * ((len(self.held_out) - context - 1) / max(1, windows - 1))
        return self.held_out[starts.long()[:, None] + torch.arange(context + 1)].long()


def is_held_out(relative: str) -> bool:
    """Whether the file of that path (relative to the library's folder, with forward slashes) is kept for testing."""
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "little") % _HELD_OUT_ONE_IN == 0


def standard_library(folder: str | os.PathLike[str] | None = None) -> Corpus:
    """Reads the source files of the running interpreter's standard library, in the order of their paths.

    Args:
        folder: another folder with ``.py`` files; by default that of the standard library.

    Raises:
        CorpusError: there are fewer than 1 MiB to train on or 64 KiB to test on.
    """
    root = Path(folder if folder is not None else sysconfig.get_path("stdlib"))
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for relative in _source_files(root):
        parts[is_held_out(relative)].append((root / relative).read_bytes())
    train, held_out = (b"\n".join(parts[which]) for which in (False, True))
    if len(train) < MINIMUM_TRAIN_BYTES or len(held_out) < MINIMUM_HELD_OUT_BYTES:
        raise CorpusError(
            f"found {len(train):,} bytes of Python source to train on and {len(held_out):,} to test on in {root}; "
            f"at least {MINIMUM_TRAIN_BYTES:,} and {MINIMUM_HELD_OUT_BYTES:,} are needed. Use an interpreter whose "
            "standard library is there as source files, or name another folder of .py files with --text"
        )
    digest = hashlib.sha256(train + b"\0" + held_out).hexdigest()
    as_tensor = [torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in (train, held_out)]
    return Corpus(as_tensor[0], as_tensor[1], len(parts[False]), len(parts[True]), digest)


def _source_files(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(_SKIPPED_PREFIXES)]
        for name in files:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES) and (Path(folder) / name).is_file():
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(found)


def nats_to_bits(nats: float) -> float:
    """Cross-entropy in bits per byte."""
    return nats / math.log(2.0)
