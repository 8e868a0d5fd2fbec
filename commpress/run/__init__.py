"""``python -m commpress.run``: runs a training script that knows nothing of commpress, and compresses its DDP models.

torchrun --nproc_per_node=2 -m commpress.run --bits 2 train.py --epochs 3

How a script's models are found, without a change to the script, to torch, or to any module:

* torch calls the hooks of ``torch.nn.modules.module.register_module_module_registration_hook`` whenever a module is assigned to another one. DistributedDataParallel
  assigns the model to itself while it is made, wherever that happens: in the script, or inside a library that the script uses.
* The new object gets a forward pre-hook of its own, which calls :func:`commpress.register` before its first forward pass that ends in a synchronised backward pass, and takes itself away.
  By then a script that has a communication hook of its own has registered it, and all ranks are there, since that pass is collective anyway.

Both hooks are torch's public interface. They are set by this room alone, for the process of the script alone; ``import commpress`` sets none.
"""

from commpress.run._execute import execute
from commpress.run._options import EPILOG, add_arguments

__all__ = ["EPILOG", "add_arguments", "execute"]
