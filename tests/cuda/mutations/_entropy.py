"""The decoder of the entropy-coded quantisers: name, file, text, replacement and the build to try first of each."""

_DECODER, _HEADER, _TABLES = "cuda_decode_entropy.h", "cuda_entropy.h", "cuda_entropy_tables.h"

MUTANTS = [
    # ---- barriers ----
    ("symbols_read_within_warp", _DECODER, "__syncthreads();\n    if (!s.valid) return false;\n    for", "for"),
    ("tables_used_at_once", _DECODER, "hold_stream(s, in);\n    __syncthreads();", "hold_stream(s, in);"),
    (
        *("tables_over_those_still_read", _DECODER),
        *("    __syncthreads();\n    if (!s.rotate ||", "    if (!s.rotate ||", "threads"),
    ),
    (
        *("stream_moved_while_asked_for", _DECODER),
        *("<= STREAM_WORDS) return;\n  __syncthreads();", "<= STREAM_WORDS) return;", "threads"),
    ),
    (
        *("stream_read_before_it_moved", _DECODER),
        *("    s.used = 0;\n  }\n  __syncthreads();", "    s.used = 0;\n  }", "threads"),
    ),
    ("cells_before_symbols", _TABLES, "  __syncwarp();\n", "", "threads"),
    (
        *("dithers_over_values_still_read", _DECODER),
        *("to.put(block + i, s.y[i]);\n    __syncthreads();", "to.put(block + i, s.y[i]);", "threads"),
    ),
    (
        *("unit_over_one_still_read", _DECODER),
        *("__syncthreads();  // warps may still be at the unit before", "", "threads"),
    ),
    (
        *("header_over_one_still_read", _DECODER),
        *("__syncthreads();  // warps may still be at what was before", "", "threads"),
    ),
    # ---- warps ----
    ("words_in_reverse_order", _DECODER, "__popc(wanting & below)]", "__popc(wanting & ~below) - 1]"),
    ("words_of_idle_lanes", _DECODER, "active && next < entropy::RANS_LOW", "next < entropy::RANS_LOW"),
    ("idle_lanes_at_work", _DECODER, "lane < lanes && first + lane < n", "first + lane < n"),
    ("escapes_have_one_rank", _DECODER, "met + __popc(all & below)", "met"),
    ("sum_of_half_the_symbols", _TABLES, "own += f[half];", "own = f[half];"),
    ("sums_of_all_lanes", _TABLES, "lane >= distance ? other : 0", "other"),
    (
        "verdict_of_one_warp",
        _DECODER,
        "if (!__syncthreads_and(possible)) return false;",
        "if (!possible) return false;",
    ),
    # ---- bounds ----
    ("words_beyond_the_end", _DECODER, "s.words[i] = 0;", "s.words[i] = 1;"),
    ("stream_of_the_segment", _DECODER, "static_cast<int>(s.stream_end - s.stream) / 2", "static_cast<int>(s.nbytes)"),
    ("escapes_beyond_the_last", _DECODER, "rank < s.escapes_end ? ", "rank < s.all_escapes + 2 ? "),
    ("raw_bits_cut", _DECODER, "if (end > 16)", "if (end > 17)"),
    ("raw_bits_beyond_the_next", _DECODER, "    if (s.low > s.low_end) return false;\n", ""),
    ("slots_that_are_used", _DECODER, "while (used(s.hand))", "while (false)"),
    ("tables_overlap", _HEADER, "TABLE_WORDS / (rows * row_words)", "TABLE_WORDS / row_words", "sanitize"),
    ("stream_held_too_short", _DECODER, "s.used + PART <= STREAM_WORDS", "s.used + PART / 2 <= STREAM_WORDS"),
    # ---- the format ----
    ("chains_begin_once", _DECODER, "spanned++ % ECTCQ_SPAN == 0", "spanned++ == 0"),
    ("escapes_are_even", _DECODER, "odd = value & 1;", ""),
    ("chains_rest_in_empty_blocks", _DECODER, "chain = code.next(chain, 0);", ";"),
    ("signs_of_dithers_ignored", _DECODER, "if (dithered && c.raw == 0 && w < 0)", "if (false)"),
    ("one_cell_of_dithers", _DECODER, "(w < 0 ? -w : w) >> 20", "0"),
    ("one_step_for_all", _DECODER, "c.coarser ? s.coarse : s.scale", "s.scale"),
    ("ample_zero_lacks_one", _TABLES, "ample ? zero + left % 2 : left", "ample ? zero : left"),
    ("norm_of_a_block", _DECODER, "square_root(static_cast<float>(size))", "square_root(static_cast<float>(BLOCK))"),
    ("places_of_one_quantiser", _TABLES, "c.trellis ? 1 + 3 * row : 2", "c.trellis ? 1 : 2"),
    ("escapes_before_raw_bits", _HEADER, "if (s.raw) {", "if (false) {"),
    ("classes_of_the_next", _HEADER, "if (i < s.number)", "if (i <= s.number)"),
    ("dithers_of_the_first_block", _DECODER, "static_cast<uint32_t>(index / 16) + ", ""),
    ("sender_of_all", _DECODER, "key.sender_phase = sources.sender_phase[sender];", ""),
    ("tensor_forgotten", _DECODER, "key.tensor += static_cast<uint32_t>(layer.tensor);", ""),
    ("first_sender_watched", _DECODER, "sender + 1 == sources.count, 0}", "sender == 0, 0}"),
    # ---- what no encoder writes ----
    ("stray_classes_pass", _HEADER, "if (there) return false;", ""),
    ("impossible_tables_pass", _TABLES, "valid && left >= (ample ? 2 : 1)", "valid"),
    ("absent_classes_pass", _HEADER, "(kind < 0 || s.of_class[kind].at != 0)", "true"),
    ("huge_escapes_pass", _HEADER, "value >= -ECSQ_FARTHEST && value <= ECSQ_FARTHEST", "value == value"),
    ("gaps_in_raw_bits_pass", _DECODER, "s.last || s.low == s.low_end;", "true;"),
    ("escapes_over_streams_pass", _HEADER, "(s.escapes_end) > s.first_stream", "(s.escapes_end) > s.nbytes"),
    ("streams_overlap", _HEADER, "static_cast<uint64_t>(s.stream) + 4 * s.lanes > s.stream_end", "false"),
    ("escapes_run_backwards", _HEADER, "s.escapes > s.escapes_end || ", ""),
    ("steep_steps_pass", _HEADER, "beyond(s.step, 2048 * 400) || ", ""),
    ("rho_unchecked", _HEADER, "!(s.rho > 0.0f && s.rho <= ECSQ_FLT_MAX)", "false"),
]
