"""What puts commpress under a training script: `register` for DDP and FSDP2, their states, the DDP hook, and LocalSGD.

state = commpress.register(ddp_model, codec="hadamard+lloyd:2")        # one line after DistributedDataParallel(model)

state = commpress.HookState(codec="hadamard+lloyd:2")                  # the explicit form
ddp_model.register_comm_hook(state, commpress.ddp_hook)

local = commpress.LocalSGD(model, codec="hadamard+lloyd:4", every=8)       # local steps, and a round of averaging every 8
"""

from commpress.hooks._auto import AutoPlan, BucketChoice
from commpress.hooks._checkpoint import merge_states
from commpress.hooks._ddp import ModelError, ddp_hook, register
from commpress.hooks._fsdp_state import FSDPHookState
from commpress.hooks._local_sgd import LocalSGD
from commpress.hooks._planner import default_family
from commpress.hooks._state import HookState
from commpress.hooks._worker_agreement import Agreement

__all__ = [
    "Agreement",
    "AutoPlan",
    "BucketChoice",
    "FSDPHookState",
    "HookState",
    "LocalSGD",
    "ModelError",
    "ddp_hook",
    "default_family",
    "merge_states",
    "register",
]
