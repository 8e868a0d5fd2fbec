"""Mutants of the kernels of `uniform`."""

from mutations._mutant import Mutant

MUTANTS = [
    # ---- barriers ----
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
    # ---- warps ----
    Mutant("group_maximum_of_whole_warp", "cuda_uniform.h", "step < 16; step *= 2", "step < 32; step *= 2"),
    Mutant("verdict_of_one_thread", "cuda_uniform.h", "valid = !__syncthreads_or(!valid);", "__syncthreads();"),
    Mutant(
        "ballot_of_both_groups",
        "cuda_uniform.h",
        "bits_of(values[0][4]) << 1 != 0) & lanes_of_group();",
        "bits_of(values[0][4]) << 1 != 0);",
    ),
    # ---- bounds and alignment ----
    Mutant("list_position_at_the_end", "cuda_uniform.h", "position < n &&", "position <= n &&"),
    # ---- random numbers ----
    Mutant(
        "rounding_by_thread",
        "cuda_uniform.h",
        "static_cast<uint64_t>(index + i))",
        "static_cast<uint64_t>(index + lane))",
    ),
    Mutant("rounding_of_wrong_counter", "cuda_uniform.h", "counter + static_cast<uint32_t>(pair)", "counter"),
    Mutant("rounding_of_wrong_purpose", "cuda_uniform.h", "philox(at.key, ROUND,", "philox(at.key, ROTATE_FIRST,"),
    Mutant("rounding_ignores_index", "cuda_uniform.h", "static_cast<uint32_t>(at.index / 16) + ", ""),
    # ---- scales, gains, lists, delivery ----
    Mutant("gain_of_list_forgotten", "cuda_uniform.h", "= float_of(value) * gain;", "= float_of(value);"),
    Mutant("zero_scale_means_something", "cuda_uniform.h", "if (code == 0) {", "if (false) {"),
    Mutant("list_entries_one_late", "cuda_uniform.h", "((1u << lane) - 1)", "((2u << lane) - 1)"),
    Mutant(
        "list_rest_keeps_bytes",
        "cuda_uniform.h",
        "int i = entry * count + lane; i < nbytes",
        "int i = entry * count + lane; i < 0",
    ),
    # ---- what is not finite or not valid ----
    Mutant("uniform_unchosen_not_finite", "cuda_uniform.h", "w.y[j] = finite ? ", "w.y[j] = true ? "),
    Mutant("every_scale_is_plain", "cuda_uniform.h", "<= SCALE16_LARGEST;", "<= SCALE16_NON_FINITE;"),
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
]
