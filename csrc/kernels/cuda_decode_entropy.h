// The entropy-coded quantisers, decoded and added up from several senders: one warp decodes symbols, a thread of
// another the classes of the blocks that come next; then all make values of them, rotate and deliver.
#pragma once
#include "cuda_entropy_tables.h"

namespace commpress {
namespace cuda {

constexpr int KINDS_THREAD = 32;  // which looks ahead

// Classes, raw bits and tables of the next part; by one thread. False where no encoder writes it.
COMMPRESS_SELDOM bool plan_part(EntropySpace& s, Part& part) {
  const int groups = smaller(PART_GROUPS, s.groups - s.decoded_groups);
  entropy::BinaryDecoder coder = s.kinds;
  for (int g = 0; g < PART_GROUPS; ++g) {  // behind the last group is nothing
    int kind = entropy::KIND_ZERO;
    if (g < groups && !next_kind(s, coder, kind)) return false;
    part.kind[g] = kind;
    part.low[g] = s.low;
    part.slot[g] = -1;
    if (kind >= 0) s.low += raw_nbytes(s, kind, group_numel(s, s.decoded_groups + g));
    if (s.low > s.low_end) return false;
  }
  s.kinds = coder;
  s.decoded_groups += groups;
  part.fills = 0;
  const int slots = s.shape.slots();
  for (int g = 0; g < PART_GROUPS; ++g) {
    const int kind = part.kind[g];
    for (int slot = 0; slot < slots; ++slot)
      if (kind >= 0 && s.tags[slot] == kind) part.slot[g] = static_cast<int8_t>(slot);
  }
  for (int g = 0; g < PART_GROUPS; ++g) {
    const int kind = part.kind[g];
    if (kind < 0 || s.of_class[kind].empty || part.slot[g] >= 0) continue;
    // In place of one that this part does not use, and no block before in it.
    const auto used = [&](int slot) {
      for (int other = 0; other < PART_GROUPS; ++other)
        if (part.slot[other] == slot) return true;
      return false;
    };
    while (used(s.hand)) s.hand = s.hand + 1 < slots ? s.hand + 1 : 0;
    s.tags[s.hand] = static_cast<int8_t>(kind);
    for (int other = g; other < PART_GROUPS; ++other)
      if (part.kind[other] == kind) part.slot[other] = static_cast<int8_t>(s.hand);
    part.fill_slot[part.fills] = static_cast<int8_t>(s.hand);
    part.fill_kind[part.fills++] = static_cast<int8_t>(kind);
  }
  if (s.decoded_groups < s.groups) return true;
  return s.last || s.low == s.low_end;  // whoever has escapes knows that those of all end before the streams
}

// Reads the stream's next words, zeros beyond its end; by all. A barrier must follow.
COMMPRESS_DEVICE void read_stream(EntropySpace& s, const uint8_t* in) {
  const int held = smaller(static_cast<int>(s.stream_end - s.stream) / 2, STREAM_WORDS);
  load_bytes(in + s.stream, 2 * held, reinterpret_cast<uint32_t*>(s.words), thread(), threads());
  for (int i = held + thread(); i < STREAM_WORDS; i += threads()) s.words[i] = 0;
}

// Takes care that as many words are held as a part can want; by all. A barrier must follow.
COMMPRESS_DEVICE void hold_stream(EntropySpace& s, const uint8_t* in) {
  if (s.used + PART <= STREAM_WORDS) return;
  __syncthreads();
  if (thread() == 0) {
    const uint32_t left = (s.stream_end - s.stream) / 2, used = static_cast<uint32_t>(s.used);
    s.stream += 2 * (used < left ? used : left);
    s.used = 0;
  }
  __syncthreads();
  read_stream(s, in);
}

// The dither of a coordinate, which lies where its value will.
COMMPRESS_DEVICE int dither_at(const EntropySpace& s, int i) { return static_cast<int>(bits_of(s.y[i])); }

// Dithers of up to BLOCK coordinates from index `index` on: sixteen for each thread. A barrier must follow.
COMMPRESS_DEVICE void fill_dithers(EntropySpace& s, const Key& key, int64_t index) {
  static_assert(BLOCK == 16 * ENTROPY_THREADS, "sixteen for each");
  const int t = thread() % 32;  // of the 32 that share GROUP_NUMEL coordinates
  const Words4 out = philox(key, DITHER, static_cast<uint32_t>(index / 16) + static_cast<uint32_t>(thread()));
  float* const y = s.y + GROUP_NUMEL * (thread() / 32);
  COMMPRESS_UNROLL_ALL
  for (int word = 0; word < 4; ++word) {
    COMMPRESS_UNROLL_ALL
    for (int byte = 0; byte < 4; ++byte) {
      const int row = 4 * (2 * (t / 8) + word / 2) + byte, lane = 2 * (t % 8) + word % 2;
      y[16 * row + lane] = float_of((rotate_left(out.w[word], 8 * byte) >> 8) - (1u << 23));
    }
  }
}

// One block's symbols, by a warp, of 32, 4 or one coder. What fills up the last block of a trellis is not wanted.
template <bool TRELLIS>
COMMPRESS_DEVICE void decode_group(EntropySpace& s, const uint8_t* in, int kind, int slot, int n, uint8_t* codes,
                                   int y_at, uint32_t& state, uint32_t& chain, int& used, uint32_t& met) {
  const ClassHeader& c = s.of_class[kind];
  const int lane = thread() % 32, lanes = s.lanes, cells = s.shape.cells(), bits = s.shape.cell_bits;
  const uint32_t below = (1u << lane) - 1;
  const int largest = c.largest, row_words = s.shape.row_words;
  const bool escapes = c.escape, folded = !TRELLIS && s.dither && c.raw == 0;
  const uint32_t* const table = s.tables + slot * s.shape.rows * row_words;
  const EctcqCode code = TRELLIS ? ectcq_code_of_states(s.trellis_states) : EctcqCode{};
  for (int first = 0; first < n; first += lanes) {
    const bool active = lane < lanes && first + lane < n;
    const int i = active ? first + lane : first;
    int row = TRELLIS ? static_cast<int>(chain & 1) : 0;
    if (folded && active) {
      const int w = dither_at(s, y_at + i), cell = (w < 0 ? -w : w) >> 20;
      row = smaller(cell, entropy::CELLS - 1);
    }
    const uint32_t* const from = table + row * row_words;
    const uint32_t place = state & (entropy::TOTAL - 1);
    uint32_t entry = from[place >> bits];
    while (place - first_of(entry) >= frequency_in(entry)) entry = from[cells + static_cast<int>(entry >> 24) + 1];
    const int number = static_cast<int>(entry >> 24);
    const uint32_t next = frequency_in(entry) * (state >> entropy::PRECISION) + (place - first_of(entry));
    const uint32_t wanting = __ballot_sync(ALL_LANES, active && next < entropy::RANS_LOW);
    if (active) {
      state = next;
      if (next < entropy::RANS_LOW) state = next << 16 | s.words[used + __popc(wanting & below)];
    }
    used += __popc(wanting);
    const bool escaped = escapes && number == 0;
    const int symbol = escaped ? 0 : 32 + number - escapes - largest;
    uint32_t odd = static_cast<uint32_t>(symbol) & 1;
    if (escapes) {
      const uint32_t all = __ballot_sync(ALL_LANES, active && escaped);
      if (active && escaped) {
        const uint32_t rank = met + __popc(all & below);
        const uint32_t value = rank < s.escapes_end ? word_from(in + s.escapes_at + 4 * rank) : 0;
        s.y[y_at + i] = float_of(value);
        odd = value & 1;
      }
      met += __popc(all);
    }
    if (active) codes[i] = static_cast<uint8_t>(TRELLIS ? symbol | row << 6 : symbol);
    if (TRELLIS) chain = code.next(chain, odd);
  }
}

// The symbols of a part, by one warp.
COMMPRESS_DEVICE void decode_part(EntropySpace& s, const Part& part, const uint8_t* in, int group, int y_at) {
  const int lane = thread() % 32;
  uint32_t state = s.states[lane], chain = s.chains[lane], met = s.escapes;
  int used = s.used, spanned = s.spanned;
  COMMPRESS_ROLLED
  for (int g = 0; g < PART_GROUPS; ++g) {
    const int kind = part.kind[g], n = group_numel(s, group + g), at = GROUP_NUMEL * g;
    if (kind < 0) continue;
    const bool trellis = s.of_class[kind].trellis, empty = s.of_class[kind].empty;
    if (trellis && spanned++ % ECTCQ_SPAN == 0) chain = 0;
    if (trellis && empty) {
      const EctcqCode code = ectcq_code_of_states(s.trellis_states);
      for (int i = 0; i < GROUP_NUMEL; i += ECTCQ_LANES) chain = code.next(chain, 0);
    }
    if (empty) continue;
    if (trellis)
      decode_group<true>(s, in, kind, part.slot[g], n, s.codes + at, y_at + at, state, chain, used, met);
    else
      decode_group<false>(s, in, kind, part.slot[g], n, s.codes + at, y_at + at, state, chain, used, met);
  }
  __syncwarp();
  s.states[lane] = state;
  s.chains[lane] = chain;
  if (lane == 0) {
    s.escapes = met;
    s.used = used;
    s.spanned = spanned;
  }
}

// `bits` bits of a string that begins at `from`, the i-th such.
COMMPRESS_DEVICE int bits_at(const uint8_t* from, int bits, int i) {
  const int first = i * bits, shift = first % 8, end = shift + bits;
  from += first / 8;
  uint32_t value = __ldg(from);
  if (end > 8) value |= static_cast<uint32_t>(__ldg(from + 1)) << 8;
  if (end > 16) value |= static_cast<uint32_t>(__ldg(from + 2)) << 16;
  return static_cast<int>(value >> shift & ((1u << bits) - 1));
}

// The value of coordinate i of a part, of which `y` has the dither, or the escape.
COMMPRESS_DEVICE float value_at(const EntropySpace& s, const Part& part, int i, const uint8_t* in, const float* y) {
  const int g = i / GROUP_NUMEL, kind = part.kind[g];
  if (kind < 0) return kind == entropy::KIND_NAN ? float_of(QUIET_NAN) : 0.0f;
  const ClassHeader& c = s.of_class[kind];
  const int code = c.empty ? 32 : s.codes[i], symbol = code & 63;
  const double factor = c.coarser ? s.coarse : s.scale;
  if (symbol == 0) return ecsq_scaled(y[i], factor);
  const bool dithered = s.dither;
  if (!dithered && c.raw == 0) {
    if (c.empty) return 0.0f;
    const int row = part.slot[g] * s.shape.rows + (code >> 6);
    const uint32_t* const symbols = s.tables + row * s.shape.row_words + s.shape.cells();
    return reinterpret_cast<const float*>(symbols + entropy::SYMBOLS)[symbol];
  }
  const int w = dithered ? static_cast<int>(bits_of(y[i])) : 0;
  int q = symbol - 32;
  if (dithered && c.raw == 0 && w < 0) q = -q;
  if (c.raw) q = q * (1 << c.raw) + bits_at(in + part.low[g], c.raw, i % GROUP_NUMEL) - (1 << c.raw >> 1);
  float z = static_cast<float>(q);
  if (dithered) z -= static_cast<float>(w) * 0x1p-24f;
  return ecsq_scaled(z, factor);
}

// Turns back n coordinates from index `index` on, as far as they were rotated; and what they are multiplied by. Ends in
// step.
COMMPRESS_DEVICE void unrotate_all(EntropySpace& s, const Key& key, int64_t index, int n) {
  int at = 0;
  for (int size = static_cast<int>(BLOCK); size >= static_cast<int>(SMALLEST_ROTATION); size /= 2) {
    if (n - at < size) continue;
    const Workspace w{s.y + at, nullptr, s.signs, nullptr, nullptr, nullptr};
    careful_unrotate(w, key, ROTATE_FIRST, index + at, size);
    const float norm = divide(1.0f, square_root(static_cast<float>(size)));
    for (int i = thread(); i < size; i += threads()) w.y[i] *= norm;
    at += size;
  }
  __syncthreads();
  for (int i = thread(); i < n; i += threads()) s.y[i] = ecsq_scaled(s.y[i], s.rotated);
}

// Where decoded values go.
struct Target {
  float* out;
  Sink sink;
  bool watched;  // this is the last sender
  uint32_t most;

  COMMPRESS_DEVICE void put(int i, float value) {
    const float sum = sink.add ? delivered(out[i], value, sink) : value;
    out[i] = sum;
    if (watched) most = larger(most, magnitude(sum));
  }
};

// Values that have no symbols.
COMMPRESS_DEVICE void deliver_simple(const EntropySpace& s, const uint8_t* in, Target& to) {
  const int first = s.first_group * GROUP_NUMEL, n = smaller(s.groups * GROUP_NUMEL, s.n - first);
  for (int i = thread(); i < n; i += threads()) {
    float value = s.mode == ECSQ_NAN ? float_of(QUIET_NAN) : 0.0f;
    if (s.mode == ECSQ_RAW) value = float_of(word_from(in + 1 + 4 * static_cast<int64_t>(first + i))) * to.sink.gain;
    to.put(i, value);
  }
}

// Reads and checks one sender's header; by all. A barrier must follow.
COMMPRESS_DEVICE bool open_segment(EntropySpace& s, const uint8_t* in, float gain) {
  __syncthreads();  // warps may still be at what was before
  if (thread() == 0) s.valid = read_header(s, in, gain);
  __syncthreads();
  if (!s.valid || !(s.mode == ECSQ_CODED || s.mode == ECSQ_TRELLIS)) return s.valid;
  add_up_kinds(s, in);
  const bool possible = classes_valid(s, in);
  if (!__syncthreads_and(possible)) return false;
  if (thread() == 0) s.valid = read_entry(s, in) && plan_part(s, s.parts[0]);
  __syncthreads();
  if (!s.valid) return false;
  if (thread() < 32) {
    s.states[thread()] = thread() < s.lanes ? word_from(in + s.stream + 4 * thread()) : 0;
    s.chains[thread()] = 0;
  }
  const bool finite = escapes_valid(s, in);
  if (!__syncthreads_and(finite)) return false;
  if (thread() == 0) s.stream += 4 * s.lanes;
  __syncthreads();
  read_stream(s, in);
  return true;
}

// One sender's substream; false if an encoder writes no such bytes.
COMMPRESS_DEVICE bool decode_substream(EntropySpace& s, const uint8_t* in, const Key& key, int64_t index, Target& to) {
  if (!open_segment(s, in, to.sink.gain)) return false;
  if (!(s.mode == ECSQ_CODED || s.mode == ECSQ_TRELLIS)) {
    deliver_simple(s, in, to);
    return true;
  }
  const int n = smaller(s.groups * GROUP_NUMEL, s.n - s.first_group * GROUP_NUMEL);
  for (int begin = 0; begin < n; begin += PART) {
    const int y_at = begin % static_cast<int>(BLOCK), here = smaller(PART, n - begin), group = begin / GROUP_NUMEL;
    const int block = begin - y_at;  // of what is rotated together
    const Part& part = s.parts[begin / PART % 2];
    if (s.dither && y_at == 0) fill_dithers(s, key, index + begin);
    fill_tables_of(s, part, in);
    hold_stream(s, in);
    __syncthreads();
    if (thread() < 32) decode_part(s, part, in, group, y_at);
    if (thread() == KINDS_THREAD && begin + PART < n) s.valid = plan_part(s, s.parts[(begin / PART + 1) % 2]);
    __syncthreads();
    if (!s.valid) return false;
    for (int i = thread(); i < here; i += threads()) {
      const float value = value_at(s, part, i, in, s.y + y_at);
      if (s.rotate)
        s.y[y_at + i] = value;
      else
        to.put(begin + i, value);
    }
    __syncthreads();
    if (!s.rotate || (y_at == 0 && begin + PART < n)) continue;
    const int all = y_at + here;
    unrotate_all(s, key, index + block, all);
    for (int i = thread(); i < all; i += threads()) to.put(block + i, s.y[i]);
    __syncthreads();
  }
  return true;
}

static __global__ void __launch_bounds__(ENTROPY_THREADS, 3)
    decode_entropy_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                          const __grid_constant__ Delivery delivery, Report* report) {
  COMMPRESS_SHARED(EntropySpace, shared, 1);
  EntropySpace& s = shared[0];
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    Layer layer = job.single;  // a copy: a reference would put the parameters into memory
    if (job.layers) layer = job.layers[job.layer_of_unit[unit]];
    if (layer.family != ENTROPY) continue;
    __syncthreads();  // warps may still be at the unit before
    if (thread() == 0) begin_unit(s, layer, unit);
    __syncthreads();
    const int64_t first = static_cast<int64_t>(s.first_group) * GROUP_NUMEL;
    Key key = job.key;
    key.tensor += static_cast<uint32_t>(layer.tensor);
    if (job.step) key.step += static_cast<uint32_t>(*job.step);
    for (int sender = 0; sender < sources.count; ++sender) {
      key.sender_phase = sources.sender_phase[sender];
      Target to{out + layer.first + first, sink_of(delivery, sender), sender + 1 == sources.count, 0};
      const bool valid = decode_substream(s, sources.payload[sender] + layer.byte, key, layer.offset + first, to);
      if (!valid && thread() == 0) report_invalid(report, sources, sender);
      report_non_finite(report, to.most >= SCALE32_INFINITY);
    }
  }
}

inline void launch_decode_entropy(const Job& job, const Sources& sources, float* out, const Delivery& delivery,
                                  Report* report, const Queue& queue) {
  COMMPRESS_LAUNCH(decode_entropy_kernel, grid_of(job.units, queue), ENTROPY_THREADS,
                   static_cast<cudaStream_t>(queue.stream), job, sources, out, delivery, report);
}

}  // namespace cuda
}  // namespace commpress
