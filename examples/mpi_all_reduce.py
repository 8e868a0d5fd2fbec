"""The mean of numpy arrays over MPI ranks, exact and compressed, and what the compressed one cost.

mpiexec -n 2 python examples/mpi_all_reduce.py hadamard+lloyd:2
"""

import sys

import numpy as np
from mpi4py import MPI

import commpress


def main() -> None:
    comm = MPI.COMM_WORLD
    spec = sys.argv[1] if len(sys.argv) > 1 else "hadamard+lloyd:2"
    mine = np.random.default_rng(comm.rank).standard_normal(1_000_000, dtype=np.float32)

    exact = mine.copy()
    commpress.mpi.all_reduce(exact, "none", comm)
    compressed = mine.copy()
    commpress.mpi.all_reduce(compressed, spec, comm)

    report = commpress.mpi.last_report(comm)
    error = np.square(compressed - exact).sum() / np.square(exact).sum()
    if comm.rank == 0:
        sent = report.bytes_payload1 + report.bytes_payload2
        print(
            f"{spec} on {comm.size} ranks: {sent} payload bytes sent by rank 0, squared error over energy {error:.4f}"
        )


if __name__ == "__main__":
    main()
