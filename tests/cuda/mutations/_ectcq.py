"""The encoder of `trellis`: name, file, text, replacement and the build to try first of each."""

_SEARCH, _WORK, _ENCODE = "cuda_ectcq_search.h", "cuda_ectcq_work.h", "cuda_encode_ectcq.h"

MUTANTS = [
    # ---- the search of a span ----
    (
        "branches_changed_under_others",
        _SEARCH,
        "  __syncwarp();  // lanes may still be at the block before\n",
        "",
    ),
    ("branches_used_at_once", _SEARCH, "<< 16;\n  __syncwarp();\n", "<< 16;\n"),
    ("odd_index_wins_ties", _SEARCH, "(even <= other ? 0u : 1u)", "(even < other ? 0u : 1u)"),
    ("odd_index_wins_ties_in_memory", _SEARCH, "(even <= with_odd ? 0u : 1u)", "(even < with_odd ? 0u : 1u)"),
    ("chains_begin_anywhere", _SEARCH, "cost[state] = state == 0 ? 0 : 0x8000", "cost[state] = 0"),
    ("chains_begin_anywhere_in_memory", _SEARCH, "cost[32 * state] = state == 0 ? 0 : 0x8000", "cost[32 * state] = 0"),
    ("last_of_equal_states", _SEARCH, "if (cost[state] < least) {", "if (cost[state] <= least) {"),
    ("least_taken_away_again", _SEARCH, "        least = 0;\n", ""),
    ("nothing_taken_away", _SEARCH, "uint32_t least = cost[0];\n      for", "uint32_t least = 0;\n      for"),
    ("rows_of_one_word", _SEARCH, "row += chain_row_words(states);", "row += 32;"),
    ("choices_of_the_other_parity", _SEARCH, "halves >> 4 * (2 * q + odd) & 15", "halves >> 4 * (2 * q) & 15"),
    (
        "quantiser_of_last_state_kept",
        _SEARCH,
        "q = state >> highest;\n      const uint32_t odd",
        "q = 0;\n      const uint32_t odd",
    ),
    (
        "signed_places_of_branches",
        _SEARCH,
        "from > 0 ? static_cast<uint32_t>(from) >> 11 : 0",
        "static_cast<uint32_t>(from) >> 11 & 15",
    ),
    ("values_behind_the_end", _SEARCH, "return at < n ? x[at] : 0.0f;", "return x[at];"),
    # ---- counts ----
    (
        "counts_read_at_once",
        _SEARCH,
        "COMMPRESS_DEVICE void fold() {\n    __syncwarp();",
        "COMMPRESS_DEVICE void fold() {",
    ),
    (
        "counts_cleared_too_late",
        _SEARCH,
        "      met = 0;\n    }\n    __syncwarp();",
        "      met = 0;\n    }",
        "threads",
    ),
    ("counts_never_taken_back", _SEARCH, "return blocks < 0 ? 0ull - x : x;", "return x;"),
    ("all_beyond_in_the_first_quantiser", _SEARCH, "beyond_ += cell < 32 ? 1 : 1 << 16;", "beyond_ += 1;"),
    (
        "squares_of_half_a_warp",
        _SEARCH,
        "int distance = 16; distance; distance /= 2) squares_",
        "int distance = 8; distance; distance /= 2) squares_",
    ),
    # ---- blocks and spans ----
    ("lengths_begin_anew_every_turn", _WORK, "in_trellis(s, own, kind) && !c.known)", "in_trellis(s, own, kind))"),
    ("samples_of_whole_groups", _WORK, "(met + __popc(alike & below)) %", "met %"),
    ("spans_across_substreams", _WORK, "if (first % each == 0) begun = placed;", "if (first == 0) begun = placed;"),
    (
        "ranks_of_those_counted_already",
        _WORK,
        "const uint32_t met = chosen ? own.met[kind] : 0;\n      __syncwarp();",
        "const uint32_t met = chosen ? own.met[kind] : 0;",
    ),
    (
        "symbols_of_others_read_at_once",
        _WORK,
        "s.quantisers[kind], block, met);\n    __syncwarp();",
        "s.quantisers[kind], block, met);",
    ),
    (
        "others_summed_within_warp",
        _WORK,
        "class_of(own, kind).cost = fitted.cost;\n    }\n    __syncwarp();\n  }\n  __syncthreads();",
        "class_of(own, kind).cost = fitted.cost;\n    }\n    __syncwarp();\n  }",
    ),
    ("spans_read_within_warp", _WORK, "static_cast<int>(stride));\n    __syncthreads();", "static_cast<int>(stride));"),
    (
        "counts_fitted_at_once",
        _WORK,
        "search_span(space, chains, here, code);\n  }\n  __syncthreads();",
        "search_span(space, chains, here, code);\n  }",
    ),
    (
        "answer_over_the_last_one",
        _WORK,
        "const int64_t found = own_.answer;\n    __syncthreads();",
        "const int64_t found = own_.answer;",
        "threads",
    ),
    # ---- streams and header ----
    ("squares_of_far_values", _ENCODE, "if (escaped && w <= ECTCQ_FARTHEST)", "if (escaped)"),
    ("parity_of_escapes_forgotten", _ENCODE, "ectcq_kept(v, cell & 1)", "ectcq_kept(v, 0)"),
    ("entries_of_the_first_class", _ENCODE, "if (kind != current) {", "if (current < 0) {"),
    ("room_without_states", _ENCODE, "3 * ECTCQ_LANES * static_cast", "ECTCQ_LANES * static_cast"),
]
