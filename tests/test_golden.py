"""Checksums of payloads and values for fixed inputs: the same on every machine, code path and version of this format.

tests/golden/payloads.txt is written by ``python tests/test_golden.py``. A changed line is a changed wire format.
"""

import pathlib
import zlib

import numpy as np
import pytest
import torch
from _inputs import CASTS, SPECS

import commpress
from commpress import ops, reference

GOLDEN = pathlib.Path(__file__).with_name("golden") / "payloads.txt"
SHAPES = ((1, 0), (127, 0), (513, 4096), (5000, 8192), (12345, 0))
PATHS = [isa for isa in ops.Isa if ops.isa_available(isa)]


def fixed_input(n: int) -> np.ndarray:
    """Made of integers and exact products alone, so that no library can change it: a heavy-tailed, signed sequence."""
    counters = np.zeros((n, 4), np.uint64)
    counters[:, 0] = np.arange(n)
    words = reference.philox(counters, (0x636F6D6D, 0x70726573)).astype(np.int64)
    x = ((words[:, 0] >> 8) - 2**23) * 2.0**-23  # (-1, 1), 24 bits
    return np.ldexp(x, (words[:, 1] >> 29) - (words[:, 2] >> 30)).astype(np.float32)


def golden_key(n: int) -> commpress.Key:
    return commpress.Key(seed=0xFEDCBA9876543210, step=n, sender=3, tensor=2, phase=1)


def line(spec: str, n: int, offset: int, payload: np.ndarray, values: np.ndarray) -> str:
    # Zeros of either sign count as one: their bits are compared with the twin's in test_codecs.py.
    checksums = zlib.crc32(payload.tobytes()), zlib.crc32((values + np.float32(0)).tobytes())
    return f"{spec} n={n} offset={offset} bytes={payload.size} payload={checksums[0]:08x} values={checksums[1]:08x}"


def twin_lines(spec: str) -> list[str]:
    lines = []
    for n, offset in SHAPES:
        payload = reference.encode(fixed_input(n), spec, golden_key(n), offset, 0.25)
        lines.append(line(spec, n, offset, payload, reference.decode(payload, spec, golden_key(n), n, offset)))
    return lines


def golden_lines(spec: str) -> list[str]:
    return [text for text in GOLDEN.read_text().splitlines() if text.split()[0] == spec]


@pytest.mark.parametrize("spec", SPECS + CASTS)
def test_the_twin(spec):
    assert twin_lines(spec) == golden_lines(spec)


@pytest.mark.parametrize("isa", PATHS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("spec", SPECS + CASTS)
def test_every_code_path(spec, isa, monkeypatch):
    used = []
    for name in ("encode", "decode"):
        real = getattr(ops, name)

        def chosen(*args, _real=real, **options):
            used.append(isa)
            return _real(*args, isa=isa, **options)

        monkeypatch.setattr(ops, name, chosen)
    codec, lines = commpress.codec(spec), []
    for n, offset in SHAPES:
        payload = codec.encode(torch.from_numpy(fixed_input(n)), golden_key(n), offset=offset, gain=0.25)
        values = codec.decode(payload, golden_key(n), out=torch.full((n,), 9.0), offset=offset)
        lines.append(line(spec, n, offset, payload.numpy(), values.numpy()))
    assert lines == golden_lines(spec)
    assert len(used) == 2 * len(SHAPES)


def test_the_file_holds_nothing_else():
    assert len(GOLDEN.read_text().splitlines()) == len(SHAPES) * len(SPECS + CASTS)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(f"{text}\n" for spec in SPECS + CASTS for text in twin_lines(spec)))
