"""A cluster on one machine: network namespaces joined by links of a given rate. Linux, root, iproute2. `commpress cluster` is its command.

from commpress.cluster import Cluster, Topology

with Cluster(Topology(ranks=4, rate="1gbit")) as cluster:
    outcome = cluster.run(["python", "train.py"])
    print(outcome.in_words(), [count.frame_bytes for count in cluster.counters().sent])

The cost model is here too, for it is numbers only (docs/cost-model.md): :class:`Calibration` predicts what was probed (`commpress.collectives.probe`), :class:`Network` and
:func:`exact`, :func:`flat`, :func:`hierarchical` what a cluster would do that nobody has yet. `commpress plan` is its command.
"""

from commpress.cluster._cluster import Cluster, RankProcess, check
from commpress.cluster._cost import TORCH, Calibration, CodecCost
from commpress.cluster._counters import Count, Counters
from commpress.cluster._handle import sweep
from commpress.cluster._run import Outcome, status_in_words
from commpress.cluster._scaling import Estimate, Network, break_even, exact, flat, hierarchical
from commpress.cluster._topology import Shape, Topology
from commpress.cluster._units import bits_per_second, burst_of

__all__ = [
    "TORCH",
    "Calibration",
    "Cluster",
    "CodecCost",
    "Count",
    "Counters",
    "Estimate",
    "Network",
    "Outcome",
    "RankProcess",
    "Shape",
    "Topology",
    "bits_per_second",
    "break_even",
    "burst_of",
    "check",
    "exact",
    "flat",
    "hierarchical",
    "status_in_words",
    "sweep",
]
