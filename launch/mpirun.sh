#!/bin/sh
# Start a program on the ranks of one or several machines with mpiexec. Copy this file and edit it.
#
#   one machine:       ./mpirun.sh program.py --epochs 3
#   several machines:  HOSTFILE=hosts RANKS=8 ./mpirun.sh program.py --epochs 3        (RANKS counts all; hosts has one name a line)
#   under Slurm:       srun python -m mpi4py program.py                                (srun is the launcher there)
#
# commpress itself reads no environment variable: the codec is named in the program.
set -eu

RANKS=${RANKS:-2}       # processes in all
HOSTFILE=${HOSTFILE:-}  # machines, one a line; empty: this one
LOCAL=${LOCAL:-$RANKS}  # processes on each machine
PYTHON=${PYTHON:-python}

# Threads of each rank: the cores should be shared out, and not more than once.
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores / LOCAL))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"

# `-m mpi4py` ends the whole job when one rank ends with an exception; else the others would wait for it.
if [ -z "$HOSTFILE" ]; then
    exec mpiexec -n "$RANKS" "$PYTHON" -m mpi4py "$@"
fi
# MPICH and Open MPI both know -hostfile. Open MPI needs `-x OMP_NUM_THREADS` to pass the variable on; MPICH passes all of them.
exec mpiexec -n "$RANKS" -hostfile "$HOSTFILE" "$PYTHON" -m mpi4py "$@"
