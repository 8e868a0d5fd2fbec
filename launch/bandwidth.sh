#!/bin/sh
# How long your own script takes over links of several speeds, with and without compression, before you own them. Needs root (docs/cluster.md).
# Copy this file and edit it.
#
#   ./bandwidth.sh train.py --steps 50
#   RATES="100mbit 1gbit" SETTINGS="--bits=2 --codec=cast:bf16" RANKS=4 OUT=bandwidth ./bandwidth.sh train.py --steps 50
#
# Each line of the table is one run on an emulated cluster: seconds that it took from start to end (with Python's start: take enough
# steps), and the megabytes that the busiest rank's link carried. OUT has one log for each run.
set -eu

RATES=${RATES:-10mbit 100mbit 1gbit}
SETTINGS=${SETTINGS:---codec=cast:bf16 --codec=hadamard+lloyd:4 --bits=2 --bits=1} # of `commpress run`; one word each
RANKS=${RANKS:-2}
OUT=${OUT:-bandwidth}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"

one() { # one RATE NAME COMMAND...: runs it, and prints its line of the table
    rate=$1 name=$2
    shift 2
    log=$OUT/$rate$name.jsonl
    if ! "$PYTHON" -m commpress cluster --ranks "$RANKS" --rate "$rate" --log "$log" -- "$PYTHON" "$@" >"$log.out" 2>"$log.err"; then
        printf '%-9s %-26s failed: %s\n' "$rate" "$name" "$log.err"
        return 1
    fi
    "$PYTHON" - "$log" "$rate" "$name" <<'END'
import json, sys

records = [json.loads(line) for line in open(sys.argv[1])]
starts = [r["time"] for r in records if r["kind"] == "start"]
ends = [r["time"] for r in records if r["kind"] == "exit"]
before, after = (r for r in records if r["kind"] == "counters")
sent = max(b["frame_bytes"] - a["frame_bytes"] for a, b in zip(before["sent"], after["sent"]))
print(f"{sys.argv[2]:9} {sys.argv[3]:26} {max(ends) - min(starts):9.2f} s {sent / 1e6:12.3f} MB", flush=True)
END
}

status=0
printf '%-9s %-26s %11s %15s\n' rate setting time "sent by a rank"
for rate in $RATES; do
    one "$rate" fp32 "$@" || status=1
    for setting in $SETTINGS; do
        one "$rate" "$setting" -m commpress.run --quiet "$setting" "$@" || status=1
    done
done
exit $status
