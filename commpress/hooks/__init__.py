"""What puts commpress under a training script: the DDP hook, its state, and `register`.

state = commpress.register(ddp_model, codec="hadamard+lloyd:2")        # one line after DistributedDataParallel(model)

state = commpress.HookState(codec="hadamard+lloyd:2")                  # the explicit form
ddp_model.register_comm_hook(state, commpress.ddp_hook)
"""

from commpress.hooks._auto import AutoPlan, BucketChoice
from commpress.hooks._checkpoint import merge_states
from commpress.hooks._ddp import ModelError, ddp_hook, register
from commpress.hooks._planner import default_family
from commpress.hooks._state import HookState

__all__ = [
    "AutoPlan",
    "BucketChoice",
    "HookState",
    "ModelError",
    "ddp_hook",
    "default_family",
    "merge_states",
    "register",
]
