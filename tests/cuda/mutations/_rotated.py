"""Mutants of the kernels of `lloyd` and `hadamard+lloyd`."""

from mutations._mutant import Mutant

MUTANTS = [
    # ---- barriers ----
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
        "scale_where_the_next_block_writes",
        "cuda_rotated.h",
        "w.scratch[8] = scale;  // beyond what the careful way of a next block writes at once\n  }\n  __syncthreads();\n  return w.scratch[8]",
        "w.scratch[1] = scale;\n  }\n  __syncthreads();\n  return w.scratch[1]",
        "threads",
    ),
    # ---- warps ----
    Mutant(
        "energy_from_wrong_half",
        "cuda_rotated.h",
        "__shfl_sync(ALL_LANES, sum[m], lane)",
        "__shfl_sync(ALL_LANES, sum[m], lane + 16)",
    ),
    Mutant("total_of_wrong_width", "cuda_rotated.h", "all, width, 16);\n  return", "all, width, 8);\n  return"),
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
    Mutant("cell_past_the_table", "cuda_lloyd_tables.h", "fminf(a, LloydMax<B>::CELLS - 0.0625f)", "a"),
    # ---- random numbers ----
    Mutant(
        "second_rotation_as_first",
        "cuda_lloyd.h",
        "if (twice) careful_rotate(w, key, ROTATE_SECOND",
        "if (twice) careful_rotate(w, key, ROTATE_FIRST",
    ),
    Mutant("piece_index_stays", "cuda_lloyd.h", "x = x.from(size);\n    index += size;", "x = x.from(size);"),
    Mutant(
        "signs_filled_by_wrong_threads", "cuda_rotated.h", "fill_signs_by(thread() % 32,", "fill_signs_by(thread(),"
    ),
    Mutant("fast_sign_row_off_by_one", "cuda_rotated.h", "<< (14 - 2 * high_rows)", "<< (15 - 2 * high_rows)"),
    # ---- arithmetic and its order ----
    Mutant(
        "energy_backwards",
        "cuda_rotated.h",
        "for (int k = 0; k < 16; ++k) sum[k % 4] +=",
        "for (int k = 15; k >= 0; --k) sum[k % 4] +=",
    ),
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
    Mutant("centroid_scale_ignored", "cuda_rotated.h", "at.codec.centroid, 0, gain", "false, 0, gain"),
    Mutant("zero_scale_keeps_codes", "cuda_rotated.h", "!= 0;  // a block that", "+ 1 != 0;  // a block that"),
    Mutant(
        "dominant_value_ignored",
        "cuda_rotated.h",
        "!ordinary(energy) || most * most * 32.0f > energy",
        "!ordinary(energy)",
    ),
    # ---- what is not finite or not valid ----
    Mutant("infinity_passes", "cuda_lloyd.h", "if (top >= SCALE32_INFINITY)", "if (top > SCALE32_INFINITY)"),
    Mutant(
        "unchosen_not_finite",
        "cuda_lloyd.h",
        "if (block_largest(most, w.scratch) >= SCALE32_INFINITY)",
        "if (block_largest(most, w.scratch) > 0xFFFFFFFEu)",
    ),
    Mutant("infinite_scale_is_plain", "cuda_rotated.h", "scale < SCALE32_INFINITY && ", ""),
    Mutant(
        "two_rotations_of_lloyd",
        "cuda_lloyd.h",
        " && (scale == SCALE32_NON_FINITE || !(scale & SCALE32_TWO_ROTATIONS));",
        ";",
    ),
]
