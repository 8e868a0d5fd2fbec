"""A cluster on one machine: network namespaces joined by links of a given rate. Linux, root, iproute2. `commpress cluster` is its command.

from commpress.cluster import Cluster, Topology

with Cluster(Topology(ranks=4, rate="1gbit")) as cluster:
    outcome = cluster.run(["python", "train.py"])
    print(outcome.in_words(), [count.frame_bytes for count in cluster.counters().sent])
"""

from commpress.cluster._cluster import Cluster, RankProcess, check
from commpress.cluster._counters import Count, Counters
from commpress.cluster._handle import sweep
from commpress.cluster._run import Outcome, status_in_words
from commpress.cluster._topology import Shape, Topology
from commpress.cluster._units import bits_per_second, burst_of

__all__ = [
    "Cluster",
    "Count",
    "Counters",
    "Outcome",
    "RankProcess",
    "Shape",
    "Topology",
    "bits_per_second",
    "burst_of",
    "check",
    "status_in_words",
    "sweep",
]
