"""The GPU that is predicted for: an H100 SXM."""

from __future__ import annotations

import math

MULTIPROCESSORS = 132
CLOCK = 1.70e9  # Hz
DRAM = 0.90 * 3.35e12  # bytes per second that a good copy reaches

# Threads per clock and multiprocessor. What the uniform and the control units execute costs its issue only.
ISSUE = 128
PIPES = {"fma": 128, "multiply": 64, "alu": 64, "special": 16, "lsu": 32}

_WARPS, _BLOCKS, _REGISTERS, _SHARED = 64, 32, 65536, 228 * 1024
_SHARED_PER_BLOCK = 1024  # that the system keeps for itself
_REGISTER_UNIT = 256  # per warp

_FLOAT = {"FADD", "FMUL", "FFMA", "FADD32I", "FMUL32I", "FFMA32I", "HADD2", "HMUL2", "HFMA2"}
_SPECIAL = {"MUFU", "I2F", "F2I", "POPC", "FLO", "FCHK", "F2F", "BREV", "I2I", "FRND"}
_LSU = ("LD", "ST", "ATOM", "RED", "SHFL", "CCTL")
_UNIFORM = {"R2UR", "REDUX", "VOTEU", "LDC", "LDCU"}
_CONTROL = {
    *("BRA", "BRX", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "NOP", "CALL", "RET", "BAR", "DEPBAR", "NANOSLEEP"),
    *("ERRBAR", "YIELD", "S2R", "CS2R", "S2UR", "PREEXIT", "ACQBULK", "MEMBAR", "BMOV", "BPT"),
}


def pipe_of(opcode: str, modifiers: tuple[str, ...]) -> str | None:
    """Which of `PIPES` executes an instruction; None for one that only takes its issue.

    The names of SASS are not documented; this follows the throughputs of the CUDA programming guide for 9.0.
    """
    if opcode in _FLOAT:
        return "fma"
    if opcode == "IMAD":
        # as moves, shifts and sums these spare the other pipe; the compiler chooses them for that
        return "fma" if {"MOV", "SHL", "IADD"} & set(modifiers) else "multiply"
    if opcode in _SPECIAL:
        return "special"
    if opcode in _CONTROL or opcode in _UNIFORM or (opcode.startswith("U") and opcode != "UNPACK"):
        return None
    if opcode.startswith(_LSU):
        return "lsu"
    return "alu"


def occupancy(registers: int, shared: int, threads: int) -> int:
    """Warps that one multiprocessor holds, of blocks with that many threads and bytes of shared memory."""
    warps = -(-threads // 32)
    per_warp = math.ceil(registers * 32 / _REGISTER_UNIT) * _REGISTER_UNIT
    blocks = min(
        _BLOCKS, _WARPS // warps, _REGISTERS // max(1, per_warp * warps), _SHARED // (shared + _SHARED_PER_BLOCK)
    )
    return blocks * warps
