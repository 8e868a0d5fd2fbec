"""Predicted speed of the CUDA kernels: the gates of tests/cuda/gates.json, with the work counted by executing their PTX.

The table, and what to compare a change with:

    python -m pytest tests/test_cuda_roofline.py
    python -m tools.roofline build/cuda/*.cubin --gates tests/cuda/gates.json --counts build/cuda
"""

import json

import _cuda_kernels as cuda
import numpy as np
import pytest
import torch
from _cuda_kernels import CACHE, NAMES, ROOT, Launcher, encode_on_cpu, layers_of, same_values
from _ptx import needs_nvcc
from test_roofline import needs_tools

import commpress
from tools.roofline._figures import failures, predict, work_of
from tools.roofline._sass import disassemble

pytestmark = [needs_nvcc, needs_tools]
GATES = json.loads((ROOT / "tests" / "cuda" / "gates.json").read_text())
KEY = commpress.Key(seed=12345678901234, step=3, sender=2, tensor=1, phase=1)
# Four blocks of coordinates for each block of threads: what those do once is a small part, as in a tensor of 17 M.
NUMEL = 4 * cuda.BLOCKS_PER_PROCESSOR * cuda.BLOCK
SEARCHED = 4 * cuda.BLOCK  # by the encoders of trellises, which take the executor long


def executed(name):
    """Runs what a gate is about, which its name tells, and leaves the counts where the gate looks for them."""
    spec, _, what = name.partition(" ")
    numel = SEARCHED if what == "encode" and "bitshift" in spec else NUMEL
    layers, x = layers_of(spec, numel), np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    if what == "decode and add of two rotations":
        x[:: cuda.BLOCK] = 300.0  # a value that dominates asks for them
    launcher = Launcher(layers, KEY, processors=1, scratches=cuda.BLOCKS_PER_PROCESSOR)
    if what == "encode":
        payload = launcher.encode(torch.from_numpy(x))
        assert np.array_equal(payload, encode_on_cpu(layers, KEY, torch.from_numpy(x)))
    else:
        senders = 4 if what == "decode and add from four" else 1
        keys = [KEY.replace(sender=i) for i in range(senders)]
        payloads = [encode_on_cpu(layers, key, torch.from_numpy(x)) for key in keys]
        values, report = launcher.decode(payloads, keys, x, accumulate=True, gain=0.25)
        assert same_values(values, cuda.decode_on_cpu(layers, payloads, keys, x, accumulate=True, gain=0.25))
        assert not report.any()
    (counts,) = [counts for counts in launcher.counts if GATES[name]["kernel"] in counts.kernel.name]
    counts.save(CACHE / GATES[name]["counts"], numel)
    return counts


@pytest.fixture(scope="module")
def codes():
    return {name: code for one in NAMES for name, code in disassemble(cuda.cubin(one)).items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", GATES)
def test_gate(codes, name):
    gate = GATES[name]
    if "counts" in gate:
        assert not executed(name).inexact
    (code,) = [code for full, code in codes.items() if gate["kernel"] in full]
    figures = predict(code, work_of(code, gate, CACHE), gate)
    assert failures(figures, gate) == []
    assert figures.agreement == pytest.approx(1, abs=0.02)


def test_every_kernel_has_a_gate(codes):
    kernels = {name for name in codes if "_kernel" in name}
    assert len(kernels) == len(NAMES)
    assert all(any(gate["kernel"] in name for gate in GATES.values()) for name in kernels)
