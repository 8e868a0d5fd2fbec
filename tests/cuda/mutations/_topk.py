"""Mutants of the kernels of `topk`."""

from mutations._mutant import Mutant

MUTANTS = [
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
