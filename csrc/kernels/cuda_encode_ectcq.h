// Encoding of a segment with the trellis: rate control, search, streams and header, as ectcq_encode.cpp does it.
#pragma once
#include "cuda_ectcq_work.h"
#include "cuda_entropy_writer.h"

namespace commpress {
namespace cuda {

// Entries of a class's symbols under both quantisers, in place of their frequencies; by one thread.
COMMPRESS_SELDOM void fill_chain_entries(const EctcqModel& model, uint32_t* entries) {
  for (int q = 0; q < 2; ++q) {
    const int32_t left = ectcq_left(model, q);
    uint32_t start = 0;
    for (int symbol = 0; symbol < entropy::SYMBOLS; ++symbol) {
      const int k = symbol < 32 ? 32 - symbol : symbol - 32;
      const int32_t f = symbol == 0 ? model.escape : k <= model.largest ? ectcq_fitted(model, q, k, left) : 0;
      entries[64 * q + symbol] = static_cast<uint32_t>(f) | start << 16;
      start += static_cast<uint32_t>(f);
    }
  }
}

// Entries of all classes, to m.classes. A barrier must follow.
COMMPRESS_DEVICE void fill_all_entries(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m) {
  each_class(s, [&](int kind) {
    own.classes[kind].counts.aside = 0;
    if (s.present[kind] && in_trellis(s, own, kind)) {
      s.models[kind] = entropy::Model{};
      s.quantisers[kind] = {s.gain, 1.0f, 0.5f, 0, false};
    }
  });
  __syncthreads();
  fill_entries(s, m, own.j + ECTCQ_COARSER);
  __syncthreads();
  each_class(s, [&](int kind) {
    if (s.present[kind] && in_trellis(s, own, kind))
      fill_chain_entries(own.classes[kind].model, m.classes + WARP_WORDS * kind);
  });
}

// Symbols of a block in the trellis, which `table` has entries of; and squares of magnitudes that have an index, but no
// symbol. By a whole warp.
COMMPRESS_DEVICE void write_chain_block(const Chains& chains, ChainClass& c, int block, const uint32_t* table,
                                        StreamWriter& writer) {
  const int largest = c.model.largest;
  COMMPRESS_ROLLED
  for (int row = 15; row >= 0; --row) {
    const int i = 32 * row + lane();
    const float x = chains.value(block, i), v = x * chains.gain * chains.inverse;
    const uint32_t w = chains.magnitude_of(x, 64.0f, 256.0f), cell = chains.cells[block * ECSQ_BLOCK + i];
    const int k = static_cast<int>(cell & 31);
    const bool escaped = k > largest || w > ECTCQ_FARTHEST;
    const int symbol = escaped ? 0 : v < 0 ? 32 - k : 32 + k;
    if (escaped && w <= ECTCQ_FARTHEST) add_globally(&c.counts.aside, static_cast<unsigned long long>(w * w));
    writer.escape(escaped, ectcq_kept(v, cell & 1));
    writer.put(true, table[64 * (cell >> 5) + static_cast<uint32_t>(symbol)]);
  }
}

COMMPRESS_SELDOM void write_chain_streams(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m) {
  const Chains chains = chains_of(s, own, m);
  int current = -1;
  write_streams(s, m, ECTCQ_LANES, [&](int block, int kind, StreamWriter& writer) {
    uint32_t* const table = words_of_warp(s);
    if (kind != current) {
      __syncwarp();
      for (int i = lane(); i < 2 * entropy::SYMBOLS; i += 32) table[i] = m.classes[WARP_WORDS * kind + i];
      __syncwarp();
      current = kind;
    }
    if (!in_trellis(s, own, kind))
      write_block(s, m, s.quantisers[kind], s.models[kind].get().largest, s.models[kind].get().empty(), ECTCQ_LANES,
                  block, table, writer);
    else if (!own.classes[kind].model.empty())
      write_chain_block(chains, class_of(own, kind), block, table, writer);
  });
}

// Header and tables of classes, by one thread.
COMMPRESS_SELDOM void write_chain_header(const EncoderSpace& s, const ChainsSpace& own, const EncoderMemory& m,
                                         uint8_t* out) {
  uint8_t* to = out + write_beginning(s, m, ECSQ_TRELLIS, own.j, out);
  const auto put = [&](int value) { *to++ = static_cast<uint8_t>(value); };
  double energy = 0, product = 0;
  for (int kind = 0; kind < s.count; ++kind) {
    if (!s.present[kind]) continue;
    if (!in_trellis(s, own, kind)) {
      const entropy::Model& model = s.models[kind].get();
      put((model.shift + 64) | model.escape << 7);
      put(model.largest | model.shape << 5);
      for (int i = 0; i < 3; ++i) put(0);
      continue;
    }
    const ChainClass& c = own.classes[kind];
    const EctcqModel& model = c.model;
    put(model.largest | model.ample[0] << 5 | model.ample[1] << 6 | model.escape << 7);
    for (int i = 0; i < 6; ++i) put(model.places[i / 3][i % 3]);
    int64_t sum = 0;
    for (int q = 0; q < 2; ++q)
      for (int k = 1; k <= model.largest; ++k) {
        put(model.codes[q][k]);
        sum += ectcq_level(model, q, k) * c.counts.magnitude(q, k);
      }
    energy += static_cast<double>(16 * static_cast<int64_t>(c.counts.squares - c.counts.aside));
    product += static_cast<double>(sum);
  }
  const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
  if (ecsq_has_rho(s.codec())) store_word(bits_of(rho), out + 18);
}

// Bytes of a header before the tables of classes.
COMMPRESS_DEVICE int chain_header_nbytes(const EncoderSpace& s) {
  return static_cast<int>(ecsq_header_nbytes(s.codec())) + (s.count + 7) / 8;
}
COMMPRESS_DEVICE int entries_nbytes(const EncoderSpace& s) {
  return (s.substreams - 1) * static_cast<int>(ECSQ_ENTRY_NBYTES);
}

// False, and nothing was written: there is not enough room. Ends in step.
COMMPRESS_SELDOM bool write_chains(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m, uint8_t* out) {
  fill_all_entries(s, own, m);
  int entries = chain_header_nbytes(s);
  for (int kind = 0; kind < s.count; ++kind)
    if (s.present[kind]) entries += in_trellis(s, own, kind) ? static_cast<int>(own.classes[kind].model.nbytes()) : 5;
  const auto raw_of = [&](int kind) { return in_trellis(s, own, kind) ? 0 : s.quantisers[kind].raw; };
  const uint32_t body =
      place_raw_bits(s, m, static_cast<uint32_t>(entries + entries_nbytes(s) + s.kinds_nbytes), raw_of);
  write_chain_streams(s, own, m);
  if (!place_streams(s, m, body, static_cast<uint32_t>(entries), out)) return false;
  for (int block = warp(); block < s.blocks; block += ENCODER_WARPS) {
    const int kind = m.kinds[block];
    if (kind >= 0 && raw_of(kind)) write_raw_bits(s, m, s.quantisers[kind], s.models[kind].get().largest, block, out);
  }
  if (thread() == 0) write_chain_header(s, own, m, out);
  write_kinds(s, m, static_cast<uint32_t>(entries), out);
  __syncthreads();
  return true;
}

// By all threads, in step before and behind. False: there is not enough room, and nothing was written that counts.
COMMPRESS_SELDOM bool ectcq_encode(EncoderSpace& s) {
  COMMPRESS_SHARED(ChainsSpace, shared, 1);
  ChainsSpace& own = shared[0];
  const int64_t nbytes = s.nbytes, room = nbytes - chain_header_nbytes(s) - entries_nbytes(s) - s.kinds_nbytes -
                                          3 * ECTCQ_LANES * static_cast<int64_t>(s.substreams) - 8;
  if (room < nbytes / 2 || s.codec().rate < ECTCQ_LEAST_RATE) return false;
  begin_chains(s, own, s.memory, room);
  ChainWork work(s, own);
  EctcqTurns<ChainWork> turns(work);
  bool found = turns.run();
  for (int turn = 0; turn < 40 && found; ++turn) {
    if (write_chains(s, own, s.memory, s.out)) return true;
    found = turns.shrink(s.nbytes >> 10);  // coding took more than the sum of its logarithms
  }
  return false;
}

}  // namespace cuda
}  // namespace commpress
