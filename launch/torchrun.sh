#!/bin/sh
# Start a training script on the ranks of one or several machines with torchrun. Copy this file and edit it.
#
#   one machine:    ./torchrun.sh train.py --epochs 3
#   two machines:   on both, with the first one's address, and with NODE_RANK=0 on the first and NODE_RANK=1 on the second:
#                   NODES=2 NODE_RANK=0 HEAD=10.0.0.1 ./torchrun.sh train.py --epochs 3
#   the demo's job: ./torchrun.sh -m commpress train --codec hadamard+lloyd:2
#
# commpress itself reads no environment variable: the codec is named in the script, in commpress.register(...).
set -eu

NODES=${NODES:-1}         # machines
RANKS=${RANKS:-2}         # processes on each machine
NODE_RANK=${NODE_RANK:-0} # number of this machine
HEAD=${HEAD:-127.0.0.1}   # address of machine 0, reachable from all others
PORT=${PORT:-29500}       # a port that is free on machine 0

# Threads of each rank. torchrun's own choice is 1; the cores should be shared out, and not more than once.
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores / RANKS))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"

# With several network interfaces gloo takes the one that the host's name resolves to. Name the fast one instead:
# export GLOO_SOCKET_IFNAME=eth1

if [ "$NODES" -eq 1 ]; then
    # Finds a free port by itself, so several jobs can run on one machine.
    exec torchrun --standalone --nproc_per_node="$RANKS" "$@"
fi
exec torchrun --nnodes="$NODES" --node_rank="$NODE_RANK" --nproc_per_node="$RANKS" \
    --master_addr="$HEAD" --master_port="$PORT" "$@"
