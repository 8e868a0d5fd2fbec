"""Mutants of the kernels of number formats."""

from mutations._mutant import Mutant

MUTANTS = [
    Mutant("largest_of_half_a_chunk", "cuda_formats_scales.h", "__shfl_xor_sync(ALL_LANES, top, 2)", "0u"),
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
        "cuda_formats_scales.h",
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
        "cuda_formats_scales.h",
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
    Mutant("values_read_behind_the_end", "cuda_formats_scales.h", "i < n ? x[i] : 0.0f", "x[i]", "sanitize"),
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
]
