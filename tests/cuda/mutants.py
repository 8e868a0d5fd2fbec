"""Mutants of the CUDA kernels: do test_kernels, test_formats, test_topk and test_entropy catch bugs of the kinds that kernels have?

    python tests/cuda/mutants.py [--builds plain,sanitize,threads] [--no-baseline] [NAME ...]

Each mutant below replaces one text of a file csrc/kernels/cuda_*.h. A copy of those files with the change is compiled
into build/mutants/NAME and linked with the objects of `make -C tests/cuda`; then its test runs in the builds in
turn, the likeliest first, until one catches it. Prints what caught each, and leaves the last output in
build/mutants/NAME/BUILD/output.txt; the exit status is 1 if fewer than 95 % are caught. A text that is not found
exactly once is an error, as is a mutant that does not compile and a test that fails without any mutant.

Mutants that change nothing that can be observed are left out. Among them are barriers that are redundant in every
present caller: the last ones of block_largest, fold, fill_tables, deliver_all and write_piece, where another barrier
comes before the memory is written again. So is a swizzle or an index that only exchanges two accumulators whose sum is
taken next: addition commutes.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from mutations import _entropy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KERNELS = ROOT / "csrc" / "kernels"
OUT = ROOT / "build" / "mutants"
NEEDED = 0.95
TIMEOUT = 120
# Arguments of the tests: seed, order, blocks in flight, every how many-th case.
RUNS = {
    "kernels": {
        "plain": [(1, 0, 1, 3), (2, 1, 4, 3), (3, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 3), (5, 2, 8, 5)],
        "threads": [(6, 0, 1, 20), (7, 2, 8, 20), (8, 2, 8, 9)],
    },
    "formats": {
        "plain": [(1, 0, 1, 9), (2, 2, 4, 3)],
        "sanitize": [(4, 0, 1, 9), (5, 2, 8, 9)],
        "threads": [(6, 0, 1, 40), (7, 2, 8, 20)],
    },
    "sparse": {
        "plain": [(1, 0, 1, 3), (2, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 9), (5, 2, 8, 9)],
        "threads": [(6, 0, 1, 40), (7, 2, 8, 20)],
    },
    "entropy": {
        "plain": [(1, 0, 1, 5), (2, 2, 4, 1)],
        "sanitize": [(4, 0, 1, 5), (5, 2, 8, 7)],
        "threads": [(6, 0, 8, 40), (7, 2, 8, 20)],
    },
}
# Of what is compiled with a mutant, the test.
TESTS = {"kernels": "test_kernels", "formats": "test_formats", "sparse": "test_topk", "entropy": "test_entropy"}
BUILDS = list(RUNS["kernels"])
CAUGHT = [
    (r"simt: ERROR", "simt error"),
    (r"ERROR: AddressSanitizer", "ASan"),
    (r"runtime error", "UBSan"),
    (r"ThreadSanitizer: data race", "race"),
    (r"FAILED: .*(before|behind) the buffer", "guard"),
    (r"FAILED: ", "mismatch"),
]


class Error(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # of csrc/kernels
    text: str
    replacement: str
    first: str = "plain"  # the build to try first, where only that one is likely to see it

    @property
    def emulated(self) -> str:
        """What is compiled with it, EMULATED_emulated.cpp."""
        return next((kind for kind in ("formats", "sparse", "entropy") if kind in self.file), "kernels")

    @property
    def test(self) -> str:
        return TESTS[self.emulated]

    def apply(self, source: str) -> str:
        if source.count(self.text) != 1:
            raise Error(
                f"{self.name}: its text is in {self.file} {source.count(self.text)} times, not once:\n{self.text}"
            )
        return source.replace(self.text, self.replacement)


MUTANTS = [
    # ---- barriers ----
    Mutant(
        "largest_within_warp",
        "cuda_device.h",
        "scratch[thread() / 32] = value;\n  __syncthreads();",
        "scratch[thread() / 32] = value;\n  __syncwarp();",
    ),
    Mutant(
        "fold_within_warp",
        "cuda_block.h",
        "w.sums[thread()] = accumulator;\n  __syncthreads();",
        "w.sums[thread()] = accumulator;\n  __syncwarp();",
    ),
    Mutant(
        "fold_barrier_in_one_warp",
        "cuda_block.h",
        "w.scratch[0] = bits_of(sum);\n  }\n  __syncthreads();",
        "w.scratch[0] = bits_of(sum);\n    __syncthreads();\n  }",
    ),
    Mutant(
        "butterflies_within_warp",
        "cuda_block.h",
        "w.y[i + stride] = a - b;\n    }\n    __syncthreads();",
        "w.y[i + stride] = a - b;\n    }\n    __syncwarp();",
    ),
    Mutant(
        "signs_used_at_once",
        "cuda_block.h",
        "fill_signs_by(thread(), w.signs, key, purpose, index, n);\n  __syncthreads();",
        "fill_signs_by(thread(), w.signs, key, purpose, index, n);",
    ),
    Mutant(
        "levels_over_bytes_still_read",
        "cuda_lloyd.h",
        "__syncthreads();  // the bytes may lie where the levels go",
        "__syncwarp();",
    ),
    Mutant(
        "lloyd_chosen_marked_while_cleared",
        "cuda_lloyd.h",
        "w.codes[i] = 0;\n    __syncthreads();",
        "w.codes[i] = 0;",
        "threads",
    ),
    Mutant("run_packed_before_coded", "cuda_uniform.h", "__syncwarp();\n  pack_run", "pack_run"),
    Mutant(
        "runs_stored_within_warp", "cuda_uniform.h", "__syncthreads();\n  return byte;", "__syncwarp();\n  return byte;"
    ),
    Mutant(
        "list_entry_before_zeros",
        "cuda_uniform.h",
        "return false;\n    __syncwarp();\n    for (int e",
        "return false;\n    for (int e",
        "threads",
    ),
    Mutant(
        "energy_chain_within_warp",
        "cuda_rotated.h",
        "    }\n    __syncthreads();\n  }\n  float all",
        "    }\n    __syncwarp();\n  }\n  float all",
    ),
    Mutant(
        "codes_summed_within_warp",
        "cuda_lloyd.h",
        "w.y[i] = product;\n  }\n  __syncthreads();",
        "w.y[i] = product;\n  }\n  __syncwarp();",
    ),
    Mutant(
        "next_sender_over_values_still_read",
        "cuda_lloyd.h",
        "finite_product(w.y[i], factor), sink);\n  __syncthreads();",
        "finite_product(w.y[i], factor), sink);",
    ),
    Mutant(
        "careful_encoder_overtakes_warps",
        "cuda_kernels.h",
        "__syncthreads();  // warps may still be at blocks before\n      uniform_encode",
        "uniform_encode",
        "threads",
    ),
    Mutant(
        "careful_decoder_overtakes_warps",
        "cuda_kernels.h",
        "__syncthreads();  // warps may still be at blocks before\n    for",
        "for",
        "threads",
    ),
    Mutant(
        "staged_while_still_stored", "cuda_groups.h", "__syncwarp(lanes_of_group());  // nobody", "// nobody", "threads"
    ),
    Mutant("staged_stored_at_once", "cuda_groups.h", "__syncwarp(lanes_of_group());\n    store_bytes", "store_bytes"),
    Mutant(
        "warp_meets_in_divergent_code",
        "cuda_groups.h",
        "__syncwarp(lanes_of_group());\n    store_bytes",
        "__syncwarp();\n    store_bytes",
    ),
    Mutant(
        "careful_group_stored_at_once", "cuda_uniform.h", "gain, staged, 0);\n    __syncwarp();", "gain, staged, 0);"
    ),
    Mutant(
        "careful_group_read_at_once", "cuda_uniform.h", "staged, lane, 32);\n      __syncwarp();", "staged, lane, 32);"
    ),
    Mutant(
        "list_delivered_at_once",
        "cuda_uniform.h",
        "report_invalid(report, sources, sender);\n      __syncwarp();",
        "report_invalid(report, sources, sender);",
    ),
    Mutant(
        "care_in_divergent_code",
        "cuda_uniform.h",
        "if (__any_sync(ALL_LANES, top != 0 && (__popc(some) + __popc(more) <= 4 || !ordinary(largest)))) {",
        "if (top != 0 && (__popc(some) + __popc(more) <= 4 || !ordinary(largest))) {",
    ),
    Mutant("lists_in_divergent_code", "cuda_uniform.h", "if (!__all_sync(ALL_LANES, plain)) {", "if (!plain) {"),
    Mutant(
        "exchange_within_warp",
        "cuda_rotated.h",
        "odd[256 * k] = v[2 * k + 1];\n  }\n  __syncthreads();",
        "odd[256 * k] = v[2 * k + 1];\n  }\n  __syncwarp();",
    ),
    Mutant(
        "products_within_warp",
        "cuda_rotated.h",
        "out + 4 + place.byte);\n  });\n  __syncthreads();",
        "out + 4 + place.byte);\n  });\n  __syncwarp();",
    ),
    Mutant(
        "sums_within_warp",
        "cuda_rotated.h",
        "w.sums[thread()] = sum;\n  }\n  __syncthreads();",
        "w.sums[thread()] = sum;\n  }\n  __syncwarp();",
    ),
    Mutant(
        "squares_within_warp",
        "cuda_rotated.h",
        "spot, w.y); });\n    __syncthreads();",
        "spot, w.y); });\n    __syncwarp();",
    ),
    Mutant(
        "scale_within_warp",
        "cuda_rotated.h",
        "writes at once\n  }\n  __syncthreads();",
        "writes at once\n  }\n  __syncwarp();",
    ),
    Mutant(
        "exchange_back_within_warp",
        "cuda_rotated.h",
        "v[4 * row + 3]);\n    __syncthreads();",
        "v[4 * row + 3]);\n    __syncwarp();",
    ),
    Mutant(
        "next_sender_over_exchange",
        "cuda_rotated.h",
        "(b & 0x80000000u)) * factor;\n    }\n    __syncthreads();",
        "(b & 0x80000000u)) * factor;\n    }\n    __syncwarp();",
    ),
    Mutant(
        "plain_noted_at_once",
        "cuda_kernels.h",
        "sink_of(delivery, sender));\n      __syncthreads();",
        "sink_of(delivery, sender));",
        "threads",
    ),
    Mutant(
        "scale_where_the_next_block_writes",
        "cuda_rotated.h",
        "w.scratch[8] = scale;  // beyond what the careful way of a next block writes at once\n  }\n  __syncthreads();\n  return w.scratch[8]",
        "w.scratch[1] = scale;\n  }\n  __syncthreads();\n  return w.scratch[1]",
        "threads",
    ),
    # ---- warps ----
    Mutant("half_mask", "cuda_device.h", "__reduce_max_sync(ALL_LANES, value)", "__reduce_max_sync(0xFFFFu, value)"),
    Mutant("group_maximum_of_whole_warp", "cuda_uniform.h", "step < 16; step *= 2", "step < 32; step *= 2"),
    Mutant(
        "energy_from_wrong_half",
        "cuda_rotated.h",
        "__shfl_sync(ALL_LANES, sum[m], lane)",
        "__shfl_sync(ALL_LANES, sum[m], lane + 16)",
    ),
    Mutant("total_of_wrong_width", "cuda_rotated.h", "all, width, 16);\n  return", "all, width, 8);\n  return"),
    Mutant("verdict_of_one_thread", "cuda_uniform.h", "valid = !__syncthreads_or(!valid);", "__syncthreads();"),
    Mutant(
        "ballot_of_both_groups",
        "cuda_uniform.h",
        "bits_of(values[0][4]) << 1 != 0) & lanes_of_group();",
        "bits_of(values[0][4]) << 1 != 0);",
    ),
    Mutant(
        "butterfly_of_wrong_distance",
        "cuda_rotated.h",
        "__shfl_xor_sync(ALL_LANES, v[i], bit)",
        "__shfl_xor_sync(ALL_LANES, v[i], bit ^ 8)",
    ),
    Mutant(
        "rows_joined_by_whole_warp",
        "cuda_rotated.h",
        "const uint32_t mask = lanes_of_group();",
        "const uint32_t mask = ALL_LANES;",
    ),
    Mutant(
        "rows_joined_at_wrong_distance",
        "cuda_rotated.h",
        "odd ? low[0][l] : low[1][l], 4)",
        "odd ? low[0][l] : low[1][l], 8)",
    ),
    # ---- bounds and alignment ----
    Mutant("pack_lacks_last_byte", "cuda_bytes.h", "byte < nbytes; byte += step", "byte < nbytes - 1; byte += step"),
    Mutant("list_position_at_the_end", "cuda_uniform.h", "position < n &&", "position <= n &&"),
    Mutant("input_wide_access_unaligned", "cuda_values.h", "(INPUT == FLOAT32 ? 16 : 8) == 0", "4 == 0", "sanitize"),
    Mutant("cell_past_the_table", "cuda_lloyd_tables.h", "fminf(a, LloydMax<B>::CELLS - 0.0625f)", "a"),
    Mutant(
        "tail_block_as_a_whole",
        "cuda_kernels.h",
        "const bool whole = at.n == BLOCK &&",
        "const bool whole = at.n > 4000 &&",
    ),
    Mutant("one_bit_levels_left_out", "cuda_kernels.h", "int i = 2 + thread(); i < 32", "int i = 4 + thread(); i < 32"),
    Mutant("wide_load_at_half_alignment", "cuda_bytes.h", "if (at == 0) return", "if (at % 8 == 0) return", "sanitize"),
    Mutant("wide_store_at_half_alignment", "cuda_bytes.h", "if (at == 0) {", "if (at % 8 == 0) {", "sanitize"),
    Mutant("store_lacks_last_byte", "cuda_bytes.h", "i < n; i += count) to[i]", "i < n - 1; i += count) to[i]"),
    Mutant("store_one_byte_more", "cuda_bytes.h", "i < n; i += count) to[i]", "i <= n; i += count) to[i]"),
    Mutant(
        "store_whole_chunks",
        "cuda_bytes.h",
        "c < n / 16; c += count) store_four",
        "c < (n + 15) / 16; c += count) store_four",
    ),
    Mutant(
        "load_lacks_last_byte",
        "cuda_bytes.h",
        "i < n; i += count) bytes_of(words)[i]",
        "i < n - 1; i += count) bytes_of(words)[i]",
    ),
    Mutant(
        "load_whole_chunks",
        "cuda_bytes.h",
        "c < n / 16; c += count) reinterpret_cast",
        "c < (n + 15) / 16; c += count) reinterpret_cast",
        "sanitize",
    ),
    Mutant("odd_half_words_forgotten", "cuda_bytes.h", "__ldg(reinterpret_cast<const uint16_t*>(w + 3))", "0"),
    Mutant("staging_too_small", "cuda_bytes.h", "STAGED_GROUP = 132;", "STAGED_GROUP = 128;"),
    Mutant("staging_unaligned", "cuda_bytes.h", "STAGED_GROUP = 132;", "STAGED_GROUP = 130;", "sanitize"),
    Mutant("staged_codes_overlap", "cuda_bytes.h", "STAGED_CODES = 112;", "STAGED_CODES = 96;"),
    Mutant("load_beyond_the_group", "cuda_groups.h", "if (B == 7 && shift + 8 * B > 64)", "if (B == 7)", "sanitize"),
    Mutant(
        "sums_loaded_unaligned",
        "cuda_values.h",
        "if (reinterpret_cast<uintptr_t>(from) % (4 * COLUMNS) == 0)",
        "if (true)",
        "sanitize",
    ),
    Mutant(
        "sums_stored_unaligned",
        "cuda_values.h",
        "if (reinterpret_cast<uintptr_t>(to) % (4 * COLUMNS) == 0)",
        "if (true)",
        "sanitize",
    ),
    # ---- random numbers ----
    Mutant(
        "signs_of_wrong_index",
        "cuda_block.h",
        "static_cast<uint32_t>(index / 128)",
        "static_cast<uint32_t>(index / 64)",
    ),
    Mutant(
        "second_rotation_as_first",
        "cuda_lloyd.h",
        "if (twice) careful_rotate(w, key, ROTATE_SECOND",
        "if (twice) careful_rotate(w, key, ROTATE_FIRST",
    ),
    Mutant(
        "rounding_by_thread",
        "cuda_uniform.h",
        "static_cast<uint64_t>(index + i))",
        "static_cast<uint64_t>(index + lane))",
    ),
    Mutant(
        "tensor_of_layer_forgotten", "cuda_layers.h", "place.key.tensor += static_cast<uint32_t>(layer.tensor);", ""
    ),
    Mutant("step_ignored", "cuda_layers.h", "if (job.step) place", "if (false) place"),
    Mutant("sender_ignored", "cuda_kernels.h", "at.key.sender_phase = sources.sender_phase[sender];", ""),
    Mutant("piece_index_stays", "cuda_lloyd.h", "x = x.from(size);\n    index += size;", "x = x.from(size);"),
    Mutant("rounding_of_wrong_counter", "cuda_uniform.h", "counter + static_cast<uint32_t>(pair)", "counter"),
    Mutant("rounding_of_wrong_purpose", "cuda_uniform.h", "philox(at.key, ROUND,", "philox(at.key, ROTATE_FIRST,"),
    Mutant("rounding_ignores_index", "cuda_uniform.h", "static_cast<uint32_t>(at.index / 16) + ", ""),
    Mutant(
        "signs_filled_by_wrong_threads", "cuda_rotated.h", "fill_signs_by(thread() % 32,", "fill_signs_by(thread(),"
    ),
    Mutant("fast_sign_row_off_by_one", "cuda_rotated.h", "<< (14 - 2 * high_rows)", "<< (15 - 2 * high_rows)"),
    # ---- layers ----
    Mutant("layer_of_another_unit", "cuda_layers.h", "job.layer_of_unit[unit]", "job.layer_of_unit[blockIdx.x]"),
    Mutant("offset_of_layer_forgotten", "cuda_layers.h", "place.index = layer.offset + start;", "place.index = start;"),
    Mutant(
        "bytes_from_first_block",
        "cuda_layers.h",
        "blocks_nbytes(codec, offset / BLOCK, block)",
        "blocks_nbytes(codec, 0, block)",
    ),
    Mutant(
        "units_left_out",
        "cuda_kernels.h",
        "unit += gridDim.x) {\n    const Place",
        "unit += blockDim.x) {\n    const Place",
    ),
    Mutant("bytes_of_groups_one_late", "cuda_layers.h", "+ 64 * more};", "+ 64 * most};"),
    # ---- arithmetic and its order ----
    Mutant("sign_row_off_by_one", "cuda_block.h", "31 - row % 32", "31 - (row + 1) % 32"),
    Mutant("careful_energy_backwards", "cuda_block.h", "for (int j = 0; j < 16; ++j)", "for (int j = 15; j >= 0; --j)"),
    Mutant(
        "fold_in_a_row",
        "cuda_block.h",
        "(w.sums[lane] + w.sums[16 + lane]) + (w.sums[32 + lane] + w.sums[48 + lane])",
        "w.sums[lane] + w.sums[16 + lane] + w.sums[32 + lane] + w.sums[48 + lane]",
    ),
    Mutant(
        "energy_backwards",
        "cuda_rotated.h",
        "for (int k = 0; k < 16; ++k) sum[k % 4] +=",
        "for (int k = 15; k >= 0; --k) sum[k % 4] +=",
    ),
    Mutant("contracted", "cuda_values.h", "before * sink.beta + value", "__fmaf_rn(before, sink.beta, value)"),
    Mutant("negative_codes", "cuda_lloyd_tables.h", "code4 ^ (4 * (2 * half - 1))", "8 * half - code4"),
    Mutant("energy_restarts", "cuda_rotated.h", "if (turn > 0) {", "if (false) {"),
    Mutant(
        "products_backwards",
        "cuda_rotated.h",
        "for (int i = 0; i < 64; ++i) sum += y[",
        "for (int i = 63; i >= 0; --i) sum += y[",
    ),
    Mutant(
        "exchange_on_one_side",
        "cuda_rotated.h",
        "const float4*>(y + 32 * j + 16 * ((j & 1) ^ parity))",
        "const float4*>(y + 32 * j + 16 * parity)",
    ),
    Mutant("exchange_back_on_one_side", "cuda_rotated.h", "(2 * t ^ (2 * t >> 7 & 1) << 4)", "2 * t"),
    Mutant("high_bits_lost", "cuda_rotated.h", "(odd_high << B | odd_low >> (32 - B))", "odd_high << B"),
    # ---- scales, gains, lists, delivery ----
    Mutant(
        "beta_for_every_sender", "cuda_values.h", "{true, delivery.gain, 1.0f}", "{true, delivery.gain, delivery.beta}"
    ),
    Mutant("always_accumulates", "cuda_values.h", "return {delivery.accumulate,", "return {true,"),
    Mutant("gain_of_list_forgotten", "cuda_uniform.h", "= float_of(value) * gain;", "= float_of(value);"),
    Mutant(
        "gain_of_scale_forgotten",
        "cuda_lloyd.h",
        "float_of(scale & ~SCALE32_TWO_ROTATIONS) * sink.gain",
        "float_of(scale & ~SCALE32_TWO_ROTATIONS)",
    ),
    Mutant(
        "careful_centroid_scale_ignored", "cuda_lloyd.h", "rate.centroid, m.exponent, gain", "false, m.exponent, gain"
    ),
    Mutant(
        "large_factor_overflows",
        "cuda_lloyd.h",
        "deliver(out + i, factor <= LARGE_FACTOR ? w.y[i] * factor : finite_product(w.y[i], factor), sink)",
        "deliver(out + i, w.y[i] * factor, sink)",
    ),
    Mutant("zero_group_keeps_codes", "cuda_lloyd.h", "if (clear)", "if (false)"),
    Mutant("zero_scale_means_something", "cuda_uniform.h", "if (code == 0) {", "if (false) {"),
    Mutant("list_entries_one_late", "cuda_uniform.h", "((1u << lane) - 1)", "((2u << lane) - 1)"),
    Mutant(
        "list_rest_keeps_bytes",
        "cuda_uniform.h",
        "int i = entry * count + lane; i < nbytes",
        "int i = entry * count + lane; i < 0",
    ),
    Mutant("gain_of_fp32_forgotten", "cuda_kernels.h", "gain == 1.0f ? x : x * gain", "x"),
    Mutant("centroid_scale_ignored", "cuda_rotated.h", "at.codec.centroid, 0, gain", "false, 0, gain"),
    Mutant("zero_scale_keeps_codes", "cuda_rotated.h", "!= 0;  // a block that", "+ 1 != 0;  // a block that"),
    Mutant(
        "dominant_value_ignored",
        "cuda_rotated.h",
        "!ordinary(energy) || most * most * 32.0f > energy",
        "!ordinary(energy)",
    ),
    Mutant("beta_forgotten", "cuda_values.h", "if (delivery.beta != 1.0f) {", "if (false) {"),
    Mutant("sum_begins_at_plus_zero", "cuda_values.h", "= -0.0f;", "= 0.0f;"),
    # ---- what is not finite or not valid ----
    Mutant("infinity_passes", "cuda_lloyd.h", "if (top >= SCALE32_INFINITY)", "if (top > SCALE32_INFINITY)"),
    Mutant(
        "unchosen_not_finite",
        "cuda_lloyd.h",
        "if (block_largest(most, w.scratch) >= SCALE32_INFINITY)",
        "if (block_largest(most, w.scratch) > 0xFFFFFFFEu)",
    ),
    Mutant("uniform_unchosen_not_finite", "cuda_uniform.h", "w.y[j] = finite ? ", "w.y[j] = true ? "),
    Mutant("every_scale_is_plain", "cuda_uniform.h", "<= SCALE16_LARGEST;", "<= SCALE16_NON_FINITE;"),
    Mutant("infinite_scale_is_plain", "cuda_rotated.h", "scale < SCALE32_INFINITY && ", ""),
    Mutant("list_order_unchecked", "cuda_uniform.h", "position > last && ", ""),
    Mutant("list_repeats_a_position", "cuda_uniform.h", "position > last && ", "position >= last && "),
    Mutant(
        "list_of_zeros",
        "cuda_uniform.h",
        "(value & 0x7FFFFFFFu) - 1 < SCALE32_INFINITY - 1",
        "(value & 0x7FFFFFFFu) < SCALE32_INFINITY",
    ),
    Mutant(
        "list_longer_than_codes",
        "cuda_uniform.h",
        "if (count < 1 || count * entry > nbytes)",
        "if (count < 1 || count > n)",
    ),
    Mutant("scale_unchecked", "cuda_uniform.h", "return scale16_valid(code);", "return true;"),
    Mutant(
        "two_rotations_of_lloyd",
        "cuda_lloyd.h",
        " && (scale == SCALE32_NON_FINITE || !(scale & SCALE32_TWO_ROTATIONS));",
        ";",
    ),
    Mutant(
        "infinity_not_noted",
        "cuda_block.h",
        "magnitude(out[i]) >= SCALE32_INFINITY",
        "magnitude(out[i]) > SCALE32_INFINITY",
    ),
    Mutant("non_finite_not_reported", "cuda_values.h", "if (any) atomicMax(&report->non_finite, 1);", ""),
    Mutant(
        "non_finite_not_atomic",
        "cuda_values.h",
        "atomicMax(&report->non_finite, 1);",
        "report->non_finite = 1;",
        "threads",
    ),
    Mutant(
        "invalid_not_atomic",
        "cuda_values.h",
        "atomicMax(&report->invalid, sources.position + sender + 1);",
        "if (report->invalid < sources.position + sender + 1) report->invalid = sources.position + sender + 1;",
        "threads",
    ),
    Mutant("position_of_sender_forgotten", "cuda_values.h", "sources.position + sender + 1", "sender + 1"),
    Mutant("infinite_sum_not_noted", "cuda_values.h", "most >= SCALE32_INFINITY", "most > SCALE32_INFINITY"),
    # ---- number formats ----
    Mutant("largest_of_half_a_chunk", "cuda_encode_formats.h", "__shfl_xor_sync(ALL_LANES, top, 2)", "0u"),
    Mutant(
        "scales_before_magnitudes",
        "cuda_encode_formats.h",
        "note_largest(values, spot, shape, s.largest);\n  __syncthreads();",
        "note_largest(values, spot, shape, s.largest);\n  __syncwarp();",
    ),
    Mutant(
        "packed_before_coded",
        "cuda_encode_formats.h",
        "code_any(values, s, at, spot, shape, gain);\n  __syncthreads();",
        "code_any(values, s, at, spot, shape, gain);\n  __syncwarp();",
    ),
    Mutant(
        "care_of_one_thread",
        "cuda_encode_formats.h",
        "care = __syncthreads_or(care) != 0;",
        "__syncthreads();",
    ),
    Mutant(
        "summed_before_shown",
        "cuda_encode_formats.h",
        "show_values(values, spot, s.codes);\n    __syncthreads();",
        "show_values(values, spot, s.codes);",
    ),
    Mutant(
        "folded_before_summed",
        "cuda_encode_formats.h",
        "s.partial[item] = sum;\n    }\n    __syncthreads();",
        "s.partial[item] = sum;\n    }\n    __syncwarp();",
    ),
    Mutant(
        "trits_stored_at_once",
        "cuda_encode_formats.h",
        "staged[i] = static_cast<uint8_t>(sum);\n  }\n  __syncthreads();",
        "staged[i] = static_cast<uint8_t>(sum);\n  }\n  __syncwarp();",
    ),
    Mutant(
        "trits_over_those_still_stored",
        "cuda_encode_formats.h",
        "store_bytes(s.largest, nbytes, out, thread(), threads());\n  __syncthreads();",
        "store_bytes(s.largest, nbytes, out, thread(), threads());",
        "threads",
    ),
    Mutant(
        "sums_of_eight_lanes",
        "cuda_encode_formats.h",
        "int width = 8; width; width /= 2) all",
        "int width = 4; width; width /= 2) all",
    ),
    Mutant("one_noise_for_two_lanes", "cuda_encode_formats.h", "ROUND, counter + 1)", "ROUND, counter)"),
    Mutant("noise_ignores_index", "cuda_encode_formats.h", "static_cast<uint32_t>(place.index / 16) +", ""),
    Mutant(
        "last_scale_left_out",
        "cuda_encode_formats.h",
        "*out = static_cast<uint8_t>(s.exponent[0]",
        "out[1] = static_cast<uint8_t>(s.exponent[0]",
    ),
    Mutant(
        "string_lacks_last_byte",
        "cuda_encode_formats.h",
        "byte < nbytes; byte += threads()",
        "byte < nbytes - 1; byte += threads()",
    ),
    Mutant(
        "padding_is_a_low_trit",
        "cuda_encode_formats.h",
        "s.codes[place_of_byte(p, n)] : 1u",
        "s.codes[place_of_byte(p, n)] : 0u",
    ),
    Mutant("values_read_behind_the_end", "cuda_encode_formats.h", "i < n ? x[i] : 0.0f", "x[i]", "sanitize"),
    Mutant(
        "gain_forgotten_in_care",
        "cuda_encode_formats.h",
        "clamped_product(values[lane][row], gain), -exponent",
        "values[lane][row], -exponent",
    ),
    Mutant("not_finite_has_codes", "cuda_encode_formats.h", "exponent == NOT_FINITE ? 0.0f", "exponent == -1 ? 0.0f"),
    Mutant(
        "norm_of_magnitudes",
        "cuda_encode_formats.h",
        "[](float v) { return v * v; }",
        "[](float v) { return fabsf(v); }",
    ),
    Mutant(
        "wide_codes_cut",
        "cuda_decode_formats.h",
        "shift + bits > 32 ? load_four(word + 64)",
        "shift + bits > 40 ? load_four(word + 64)",
    ),
    Mutant(
        "steps_of_first_group",
        "cuda_decode_formats.h",
        "steps.step((first_row(at) + row) >> shape.shift)",
        "steps.step(row >> shape.shift)",
    ),
    Mutant(
        "invalid_step_passes",
        "cuda_decode_formats.h",
        ">> shape.shift) && valid;\n    uint32_t",
        ">> shape.shift) || valid;\n    uint32_t",
    ),
    Mutant("outer_scale_unchecked", "cuda_decode_formats.h", "return nvfp4_outer_valid(outer);", "return true;"),
    Mutant("trits_unchecked", "cuda_decode_formats.h", "valid = valid && sum <= TRITS_LARGEST;", ""),
    Mutant(
        "short_group_as_a_whole",
        "cuda_decode_formats.h",
        "static_cast<int>(GROUP) * (spot.group + 1) > at.n",
        "static_cast<int>(GROUP) * spot.group + 400 > at.n",
    ),
    Mutant("single_values_not_noted", "cuda_decode_formats.h", "report_non_finite(report, !finite);", ""),
    # ---- topk ----
    Mutant(
        "bins_counted_before_zero",
        "cuda_encode_sparse.h",
        "s.scratch[16] = s.scratch[17] = 0;\n    __syncthreads();",
        "s.scratch[16] = s.scratch[17] = 0;",
    ),
    Mutant(
        "bins_summed_within_warp",
        "cuda_encode_sparse.h",
        "1u);\n    }\n    __syncthreads();",
        "1u);\n    }\n    __syncwarp();",
    ),
    Mutant(
        "bin_told_within_warp",
        "cuda_encode_sparse.h",
        "s.scratch[17] = wanted - above;\n  }\n  __syncthreads();",
        "s.scratch[17] = wanted - above;\n  }\n  __syncwarp();",
    ),
    Mutant(
        "candidates_within_warp",
        "cuda_encode_sparse.h",
        "s.bits[w] = word;\n  }\n  __syncthreads();",
        "s.bits[w] = word;\n  }\n  __syncwarp();",
    ),
    Mutant(
        "borders_within_warp",
        "cuda_encode_sparse.h",
        "second stream begins\n      });\n  }\n  __syncthreads();",
        "second stream begins\n      });\n  }\n  __syncwarp();",
    ),
    Mutant(
        "ranks_within_warp",
        "cuda_sparse.h",
        "scratch[warp] = sum;\n  __syncthreads();",
        "scratch[warp] = sum;\n  __syncwarp();",
    ),
    Mutant(
        "ranks_over_those_still_read",
        "cuda_sparse.h",
        "total += scratch[i];\n  }\n  __syncthreads();",
        "total += scratch[i];\n  }",
        "threads",
    ),
    Mutant("segment_used_at_once", "cuda_sparse.h", "__syncthreads();\n  return !known;", "return !known;"),
    Mutant(
        "segment_over_one_still_read",
        "cuda_sparse.h",
        "codec.fraction;\n  __syncthreads();\n  if",
        "codec.fraction;\n  if",
    ),
    Mutant(
        "marked_before_cleared",
        "cuda_decode_sparse.h",
        "s.bits[w] = 0;\n  __syncthreads();\n  if (thread() % 32",
        "s.bits[w] = 0;\n  if (thread() % 32",
    ),
    Mutant(
        "marks_read_within_warp",
        "cuda_decode_sparse.h",
        "warp == 1);\n  __syncthreads();",
        "warp == 1);\n  __syncwarp();",
    ),
    Mutant(
        "marks_not_atomic",
        "cuda_decode_sparse.h",
        "atomicOr(&s.bits[bit / 32], 1u << (bit % 32));",
        "s.bits[bit / 32] |= 1u << (bit % 32);",
        "threads",
    ),
    Mutant(
        "next_sender_over_marks", "cuda_decode_sparse.h", "++rank;\n    });\n  __syncthreads();", "++rank;\n    });"
    ),
    Mutant("scan_of_all_lanes", "cuda_sparse.h", "lane >= distance ? other : 0", "other"),
    Mutant("sum_of_half_a_warp", "cuda_sparse.h", "int distance = 16; distance", "int distance = 8; distance"),
    Mutant("finite_by_one_thread", "cuda_encode_sparse.h", "finite = __syncthreads_and(finite);", "__syncthreads();"),
    Mutant(
        "last_byte_not_cleared",
        "cuda_encode_sparse.h",
        "i < nbytes; i += threads()) out[i] = 0",
        "i < nbytes - 1; i += threads()) out[i] = 0",
    ),
    Mutant("candidates_behind_the_end", "cuda_encode_sparse.h", "i < n && magnitude", "magnitude", "sanitize"),
    Mutant(
        "last_word_forgotten",
        "cuda_encode_sparse.h",
        "32 * w < n; w += SPARSE_WARPS",
        "32 * w + 32 <= n; w += SPARSE_WARPS",
    ),
    Mutant(
        "share_lacks_last_words",
        "cuda_sparse.h",
        "(words + threads() - 1) / threads()",
        "words < threads() ? 1 : words / threads()",
    ),
    Mutant(
        "eights_begun_in_others_shares",
        "cuda_encode_sparse.h",
        "      if (w >= share.end && held == 0) return;\n",
        "",
        "threads",
    ),
    Mutant("eights_of_the_share_before", "cuda_encode_sparse.h", "      if (rank < 8 * eight) continue;\n", ""),
    Mutant("ties_one_too_many", "cuda_encode_sparse.h", "equals >= threshold.equals;", "equals > threshold.equals;"),
    Mutant(
        "ties_of_the_whole_bin", "cuda_encode_sparse.h", "s.scratch[17] = wanted - above;", "s.scratch[17] = wanted;"
    ),
    Mutant("bin_below", "cuda_encode_sparse.h", "above + s.bins[bin] < wanted", "above + s.bins[bin] <= wanted"),
    Mutant("zeros_sent", "cuda_encode_sparse.h", "tie_lost || value == 0.0f", "tie_lost"),
    Mutant("second_stream_from_the_start", "cuda_encode_sparse.h", "bits > 8 || m >= TWO_STREAMS", "bits > 8"),
    Mutant("carry_stops", "cuda_encode_sparse.h", "if (++byte(i) != 0) break;", "if (++byte(i) != 1) break;"),
    Mutant("model_of_the_first_segment", "cuda_sparse.h", "    if (!known) {", "    if (s.fraction == 0) {"),
    Mutant("positions_read_behind_the_end", "cuda_decode_sparse.h", "at < size ?", "true ?"),
    Mutant("mirrored_by_one", "cuda_decode_sparse.h", "mirrored ? n - next :", "mirrored ? n - 1 - next :"),
    Mutant(
        "streams_overlap_unnoticed", "cuda_decode_sparse.h", "if (next + s.ends[1] <= n) return next;", "return next;"
    ),
    Mutant("codes_across_bytes_cut", "cuda_decode_sparse.h", "if (shift + bits > 8)", "if (shift + bits > 9)"),
    Mutant("signs_of_levels_lost", "cuda_decode_sparse.h", "= -s.table[c];", "= s.table[c];"),
    Mutant("beta_forgotten_by_topk", "cuda_decode_sparse.h", "else if (sink.beta != 1.0f)", "else if (false)"),
]

MUTANTS += [Mutant(*mutant) for mutant in _entropy.MUTANTS]


def run(command, timeout):
    """Exit status and output; None for a time-out."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout.decode(errors="replace")


def make(*arguments):
    code, output = run(["make", "-s", "-C", str(ROOT / "tests" / "cuda"), *arguments], 600)
    if code != 0:
        raise Error(output)


def verdict(program, runs):
    """What caught it, and where; None if nothing did."""
    for arguments in runs:
        code, output = run([str(program), *map(str, arguments)], TIMEOUT)
        program.with_name("output.txt").write_text(output)
        if code is None:
            return "timeout", ""
        if code != 0:
            for pattern, name in CAUGHT:
                found = re.search(f".*{pattern}.*", output)
                if found:
                    summary = re.search(r"SUMMARY: .*", output)
                    return name, (summary or found)[0].replace(f"{OUT}/", "")
            return "crash", f"exit status {code}"
    return None


def examine(mutant, builds):
    """As verdict(), and the build."""
    folder = OUT / mutant.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "cuda" / f"{mutant.emulated}_emulated.cpp", folder)
    for path in KERNELS.glob("cuda_*.h"):
        shutil.copy(path, folder)
    path = folder / mutant.file
    path.write_text(mutant.apply(path.read_text()))
    for build in sorted(builds, key=lambda build: build != mutant.first):
        program = folder / build / mutant.test
        make(f"MUTANT={folder}", f"EMULATED={mutant.emulated}", f"TEST={mutant.test}", str(program))
        caught = verdict(program, RUNS[mutant.emulated][build])
        program.unlink()
        if caught:
            return build, *caught
    return None


def check_texts():
    """A list of complaints about texts that are not found once, and about names."""
    complaints = []
    for mutant in MUTANTS:
        try:
            mutant.apply((KERNELS / mutant.file).read_text())
        except Error as error:
            complaints.append(str(error))
    names = [mutant.name for mutant in MUTANTS]
    return complaints + [f"two mutants are called {name}" for name in sorted(set(names)) if names.count(name) > 1]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; all of them if none is named")
    parser.add_argument("--builds", default=None, help="plain,sanitize,threads: those to try, in this order")
    parser.add_argument("--no-baseline", action="store_true", help="don't run the tests without a mutant first")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise Error(f"no such mutant: {', '.join(sorted(unknown))}")
    builds = options.builds.split(",") if options.builds else list(BUILDS)
    if "threads" in builds and shutil.which(os.environ.get("CLANG", "clang++")) is None:
        print("threads NOT TESTED: no clang++ (on Debian and Ubuntu: apt-get install clang)")
        builds.remove("threads")
    complaints = check_texts()
    if complaints:
        raise Error("\n".join(complaints))
    made = ROOT / "build" / "cudatest"
    make(*[f"../../build/cudatest/{build}/{test}" for build in builds for test in TESTS.values()])
    for build in [] if options.no_baseline else builds:
        for emulated, runs in RUNS.items():
            test = TESTS[emulated]
            caught = verdict(made / build / test, runs[build])
            if caught:
                raise Error(f"{test} fails without any mutant, in {build}: {' '.join(caught)}")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.no_baseline:
        print("the tests were not run without a mutant: what fails below may be the kernels' own fault")
    survivors = []
    for mutant in chosen:
        start = time.monotonic()
        caught = examine(mutant, builds)
        what = f"{caught[0]:8} {caught[1]:10} {caught[2][:150]}" if caught else "SURVIVES"
        print(f"{mutant.name:40} {time.monotonic() - start:4.0f} s  {what}", flush=True)
        if not caught:
            survivors.append(mutant.name)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} caught"
        + "".join(f"\n  survives: {name}" for name in survivors)
    )
    return 1 if len(chosen) - len(survivors) < NEEDED * len(chosen) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        sys.exit(f"mutants: {error}")
