"""Mutants of what kernels share: blocks of threads, bytes, values, layers, and how a kernel goes through them."""

from mutations._mutant import Mutant

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
        "plain_noted_at_once",
        "cuda_kernels.h",
        "sink_of(delivery, sender));\n      __syncthreads();",
        "sink_of(delivery, sender));",
        "threads",
    ),
    # ---- warps ----
    Mutant("half_mask", "cuda_device.h", "__reduce_max_sync(ALL_LANES, value)", "__reduce_max_sync(0xFFFFu, value)"),
    # ---- bounds and alignment ----
    Mutant("pack_lacks_last_byte", "cuda_bytes.h", "byte < nbytes; byte += step", "byte < nbytes - 1; byte += step"),
    Mutant("input_wide_access_unaligned", "cuda_values.h", "(INPUT == FLOAT32 ? 16 : 8) == 0", "4 == 0", "sanitize"),
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
        "tensor_of_layer_forgotten", "cuda_layers.h", "place.key.tensor += static_cast<uint32_t>(layer.tensor);", ""
    ),
    Mutant("step_ignored", "cuda_layers.h", "if (job.step) place", "if (false) place"),
    Mutant("sender_ignored", "cuda_kernels.h", "at.key.sender_phase = sources.sender_phase[sender];", ""),
    # ---- layers ----
    Mutant(
        "layer_of_another_unit",
        "cuda_layers.h",
        "layer = job.layers[job.layer_of_unit[unit]]",
        "layer = job.layers[job.layer_of_unit[blockIdx.x]]",
    ),
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
    Mutant("contracted", "cuda_values.h", "before * sink.beta + value", "__fmaf_rn(before, sink.beta, value)"),
    # ---- scales, gains, lists, delivery ----
    Mutant(
        "beta_for_every_sender", "cuda_values.h", "{true, delivery.gain, 1.0f}", "{true, delivery.gain, delivery.beta}"
    ),
    Mutant("always_accumulates", "cuda_values.h", "return {delivery.accumulate,", "return {true,"),
    Mutant("gain_of_fp32_forgotten", "cuda_kernels.h", "gain == 1.0f ? x : x * gain", "x"),
    Mutant("beta_forgotten", "cuda_values.h", "if (delivery.beta != 1.0f) {", "if (false) {"),
    Mutant("sum_begins_at_plus_zero", "cuda_values.h", "= -0.0f;", "= 0.0f;"),
    # ---- what is not finite or not valid ----
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
]
