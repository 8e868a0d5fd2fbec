"""Predicts the speed of CUDA kernels from their machine code, for a GPU that need not be there.

    nvcc -ptx -arch=compute_90 -fmad=false -lineinfo kernels.cu -o kernels.ptx
    nvcc -cubin -arch=sm_90 -lineinfo kernels.ptx -o kernels.cubin
    python -m tools.roofline kernels.cubin --gates gates.json

For each kernel: what an SM would take per element if nothing but the issue of instructions, one of its pipes, or DRAM
held it up, and the slowest of these. Latencies, caches and the memory's row misses are not modelled: the prediction is
a bound, which a kernel with enough warps in flight comes near. No GPU has confirmed it so far.

gates.json has an entry for each kernel, under a part of its name that no other kernel has. Several entries for one
kernel have names of their own, and ``kernel`` for the part of its name:

    {"quantise": {"threads": 256, "elements": 8, "bytes_per_element": 4.5, "region": "loop",
                  "max": {"registers": 40, "instructions_per_element": 25},
                  "min": {"loads_128": 2, "warps": 48, "dram_share": 0.8}}}

``region`` says whose instructions count. ``loop``: those of the largest loop that loads from global memory, once for
``elements`` elements. ``all``: all of them, once for ``elements``. In place of ``region`` and ``elements``, ``counts``
names a file that the executor in tests/cuda/ptx wrote (``Counts.save``) for the PTX that the cubin was made from,
both with ``-lineinfo``: each block of instructions then counts as often as its PTX was executed, and bank conflicts
and bytes are those that were seen; ``bytes_per_element`` may then be left out.

Limits may be set on every number of the table, the names of which are the fields of `Figures`. ``spills`` must be 0
unless a limit says otherwise. What a kernel does not hold yet may have a weaker limit in ``for_now``, for a reason
in ``why``; once the limit itself is held, the table says that it can go.
"""
