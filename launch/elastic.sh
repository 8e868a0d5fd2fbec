#!/bin/sh
# Start a training script with torchrun so that it survives the loss of ranks and machines. Copy this file and edit it.
#
#   one machine:         ./elastic.sh elastic_training.py --steps 1000
#   two machines:        on both, with the first one's address:   NODES=2 HEAD=10.0.0.1 ./elastic.sh elastic_training.py
#   two to four:         NODES=2:4 HEAD=10.0.0.1 ./elastic.sh elastic_training.py        (machines may join and leave)
#
# When a rank dies, torchrun ends the others and starts all of them anew, up to RESTARTS times (with NODES=2:4, whenever a
# machine comes or goes, too). The script must go on from where it was: examples/elastic_training.py saves model, optimizer and
# commpress's HookState in one file, from which any number of ranks can go on.
set -eu

NODES=${NODES:-1}        # machines, or the least and the most number of them, as 2:4
RANKS=${RANKS:-2}        # processes on each machine
HEAD=${HEAD:-127.0.0.1}  # address of one machine, reachable from all others; it must not be the one that goes
PORT=${PORT:-29500}      # a port that is free there
JOB=${JOB:-commpress}    # tells jobs apart that meet at the same address
RESTARTS=${RESTARTS:-3}

cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores / RANKS))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"

# With several network interfaces gloo takes the one that the host's name resolves to. `commpress doctor` says which, and which
# would be better:
# export GLOO_SOCKET_IFNAME=eth1

# torchrun's ranks meet in a store. By default it is the one that torchrun itself uses, and after a restart gloo finds in it the
# addresses of ranks that are gone ("connectFullMesh failed ... Connection refused"). With this each start has a store of its own:
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes="$NODES" --nproc_per_node="$RANKS" --max_restarts="$RESTARTS" \
    --rdzv_backend=c10d --rdzv_endpoint="$HEAD:$PORT" --rdzv_id="$JOB" "$@"
