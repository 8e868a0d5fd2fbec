"""tools.roofline: the prediction for small kernels, and gates that must not pass."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cuda")]

import ptx  # noqa: E402

from tools.roofline import _gpu, _sass  # noqa: E402
from tools.roofline._figures import failures, predict, unneeded, work_of  # noqa: E402
from tools.roofline._sass import RooflineError  # noqa: E402

SOURCE = ROOT / "tests" / "cuda" / "roofline_samples.cu"


def missing_tool():
    try:
        for tool in ("nvdisasm", "cuobjdump"):
            _sass.find_tool(tool)
    except RooflineError as error:
        return str(error)
    return "no nvcc: neither in CUDA_HOME nor on the PATH" if ptx.find_nvcc() is None else ""


needs_tools = pytest.mark.skipif(bool(missing_tool()), reason=missing_tool() or "everything is there")

LISTING = """
//--------------------- .text.sample  --------------------------
	.section	.text.sample,"ax",@progbits
sample:
.text.sample:
	//## File ".nv_debug_ptx_txt", line 3
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
	//## File ".nv_debug_ptx_txt", line 9
        /*0010*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
	//## File ".nv_debug_ptx_txt", line 10
        /*0020*/                   MUFU.RCP R8, R4 ;
        /*0030*/                   FCHK P0, R4, R5 ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/                   MOV R7, 0x70 ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$__div_slowpath) ;
.L_x_2:
        /*0070*/                   BRA.DIV UR5, `(.L_x_3) ;
	//## File ".nv_debug_ptx_txt", line 11
        /*0080*/                   SHFL.BFLY PT, R9, R8, 0x1, 0x1f ;
.L_x_4:
	//## File ".nv_debug_ptx_txt", line 12
        /*0090*/                   STG.E.64 desc[UR6][R2.64], R8 ;
	//## File ".nv_debug_ptx_txt", line 10
        /*00a0*/               @P1 BRA `(.L_x_1) ;
	//## File ".nv_debug_ptx_txt", line 13
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   WARPSYNC.COLLECTIVE R10, `(.L_x_4) ;
        /*00d0*/                   BRA `(.L_x_4) ;
$__internal_0_$__div_slowpath:
        /*00e0*/                   IMAD.MOV.U32 R8, RZ, RZ, R4 ;
        /*00f0*/                   RET.REL.NODEC R6 `(sample) ;
.L_x_5:
        /*0100*/                   BRA `(.L_x_5);
        /*0110*/                   NOP;
"""


def listed():
    code = _sass.parse(LISTING)["sample"]
    code.registers = 32
    return code


def test_a_listing_is_read():
    code = listed()
    assert len(code.instructions) == 18
    assert [one.line for one in code.instructions[:3]] == [3, 9, 10]
    assert code.instructions[1].nbytes == 16 and code.instructions[9].nbytes == 8
    assert sorted(code.slow) == [5, 6, *range(12, 18)]


def test_work_of_a_loop_and_of_everything():
    code = listed()
    loop = work_of(code, {"elements": 4}, ROOT)
    assert sum(loop.weights) == 8 / 4 and loop.weights[0] == 0
    everything = work_of(code, {"elements": 4, "region": "all"}, ROOT)
    assert sum(everything.weights) == 10 / 4
    figures = predict(code, loop, {"bytes_per_element": 6})
    rate = _gpu.MULTIPROCESSORS * _gpu.CLOCK / 1e12
    assert figures.time_dram == pytest.approx(6e12 / _gpu.DRAM) == figures.time
    assert figures.time_issue * rate == pytest.approx(2 / 128)
    assert figures.time_lsu * rate == pytest.approx((4 + 2 + 1) / 4 / 32)
    assert figures.time_special * rate == pytest.approx(2 / 4 / 16)
    assert (figures.loads_128, figures.stores_128, figures.stores_narrow) == (1, 0, 1)


def counts_of_listing(**changes):
    lines = {3: ["mov", 1], 9: ["ld.global", 10], 11: ["shfl", 10], 12: ["st.global", 10], 13: ["ret", 9]}
    return {
        "kernel": "sample",
        "elements": 640,
        "warp_instructions": {"ld.global": 10, "st.global": 10},
        "touched_bytes": {"ld": 2560, "st": 1280},
        "shared_wavefronts": 84,
        "shared_ideal": 20,
        "lines": lines,
        **changes,
    }


def test_work_from_counts(tmp_path):
    code, path = listed(), tmp_path / "counts.json"
    path.write_text(json.dumps(counts_of_listing()))
    work = work_of(code, {"counts": "counts.json"}, tmp_path)
    assert work.weights[0] == 32 / 640 and work.weights[11] == 9 * 32 / 640
    assert set(work.weights[1:5] + work.weights[7:11]) == {320 / 640} and not any(work.weights[12:])
    assert work.bytes_per_element == 6 and work.agreement == 1 and work.conflicts == 0.1
    figures = predict(code, work, {})
    assert failures(figures, {}) == []

    unrolled = counts_of_listing(warp_instructions={"ld.global": 4, "st.global": 4})
    path.write_text(json.dumps(unrolled))
    work = work_of(code, {"counts": "counts.json"}, tmp_path)
    assert work.agreement == 2.5 and "agreement" in failures(predict(code, work, {}), {})[0]

    for changes in ({"kernel": "other"}, {"lines": {9: ["st.global", 10]}}, {"lines": {"a.cu:3": 2}}):
        path.write_text(json.dumps(counts_of_listing(**changes)))
        with pytest.raises(RooflineError):
            work_of(code, {"counts": "counts.json"}, tmp_path)
    with pytest.raises(RooflineError):
        work_of(code, {"counts": "nothing.json"}, tmp_path)


def test_predicated_accesses_and_copies(tmp_path):
    """An access whose predicate is false is issued, but moves nothing; of copies each runs in part."""
    text = LISTING.replace("                   LDG.E.128 R4", "              @!P3 LDG.E.128 R4").replace(
        "SHFL.BFLY PT, R9, R8, 0x1, 0x1f ;",
        "SHFL.BFLY PT, R9, R8, 0x1, 0x1f ;\n" + "SHFL PT, R9, R8 ;".join(["        /*0080*/                   ", ""]),
    )
    code, path = _sass.parse(text)["sample"], tmp_path / "counts.json"
    code.registers = 32
    path.write_text(json.dumps(counts_of_listing(lines={10: ["add", 40], 11: ["shfl", 20], 12: ["st.global", 10]})))
    work = work_of(code, {"counts": "counts.json"}, tmp_path)
    assert work.weights[1] == 20 * 32 / 640 and work.performed[1] == 0
    assert work.weights[8] == work.weights[9] == work.performed[9] == 10 * 32 / 640


def test_limits_for_now():
    code = listed()
    figures = predict(code, work_of(code, {"elements": 4}, ROOT), {"bytes_per_element": 6})
    gate = {"max": {"registers": 30, "warps": 64}, "for_now": {"registers": 32, "warps": 90}, "why": "a test"}
    assert failures(figures, gate) == [] and unneeded(figures, gate) == ["warps"]
    assert failures(figures, {**gate, "for_now": {"registers": 31}}) == ["registers is 32, more than 31"]
    for wrong in ({**gate, "why": ""}, {**gate, "for_now": {"stack": 0}}):
        with pytest.raises(RooflineError):
            failures(figures, wrong)


def test_gates_that_are_not_understood():
    code = listed()
    figures = predict(code, work_of(code, {"elements": 4}, ROOT), {"bytes_per_element": 6})
    for gate in ({}, {"elements": 4, "region": "loops"}, {"elements": 4, "registers": 3}):
        with pytest.raises(RooflineError):
            work_of(code, gate, ROOT)
    for limit in ("speed", "bound"):
        with pytest.raises(RooflineError):
            failures(figures, {"min": {limit: 1}})
    with pytest.raises(RooflineError):
        predict(code, work_of(code, {"elements": 4}, ROOT), {})


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "warps"),
    [(32, 0, 256, 64), (33, 0, 256, 48), (64, 0, 256, 32), (255, 0, 64, 8), (16, 0, 32, 32), (32, 100_000, 256, 16)],
)
def test_occupancy(registers, shared, threads, warps):
    assert _gpu.occupancy(registers, shared, threads) == warps


@pytest.fixture(scope="module")
def cubin(tmp_path_factory):
    path = tmp_path_factory.mktemp("roofline") / "samples.cubin"
    path.with_suffix(".ptx").write_text(ptx.compile_ptx(SOURCE, options=["-lineinfo"]))
    command = [ptx.find_nvcc(), "-cubin", "-arch=sm_90", "-lineinfo", str(path.with_suffix(".ptx")), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def examine(cubin, gates):
    """Exit code, what was printed, and the figures."""
    folder = cubin.parent
    (folder / "gates.json").write_text(json.dumps(gates))
    command = [sys.executable, "-m", "tools.roofline", str(cubin), "--gates", str(folder / "gates.json")]
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    done = subprocess.run([*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, json.loads(out.read_text()) if out.exists() else {}


WIDE = {
    "elements": 4,
    "bytes_per_element": 8,
    "max": {"registers": 24, "instructions_per_element": 6, "loads_narrow": 0},
    "min": {"loads_128": 1, "stores_128": 1, "warps": 64, "dram_share": 0.95},
}


@needs_tools
def test_a_good_kernel_passes(cubin):
    code, text, found = examine(cubin, {"wide": WIDE})
    assert code == 0 and "pass" in text, text
    assert found["wide"]["bound"] == "dram" and found["wide"]["time"] == pytest.approx(8e12 / 3.015e12, rel=1e-3)


@needs_tools
@pytest.mark.parametrize(
    ("kernel", "gate", "message"),
    [
        ("narrow", {**WIDE, "elements": 1}, "loads_128 is 0, less than 1"),
        ("spilling", {"elements": 48, "region": "all", "bytes_per_element": 8}, "spills is"),
        ("busy", WIDE, "dram_share is"),
        ("wide", {**WIDE, "max": {"registers": 8}}, "registers is"),
        ("wide", {**WIDE, "dynamic_shared": 100_000}, "warps is 16"),
    ],
)
def test_gates_that_fail(cubin, kernel, gate, message):
    code, text, found = examine(cubin, {kernel: gate})
    assert code == 1 and message in text, text
    assert found[kernel]["failures"]


@needs_tools
def test_errors(cubin):
    assert examine(cubin, {"nothing": WIDE})[0] == 2
    assert examine(cubin, {"i": WIDE})[0] == 2  # several
    code, text, _ = examine(cubin, {"spilling": WIDE})
    assert code == 2 and "no loop" in text


@needs_tools
@pytest.mark.parametrize(("turns", "least", "most"), [(0, 2.2, 2.3), (10, 25, 60)])
def test_executed_counts(cubin, turns, least, most):
    """What depends on data shows; the code of the slow path of a division, which does not run, does not count."""
    n = 4 * 16384
    x, y = np.ones(n, np.float32), np.zeros(n, np.float32)
    kernels, memory = ptx.load(cubin.with_suffix(".ptx").read_text()), ptx.Memory()
    counts = ptx.Machine(kernels["divided"], memory, 8, 256, [memory.add(x), memory.add(y), n // 4, turns]).run()
    counts.save(cubin.parent / "divided.json", n)
    code, text, found = examine(cubin, {"divided": {"counts": "divided.json", "min": {"loads_128": 1}}})
    assert code == 0 and "executed" in text, text
    figures = found["divided"]
    assert figures["bytes_per_element"] == 8 and figures["agreement"] == pytest.approx(1, abs=0.01)
    assert least < figures["instructions_per_element"] < most
