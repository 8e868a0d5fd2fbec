"""Compressed all-reduce over MPI, for numpy arrays and torch tensors. `import commpress` does not start MPI; the first call here does, if nobody has.

    from mpi4py import MPI
    import commpress.mpi

    commpress.mpi.all_reduce(array, "hadamard+lloyd:2", MPI.COMM_WORLD)

`all_reduce` reduces in place, `close` gives a communicator's resources back, `last_report` tells bytes and times. docs/mpi.md has more.
"""

from commpress.collectives import mpi_all_reduce as all_reduce
from commpress.collectives import mpi_close as close
from commpress.collectives import mpi_last_report as last_report

__all__ = ["all_reduce", "close", "last_report"]
