"""What follows `--` on the command line: the program that each rank runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from commpress.errors import SpecError

_LAUNCHERS = {("torchrun",), ("python", "-m", "torch.distributed.run"), ("python3", "-m", "torch.distributed.run")}
# What torchrun takes and the cluster decides itself, by the rank count on its own command line.
_DECIDED = {"nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf", "local_addr"}
_DECIDED |= {"master_addr", "master_port", "max_restarts", "monitor_interval", "start_method"}
_DECIDED_FLAGS = {"standalone"}


def program(words: Sequence[str], per_node: int) -> tuple[list[str], list[str]]:
    """The command that each rank runs, and remarks about what was left out of `words`.

    A first word that ends in ``.py`` is run with this Python. ``torchrun [options] script.py ...`` and ``torchrun [options] -m module ...`` mean the script or the module itself: the cluster
    is what torchrun would be, so those of its options that the cluster decides are left out, with a remark. Anything else is run as it is.

    Args:
        per_node: ranks of one node, which ``--nproc_per_node`` must agree with.

    Raises:
        SpecError: there is no command, or torchrun's options ask for something that the cluster does not do.
    """
    words = list(words)
    if not words:
        raise SpecError(
            "no command: write what each rank is to run after `--`, as in `commpress cluster --ranks 4 -- train.py`"
        )
    for launcher in _LAUNCHERS:
        if tuple(words[: len(launcher)]) == launcher:
            return _torchrun(words[len(launcher) :], per_node)
    if words[0].endswith(".py"):
        return [sys.executable, *words], []
    return words, []


def _torchrun(words: list[str], per_node: int) -> tuple[list[str], list[str]]:
    remarks: list[str] = []
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("-m", "--module"):
            if not words:
                break
            return [sys.executable, "-m", *words], remarks
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name == "no_python":
            if not words:
                break
            return words, remarks
        if name in _DECIDED_FLAGS:
            remarks.append(f"torchrun's {word} is left out: the cluster decides that itself")
            continue
        if name not in _DECIDED and name != "nproc_per_node":
            raise SpecError(
                f"torchrun's {word} means nothing here: leave it out, or write the command without torchrun"
            )
        if not equals:
            if not words:
                break
            value = words.pop(0)
        if name != "nproc_per_node":
            remarks.append(f"torchrun's --{name} {value} is left out: the cluster decides that itself")
        elif value != str(per_node):
            raise SpecError(
                f"torchrun's --nproc_per_node is {value}, but a node of this cluster has {per_node}: change --ranks or --nodes, or leave it out"
            )
    if not words:
        raise SpecError("torchrun without a script: write `torchrun script.py` or `torchrun -m module` after `--`")
    return [sys.executable, *words], remarks
