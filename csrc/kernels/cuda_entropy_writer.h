// The streams of a segment, a warp for each substream, to scratch memory; and from there to the payload, with escapes
// and raw bits.
#pragma once
#include "cuda_entropy_rate.h"

namespace commpress {
namespace cuda {

// Where a warp is in a substream, which it goes through from its end. The coders' states are the lanes'.
struct StreamWriter {
  uint32_t state;
  uint8_t* at;     // the last word that was written
  float* escapes;  // the last one
  uint32_t escaped;

  // The lanes' next symbols, those of higher lanes first; `entry`: frequency | start << 16. By the whole warp.
  COMMPRESS_DEVICE void put(bool active, uint32_t entry) {
    const uint32_t frequency = entry & 0xFFFF;
    const bool full = active && entropy::rans_full(state, frequency);
    const uint32_t all = __ballot_sync(ALL_LANES, full);
    if (full) {
      *reinterpret_cast<uint16_t*>(at - 2 * (1 + __popc(all >> lane() >> 1))) = static_cast<uint16_t>(state);
      state >>= 16;
    }
    at -= 2 * __popc(all);
    if (active) state = entropy::rans_after(state, frequency, entry >> 16);
  }
  // The same of a value that has no symbol.
  COMMPRESS_DEVICE void escape(bool escapes_here, float value) {
    const uint32_t all = __ballot_sync(ALL_LANES, escapes_here);
    if (escapes_here) *(escapes - (1 + __popc(all >> lane() >> 1))) = value;
    escapes -= __popc(all);
    escaped += __popc(all);
  }
};

// encode(block, kind, writer) for the blocks that have a class, by whole warps; then how many bytes and escapes each
// substream has. Ends in step.
template <class Encode>
COMMPRESS_DEVICE void write_streams(EncoderSpace& s, const EncoderMemory& m, int lanes, const Encode& encode) {
  COMMPRESS_ROLLED
  for (int substream = warp(); substream < s.substreams; substream += ENCODER_WARPS) {
    uint8_t* const end = m.streams + stream_end(s, substream);
    float* const escapes_end = m.escapes + static_cast<int64_t>(end_block(s, substream)) * GROUP_COORDINATES;
    StreamWriter writer{entropy::RANS_LOW, end, escapes_end, 0};
    COMMPRESS_ROLLED
    for (int b = end_block(s, substream); b-- > first_block(s, substream);) {
      const int kind = m.kinds[b];
      if (kind >= 0) encode(b, kind, writer);
    }
    writer.at -= 4 * lanes;
    if (lane() < lanes) {
      auto* const to = reinterpret_cast<uint16_t*>(writer.at + 4 * lane());
      to[0] = static_cast<uint16_t>(writer.state);
      to[1] = static_cast<uint16_t>(writer.state >> 16);
    }
    if (lane() == 0) {
      m.streams_nbytes[substream] = static_cast<uint32_t>(end - writer.at);
      m.escaped[substream] = writer.escaped;
    }
  }
  __syncthreads();
}

// Entries of symbols of all classes, to m.classes; a warp for each row. A barrier must follow.
COMMPRESS_DEVICE void fill_entries(EncoderSpace& s, const EncoderMemory& m, int64_t j) {
  for (int task = warp(); task < s.count * entropy::CELLS; task += ENCODER_WARPS) {
    const int k = task / entropy::CELLS, row = task % entropy::CELLS;
    if (!s.present[k]) continue;
    const bool folded = is_folded(s.quantisers[k]);
    if (row > 0 && !folded) continue;
    const uint32_t f = row_frequencies(s.models[k].get(), relative_of(s, k, j), folded, row);
    uint32_t before = 0;
    COMMPRESS_UNROLL_ALL
    for (int half = 0; half < 2; ++half) {
      const uint32_t own = half ? high_of(f) : low_of(f);
      uint32_t sum = own;
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t other = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(distance));
        sum += lane() >= distance ? other : 0;
      }
      m.classes[WARP_WORDS * k + 64 * row + 32 * half + lane()] = own | (before + sum - own) << 16;
      before += __shfl_sync(ALL_LANES, sum, 31);
    }
  }
}

// Symbols of a block without a trellis, which `table` has entries of.
COMMPRESS_DEVICE void write_block(const EncoderSpace& s, const EncoderMemory& m, const EcsqQuantiser& q, int largest,
                                  bool empty, int lanes, int block, const uint32_t* table, StreamWriter& writer) {
  const float* const y = m.y + static_cast<int64_t>(block) * GROUP_COORDINATES;
  const int n = size_of(s, block);
  const bool folded = q.dither && q.raw == 0;
  const auto row = [&](int first, int32_t w) {
    const int i = first + lane();
    const bool active = lane() < lanes && i < n;
    const float v = active ? y[i] * q.gain * q.inverse : 0.0f;
    const int32_t high = ecsq_high(ecsq_value(q, v, w), q.raw), a = high < 0 ? -high : high;
    const bool escaped = active && a > largest;
    const int32_t symbol = escaped ? 0 : 32 + (folded && w < 0 ? -high : high);
    writer.escape(escaped, ecsq_kept(v));
    if (!empty) writer.put(active, active ? table[(folded ? 64 * ecsq_cell(w) : 0) + symbol] : 1);
  };
  const int last = (n - 1) / lanes * lanes;
  if (q.dither) {
    const Dithers dithers(s, block);
    for (int first = last; first >= 0; first -= lanes) row(first, dithers.at(first / 32 * 32 + (first + lane()) % 32));
  } else {
    for (int first = last; first >= 0; first -= lanes) row(first, 0);
  }
}

// Where raw bits of blocks begin, to m.at; raw_of(kind): bits of each coordinate. Returns where those of all end; ends
// in step.
template <class Raw>
COMMPRESS_DEVICE uint32_t place_raw_bits(EncoderSpace& s, const EncoderMemory& m, uint32_t first, const Raw& raw_of) {
  return first + block_scan(
                     s, s.blocks,
                     [&](int b) {
                       const int kind = m.kinds[b];
                       return kind < 0 ? 0u : static_cast<uint32_t>(raw_nbytes(s, b, raw_of(kind)));
                     },
                     [&](int b, uint32_t before) { m.at[b] = static_cast<int32_t>(first + before); });
}

// The low bits of a block; by a whole warp, with its words in between.
COMMPRESS_DEVICE void write_raw_bits(EncoderSpace& s, const EncoderMemory& m, const EcsqQuantiser& q, int largest,
                                     int block, uint8_t* out) {
  const float* const y = m.y + static_cast<int64_t>(block) * GROUP_COORDINATES;
  const int n = size_of(s, block), raw = q.raw;
  uint32_t* const lows = words_of_warp(s);
  __syncwarp();
  const auto low = [&](int i, int32_t w) {
    const int32_t value = i < n ? ecsq_value(q, y[i] * q.gain * q.inverse, w) : 0, high = ecsq_high(value, raw);
    const bool escaped = high < -largest || high > largest;
    lows[i] = ecsq_low(escaped ? 0 : value, raw);
  };
  if (q.dither) {
    const Dithers dithers(s, block);
    for (int i = lane(); i < GROUP_COORDINATES; i += 32) low(i, dithers.at(i));
  } else {
    for (int i = lane(); i < n; i += 32) low(i, 0);
  }
  __syncwarp();
  for (int byte = lane(); byte < (n * raw + 7) / 8; byte += 32) {
    uint32_t value = 0;
    for (int i = 8 * byte / raw; i < n && i * raw < 8 * byte + 8; ++i)
      value |= i * raw >= 8 * byte ? lows[i] << (i * raw - 8 * byte) : lows[i] >> (8 * byte - i * raw);
    out[m.at[block] + byte] = static_cast<uint8_t>(value);
  }
}

// What the header says of the substream's place in the segment, and all streams and escapes; `body`: where escapes
// begin, `entries`: where the entries of the substreams are. False, and nothing is written: there is not enough room.
// In every thread; ends in step.
COMMPRESS_SELDOM bool place_streams(EncoderSpace& s, const EncoderMemory& m, uint32_t body, uint32_t entries,
                                    uint8_t* out) {
  const int substreams = s.substreams;
  int64_t own[2] = {0, 0};
  for (int i = thread(); i < substreams; i += threads()) {
    own[0] += m.streams_nbytes[i];
    own[1] += m.escaped[i];
  }
  const int64_t streams = block_sum(s, own[0]), escapes = block_sum(s, own[1]);
  if (body > s.nbytes || streams + 4 * escapes > static_cast<int64_t>(s.nbytes) - body) return false;
  const uint32_t first_stream = s.nbytes - static_cast<uint32_t>(streams);
  if (thread() == 0) {
    s.first_stream = first_stream;
    s.all_escapes = static_cast<int>(escapes);
  }
  const auto entry = [&](int i) { return out + entries + (i - 1) * ECSQ_ENTRY_NBYTES; };
  const auto number = [](const uint32_t* of) { return [of](int i) { return of[i]; }; };
  const auto places = [&](int i, uint32_t before) {
    if (i) store_word(first_stream + before, entry(i));
    m.at[s.blocks + i] = static_cast<int32_t>(first_stream + before);
  };
  block_scan(s, substreams, number(m.streams_nbytes), places);
  const auto ranks = [&](int i, uint32_t before) {
    if (i == 0) return;
    store_word(before, entry(i) + 4);
    store_word(static_cast<uint32_t>(m.at[first_block(s, i)]), entry(i) + 8);
    store_half(m.kinds_nbytes[i], entry(i) + 12);
  };
  block_scan(s, substreams, number(m.escaped), ranks);
  uint32_t rank = 0;
  COMMPRESS_ROLLED
  for (int i = 0; i < substreams; ++i) {
    const uint32_t nbytes = m.streams_nbytes[i], count = m.escaped[i];
    const uint8_t* const from = m.streams + stream_end(s, i) - nbytes;
    uint8_t* const to = out + m.at[s.blocks + i];
    for (uint32_t byte = thread(); byte < nbytes; byte += threads()) to[byte] = from[byte];
    const float* const values = m.escapes + static_cast<int64_t>(end_block(s, i)) * GROUP_COORDINATES - count;
    for (uint32_t e = thread(); e < count; e += threads()) store_word(bits_of(values[e]), out + body + 4 * (rank + e));
    rank += count;
  }
  for (uint32_t i = body + 4 * rank + thread(); i < first_stream; i += threads()) out[i] = 0;
  __syncthreads();
  return true;
}

// The beginning of a header, by one thread; returns where the mask of classes ends. `rho` is left out.
COMMPRESS_DEVICE uint32_t write_beginning(const EncoderSpace& s, const EncoderMemory& m, int mode, int64_t j,
                                          uint8_t* out) {
  const auto put = [&](int at, int64_t value, int nbytes) {
    for (int i = 0; i < nbytes; ++i) out[at + i] = static_cast<uint8_t>(value >> (8 * i));
  };
  put(0, mode, 1);
  put(1, j + 2048 * static_cast<int64_t>(s.shift), 3);
  put(4, relative_of(s, 0, j), 3);
  put(7, s.count, 1);
  put(8, m.kinds_nbytes[0], 2);
  put(10, s.all_escapes, 4);
  put(14, s.first_stream, 4);
  const int mask = static_cast<int>(ecsq_header_nbytes(s.codec())), nbytes = (s.count + 7) / 8;
  for (int byte = 0; byte < nbytes; ++byte) {
    int bits = 0;
    for (int k = 0; k < 8 && 8 * byte + k < s.count; ++k) bits |= s.present[8 * byte + k] << k;
    put(mask + byte, bits, 1);
  }
  return static_cast<uint32_t>(mask + nbytes);
}

// The coded classes, behind the entries; by all.
COMMPRESS_DEVICE void write_kinds(const EncoderSpace& s, const EncoderMemory& m, uint32_t entries, uint8_t* out) {
  const uint32_t at = entries + static_cast<uint32_t>((s.substreams - 1) * ECSQ_ENTRY_NBYTES);
  for (int i = thread(); i < s.kinds_nbytes; i += threads()) out[at + i] = m.coded[i];
}

}  // namespace cuda
}  // namespace commpress
