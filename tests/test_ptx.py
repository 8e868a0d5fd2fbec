"""The executor of PTX in tests/cuda/ptx: what nvcc makes of small kernels, against numpy."""

import numpy as np
import pytest
from _ptx import POISON, SIZES, blocks_of, needs_nvcc, poisoned, ptx, random, run, samples

pytestmark = needs_nvcc


@pytest.fixture(scope="module")
def kernels():
    return samples()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("lanes", [64, 8192])
def test_struct_by_value(kernels, n, lanes):
    x, y = random().standard_normal(n).astype(np.float32), poisoned(n + 3, np.float32)
    fields = [("x", "u8"), ("y", "u8"), ("n", "i8"), ("scale", "f4"), ("shift", "f4"), ("order", "i4", 8)]
    memory = ptx.Memory()
    order = random(1).integers(-9, 9, 8)
    argument = np.array([(memory.add(x), memory.add(y), n, 1.7, -0.3, order)], np.dtype(fields, align=True))[0]
    counts = run(kernels["affine"], 3, 64, [argument], memory, lanes=lanes)
    expected = x * np.float32(1.7) + np.float32(-0.3) + order[np.arange(n) % 8].astype(np.float32)
    assert np.array_equal(y[:n], expected) and (y[n:].view(np.uint8) == POISON).all()
    assert counts.traffic["ld"].nbytes == counts.traffic["st"].nbytes == 4 * n
    assert counts.touched_bytes["st"] == 32 * blocks_of(4 * n, 32)
    assert counts.blocks == 3


def test_three_dimensions(kernels):
    grid, block = (3, 2, 2), (5, 4, 3)
    out = poisoned(12 * 60, np.uint32)
    run(kernels["grid_of_three_dimensions"], grid, block, [out])
    b, t = np.meshgrid(np.arange(12), np.arange(60), indexing="ij")
    expected = b % 3 | b // 3 % 2 << 4 | b // 6 << 8 | t % 5 << 12 | t // 5 % 4 << 16 | t // 20 << 20
    assert np.array_equal(out, expected.ravel())


@pytest.mark.parametrize("n", SIZES)
def test_tables_and_variables(kernels, n):
    codes, y, z = random().integers(0, 256, n, np.uint8), poisoned(n, np.float32), poisoned(n, np.uint32)
    levels = [0.128, 0.388, 0.657, 0.942, 1.256, 1.618, 2.069, 2.733]
    table = np.array([-level for level in reversed(levels)] + levels, np.float32)
    octets = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 9])
    memory, calls = ptx.Memory(), np.zeros(1, np.uint32)
    for launch in (1, 2):
        run(kernels["tables"], blocks_of(n), 64, [codes, y, z, n], memory)
        assert np.array_equal(y, table[codes & 15])
        assert np.array_equal(z, 10 ** (codes >> 5).astype(np.int64) + octets[codes % 12])
        run(kernels["read_calls"], 1, 1, [calls], memory)
        assert calls[0] == launch * n


def mix(a, b):
    return a * np.uint32(2654435761) ^ b >> np.uint32(3)


@pytest.mark.parametrize("n", SIZES)
def test_local_arrays_and_calls(kernels, n):
    x, y = random().integers(0, 2**32, n, np.uint32), poisoned(n, np.uint32)
    run(kernels["local_array"], blocks_of(n), 64, [x, y, n])
    row, held, total = np.arange(n), np.zeros((n, 16), np.uint32), np.zeros(n, np.uint32)
    for k in range(16):
        held[:, k * 5 & 15] = x + np.uint32(k)
    for k in range(16):
        held[row, x + np.uint32(k) & 15] ^= held[:, k + 3 & 15]
    for k in range(16):
        total = mix(total, held[row, (x >> np.uint32(4)) + np.uint32(k) & 15])
    assert np.array_equal(y, np.where(x & 1, total + x + x, mix(total, x) + 2 * x))


@pytest.mark.parametrize("n", SIZES)
def test_trip_counts_that_differ(kernels, n):
    x, steps = random().integers(1, 300, n).astype(np.uint32), poisoned(n, np.uint32)
    counts = run(kernels["collatz"], blocks_of(n), 64, [x, steps, n])

    def length(value):
        count = 0
        while value != 1:
            value, count = (3 * value + 1 if value & 1 else value // 2), count + 1
        return count

    expected = [length(value) for value in x.tolist()]
    assert steps.tolist() == expected
    # a warp pays for its slowest thread, not for more: it shows that diverged threads meet again
    slowest = sum(max(expected[i : i + 32]) for i in range(0, n, 32))
    assert counts.thread_instructions > 3 * sum(expected) and counts.issued < 8 * slowest + 50 * blocks_of(n)


@pytest.mark.parametrize("n", SIZES)
def test_switch(kernels, n):
    x, y = random().integers(0, 2**32, n, np.uint32), poisoned(n, np.uint32)
    run(kernels["jump_table"], blocks_of(n), 64, [x, y, n])
    cases = [
        lambda v: v * 3 + 1,
        lambda v: int(f"{v:032b}"[::-1], 2),
        lambda v: v // 7,
        lambda v: v ^ 0x5A5A,
        int.bit_count,
        lambda v: v << 3 | v >> 29,
        lambda v: ~v,
        lambda v: v % 1000,
        lambda v: v - 17,
    ]
    assert y.tolist() == [cases[v % 9](v) & 0xFFFFFFFF for v in x.tolist()]


JUMP = """
.visible .entry jump(.param .u64 out)
{
    .reg .b32 %r<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 3;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    $L_table: .branchtargets $L_a, $L_b, $L_a, $L_c;
    brx.idx %r2, $L_table;
    $L_a: mov.u32 %r3, 10; bra.uni $L_end;
    $L_b: mov.u32 %r3, 20; bra.uni $L_end;
    $L_c: mov.u32 %r3, 30;
    $L_end: st.global.u32 [%rd3], %r3;
    ret;
}
"""


def test_jump_table():
    out = poisoned(40, np.uint32)
    run(ptx.load(JUMP)["jump"], 1, 40, [out])
    assert out.tolist() == [10, 20, 10, 30] * 10


@pytest.mark.parametrize("n", SIZES)
def test_histogram(kernels, n):
    x, counts = random().integers(0, 40, n, np.uint8), np.zeros(256, np.uint32)
    run(kernels["histogram"], 3, 64, [x, counts, n])
    assert np.array_equal(counts, np.bincount(x, minlength=256))


@pytest.mark.parametrize("n", SIZES)
def test_atomics(kernels, n):
    x = random().integers(-1000, 1000, n).astype(np.int32)
    out, total, order = np.array([-5, 5, 0, -1, 0, 0, 0, -1], np.int32), np.zeros(1, np.float32), poisoned(n, np.uint32)
    run(kernels["atomics"], blocks_of(n), 64, [x, out, total, order, n])
    bits = [np.bitwise_or.reduce(x), np.bitwise_and.reduce(x), np.bitwise_xor.reduce(x)]
    assert out[:5].tolist() == [max(-5, x.max()), min(5, x.min()), *bits]
    assert out[5] in x and out[6] == n % 100 and out[7] == next((v for v in x if v != -1), -1)
    assert sorted(order) == sorted(i % 100 for i in range(n))
    assert total[0] == (x & 15).sum()


def test_warp_collectives(kernels):
    n = 192
    x, out = random().integers(0, 256, n).astype(np.uint32), poisoned(11 * n, np.uint32)
    run(kernels["warp"], 3, 64, [x, out, n])
    rows, lane = x.reshape(-1, 32), np.arange(32)
    found = out.reshape(11, -1, 32)
    ballot = [sum(1 << int(i) for i in lane[row & 4 != 0]) for row in rows]
    same = [[sum(1 << int(i) for i in lane[(row & 3) == (v & 3)]) for v in row] for row in rows]
    odd = [sum(1 << i for i in range(20) if row[i] & 1) + int(row[19]) for row in rows]
    votes = [int((row == x[0]).any()) | int((row < 200).all()) << 1 for row in rows]
    expected = [
        rows[:, lane ^ 5],
        rows[:, np.where(lane >= 3, lane - 3, lane)],
        rows[:, np.where(lane % 16 < 9, lane + 7, lane)],
        np.take_along_axis(rows, rows & 31, 1),
        np.repeat(ballot, 32).reshape(-1, 32),
        np.repeat(votes, 32).reshape(-1, 32),
        np.repeat(rows.max(1), 32).reshape(-1, 32),
        np.repeat(rows.sum(1), 32).reshape(-1, 32),
        np.repeat(np.bitwise_xor.reduce(rows, 1), 32).reshape(-1, 32),
        np.array(same),
    ]
    for number, row in enumerate(expected):
        assert np.array_equal(found[number], row), number
    assert np.array_equal(found[10][:, :20], np.repeat(odd, 20).reshape(-1, 20))
    assert (found[10][:, 20:] == POISON * 0x01010101).all()


@pytest.mark.parametrize("n", SIZES)
def test_barriers_and_dynamic_shared_memory(kernels, n):
    x, blocks = random().standard_normal(n).astype(np.float32), blocks_of(n)
    sums, found = poisoned(blocks, np.float32), poisoned(blocks, np.int32)
    counts = run(kernels["block_sum"], blocks, 64, [x, sums, found, n], dynamic_shared=256)
    padded = np.zeros(blocks * 64, np.float32)
    padded[:n] = x
    rows = padded.reshape(-1, 64)
    tree, width = rows.copy(), 32
    while width:
        tree, width = tree[:, :width] + tree[:, width : 2 * width], width // 2
    assert np.array_equal(sums, tree[:, 0])
    full = np.arange(1, blocks + 1) * 64 <= n
    assert np.array_equal(found, (rows > 0).sum(1) * 4 + (rows > 3).any(1) * 2 + full)
    assert counts.conflict_ratio == 1 and counts.shared_ideal > 0


@pytest.mark.parametrize("lanes", [64, 8192])
def test_blocks_that_wait_for_one_another(kernels, lanes):
    x = random().integers(0, 100, 20).astype(np.uint32)
    running, flag = poisoned(20, np.uint32), np.zeros(20, np.uint32)
    run(kernels["chain"], 20, 32, [x, running, flag], lanes=lanes)
    assert np.array_equal(running, np.cumsum(x))


@pytest.mark.parametrize("n", [0, 15, 16, 17, 1024, 1037])
def test_vectors_of_every_width(kernels, n):
    x, y = random().integers(0, 256, n + 16, np.uint8), poisoned(n + 16, np.uint8)
    counts = run(kernels["copy"], 2, 64, [x, y, n])
    assert np.array_equal(y[:n], x[:n]) and (y[n:] == POISON).all()
    assert counts.traffic["st"].nbytes == n if n else "st" not in counts.traffic


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1)])
def test_bank_conflicts(kernels, stride, wavefronts):
    y = poisoned(32, np.uint32)
    counts = run(kernels["bank_conflicts"], 1, 32, [y, stride])
    assert (counts.shared_wavefronts, counts.shared_ideal) == (2 * wavefronts, 2)
    assert sum(counts.conflicts.values()) == sum(counts.conflicts_by_source.values()) == 2 * wavefronts - 2
    assert y.tolist() == list(range(32))


def test_text_that_is_no_ptx():
    with pytest.raises(ptx.ParseError):
        ptx.load(".visible .entry k() { ret }")
    with pytest.raises(ptx.ParseError):
        ptx.load(".visible .entry k() { ret;")


def test_summary(kernels, tmp_path):
    n = 517
    x, y = random().integers(1, 300, n).astype(np.uint32), poisoned(n, np.uint32)
    counts = run(kernels["collatz"], blocks_of(n), 64, [x, y, n])
    found = counts.summary(n)
    assert found["elements"] == n and found["kernel"] == "collatz"
    assert sum(found["warp_instructions"].values()) == counts.issued == counts.warps.sum()
    assert found["warp_instructions"]["ld.global"] == -(-n // 32)
    assert counts.coverage == 1 and counts.never_executed() == []
    assert sum(warps for _, warps in counts.lines.values()) == counts.issued and len(counts.lines) == len(counts.warps)
    counts.save(tmp_path / "counts.json", n)
    assert (tmp_path / "counts.json").read_text().startswith("{")
