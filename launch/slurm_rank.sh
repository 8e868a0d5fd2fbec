#!/bin/sh
# One rank under Slurm: says in torchrun's words what Slurm says in its own, and runs the script. srun starts it; see slurm.sbatch.
#
#   srun sh slurm_rank.sh train.py --epochs 3
#   srun sh slurm_rank.sh -m commpress.run --bits 2 train.py --epochs 3
#
# MASTER_ADDR and MASTER_PORT come from slurm.sbatch. commpress itself reads none of these: torch.distributed does.
set -eu

: "${SLURM_PROCID:?is set by srun: start this with srun}"
: "${MASTER_ADDR:?is set by slurm.sbatch}" "${MASTER_PORT:?is set by slurm.sbatch}"

# Tasks on this machine, from a list such as 2(x3),1: two on each of three machines, then one.
local_tasks() {
    printf '%s\n' "${SLURM_STEP_TASKS_PER_NODE:-$SLURM_TASKS_PER_NODE}" | tr ',' '\n' | awk -v node="$SLURM_NODEID" '{
        split($0, part, "[(]x"); times = part[2] == "" ? 1 : part[2] + 0
        if (node < seen + times) { print part[1] + 0; exit }
        seen += times
    }'
}

export RANK="$SLURM_PROCID"
export WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_RANK="$SLURM_LOCALID"
export GROUP_RANK="$SLURM_NODEID"
LOCAL_WORLD_SIZE=$(local_tasks)
export LOCAL_WORLD_SIZE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

exec "${PYTHON:-python}" "$@"
