"""Mutants of the kernels of the bitshift trellis."""

from mutations._mutant import Mutant

MUTANTS = [
    Mutant(
        "trellis_bits_used_at_once",
        "cuda_decode_trellis.h",
        "part.size);\n  __syncthreads();\n  const float factor",
        "part.size);\n  const float factor",
    ),
    Mutant(
        "part_over_one_still_read",
        "cuda_trellis.h",
        "__syncthreads();  // warps may still be at parts before\n",
        "",
        "threads",
    ),
    Mutant(
        "part_used_at_once",
        "cuda_trellis.h",
        "__syncthreads();\n  return s.part.size != 0;",
        "return s.part.size != 0;",
    ),
    Mutant(
        "block_gathered_within_warp",
        "cuda_decode_trellis.h",
        "s.y[i] = value[0];\n  }\n  __syncthreads();",
        "s.y[i] = value[0];\n  }",
    ),
    Mutant(
        "sums_rotated_at_once",
        "cuda_decode_trellis.h",
        "s.y[i] = sum[j];\n  }\n  __syncthreads();",
        "s.y[i] = sum[j];\n  }",
    ),
    Mutant(
        "next_sender_over_bits",
        "cuda_decode_trellis.h",
        "factor), sink);\n    __syncthreads();\n    return !(scale",
        "factor), sink);\n    return !(scale",
        "threads",
    ),
    Mutant(
        "blocks_in_reverse", "cuda_decode_trellis.h", "minus = wanted >> level & 1", "minus = wanted >> (3 - level) & 1"
    ),
    Mutant(
        "difference_the_other_way",
        "cuda_decode_trellis.h",
        "waiting[level][j] - value[j]",
        "value[j] - waiting[level][j]",
    ),
    Mutant("coins_of_the_first_block", "cuda_decode_trellis.h", "s.flips[block][", "s.flips[0]["),
    Mutant(
        "coins_of_the_rotation",
        "cuda_decode_trellis.h",
        "sender_phase), TRELLIS_SIGN,",
        "sender_phase), ROTATE_FIRST,",
    ),
    Mutant(
        "care_for_the_first_sender",
        "cuda_decode_trellis.h",
        "word_from(sources.payload[thread()] +",
        "word_from(sources.payload[0] +",
    ),
    Mutant(
        "care_of_one_sender_each",
        "cuda_decode_trellis.h",
        "return __syncthreads_or(twice) != 0;",
        "__syncthreads();\n  return twice;",
    ),
    Mutant("care_behind_the_senders", "cuda_decode_trellis.h", "thread() < sources.count &&", "thread() < 16 &&"),
    Mutant("parts_of_the_next_unit", "cuda_trellis.h", "done < BLOCK && ", ""),
    Mutant(
        "second_rotation_of_one_block",
        "cuda_decode_trellis.h",
        "ROTATE_SECOND, part.index + block * BLOCK",
        "ROTATE_SECOND, part.index + part.block * BLOCK",
    ),
    Mutant(
        "second_rotation_forgotten",
        "cuda_decode_trellis.h",
        "if (CAREFUL && scale & SCALE32_TWO_ROTATIONS)\n    gather",
        "if (scale == 1)\n    gather",
    ),
    Mutant("huge_scales_overflow", "cuda_decode_trellis.h", "factor <= LARGE_SCALE ?", "true ?"),
    Mutant(
        "two_rotations_of_none_accepted",
        "cuda_decode_trellis.h",
        "return !(scale & SCALE32_TWO_ROTATIONS) && ",
        "return ",
    ),
    Mutant(
        "trellis_scale_not_checked",
        "cuda_decode_trellis.h",
        "sink);\n  return scale32_valid(scale);",
        "sink);\n  return true;",
    ),
    Mutant("codeword_of_the_first_chain", "cuda_trellis.h", "start = chain * part.count;", "start = 0;"),
    Mutant("reciprocal_rounded_down", "cuda_trellis.h", " + static_cast<uint32_t>(values) - 1) /", ") /"),
    Mutant("tensor_of_trellis_forgotten", "cuda_trellis.h", "s.key.tensor += static_cast<uint32_t>(layer.tensor);", ""),
    Mutant("codebook_of_the_first_layer", "cuda_trellis.h", "job.codebooks + layer.bits", "job.codebooks"),
    Mutant("sender_of_trellis_forgotten", "cuda_trellis.h", "key.sender_phase = sender_phase;", ""),
    Mutant(
        "rest_at_the_payloads_start",
        "cuda_decode_trellis.h",
        "const int64_t index = s.part.index;",
        "const int64_t index = 0;",
    ),
    Mutant(
        "products_used_at_once",
        "cuda_encode_trellis.h",
        "products[row] = product;\n    }\n    __syncthreads();",
        "products[row] = product;\n    }",
    ),
    Mutant(
        "costs_read_within_warp",
        "cuda_encode_trellis.h",
        "= word;\n      }\n    }\n    __syncthreads();",
        "= word;\n      }\n    }\n    __syncwarp();",
    ),
    Mutant(
        "targets_within_warp",
        "cuda_encode_trellis.h",
        "y[first + thread()]) : 0.0f;\n    __syncthreads();",
        "y[first + thread()]) : 0.0f;",
    ),
    Mutant(
        "seam_told_within_warp",
        "cuda_encode_trellis.h",
        "s.node = node;\n    }\n    __syncthreads();",
        "s.node = node;\n    }",
    ),
    Mutant(
        "codes_packed_at_once",
        "cuda_encode_trellis.h",
        "node = previous(i, node);\n      }\n    __syncthreads();",
        "node = previous(i, node);\n      }",
    ),
    Mutant("last_of_equals", "cuda_encode_trellis.h", "p == 0 || cost < best", "p == 0 || cost <= best"),
    Mutant("last_seam_of_equals", "cuda_encode_trellis.h", "other < node))", "other > node))"),
    Mutant(
        "least_of_a_warp",
        "cuda_encode_trellis.h",
        "int warp = 0; warp < TRELLIS_THREADS / 32",
        "int warp = 0; warp < 1",
    ),
    Mutant(
        "targets_not_rounded", "cuda_encode_trellis.h", "trellis_target(y[first + thread()])", "y[first + thread()]"
    ),
    Mutant("targets_behind_the_chain", "cuda_encode_trellis.h", "first + thread() < coordinates ?", "true ?"),
    Mutant("no_seam", "cuda_encode_trellis.h", "walk(codewords - warm, 2 * warm);", "walk(0, 2 * warm);"),
    Mutant(
        "signs_of_states_swapped",
        "cuda_encode_trellis.h",
        "? sum + products[row] : sum - products[row]",
        "? sum - products[row] : sum + products[row]",
    ),
    Mutant(
        "pieces_not_scaled",
        "cuda_encode_trellis.h",
        "found.exponent = exponent_of(float_of(top));",
        "found.exponent = 0;",
    ),
    Mutant("never_rotated_twice", "cuda_encode_trellis.h", "t.rotated && most * 32.0f", "false && most * 32.0f"),
    Mutant("scratch_shared", "cuda_encode_trellis.h", "blockIdx.x * scratch.each", "0 * scratch.each"),
    Mutant(
        "search_in_shared_memory_always",
        "cuda_encode_trellis.h",
        "search_floats(t) <= SHARED_SEARCH ?",
        "true ?",
        "sanitize",
    ),
]
