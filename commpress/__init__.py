"""commpress: gradient communication for PyTorch in a chosen number of bits, exactly counted.

One line after ``DDP(model)`` is enough: ``state = commpress.register(model, codec="hadamard+lloyd:2")``.
"""

from commpress import errors, mpi, optim
from commpress._version import __version__
from commpress.codecs import Codec, Key, codec
from commpress.collectives import all_reduce
from commpress.hooks import HookState, LocalSGD, ddp_hook, register
from commpress.wire import pack, unpack

__all__ = [
    "Codec",
    "HookState",
    "Key",
    "LocalSGD",
    "__version__",
    "all_reduce",
    "codec",
    "ddp_hook",
    "errors",
    "mpi",
    "optim",
    "pack",
    "register",
    "unpack",
]
