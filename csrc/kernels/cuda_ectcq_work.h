// What the rate control of `trellis` works on, on the device: blocks, spans, classes. All threads take part in
// everything, and begin and end in step.
#pragma once
#include "cuda_ectcq_search.h"
#include "cuda_entropy_rate.h"

namespace commpress {
namespace cuda {

static_assert(CHAIN_WARPS == ENCODER_WARPS, "a share of the scratch memory for each");
static_assert(sizeof(ChainSpace) <= 4 * WARP_WORDS, "a warp's words");

// What threads tell each other, besides EncoderSpace, and where the arrays of ChainScratch are.
struct ChainsSpace {
  ChainClass* classes;
  int32_t *blocks, *others, *spans;
  uint8_t* cells;
  uint32_t* chains;
  int64_t room, j, price;  // j: the step
  float inverse;
  int trellis_blocks, other_blocks, count_of_spans;
  int64_t bytes_of_others;     // of the classes that are not in the trellis
  int64_t answer;              // of one thread to all
  uint32_t met[MOST_CLASSES];  // blocks of a class so far
};

// As EcsqClasses, for what both have in common.
struct ChainSource {
  const EncoderSpace& s;

  COMMPRESS_DEVICE const EcsqCodec& codec() const { return s.codec(); }
  COMMPRESS_DEVICE int count() const { return s.count; }
  COMMPRESS_DEVICE bool present(int kind) const { return s.present[kind]; }
  COMMPRESS_DEVICE int64_t members(int kind) const { return s.members[kind]; }
  COMMPRESS_DEVICE int64_t level_of(int kind) const { return s.level_of[kind]; }
  COMMPRESS_DEVICE int64_t relative(int kind, int64_t j) const { return relative_of(s, kind, j); }
  COMMPRESS_DEVICE int64_t blocks() const { return s.blocks; }
  COMMPRESS_DEVICE int64_t first_step() const { return s.first_step; }
  COMMPRESS_DEVICE int64_t finest_step() const { return s.finest_step; }
};

// f(kind) for each class, by one thread each, of different warps as far as there are some.
template <class F>
COMMPRESS_DEVICE void each_class(const EncoderSpace& s, F&& f) {
  int number = thread();
  COMMPRESS_OPAQUE(number);  // found anew each time
  const int kind = (number % 32 * ENCODER_WARPS + number / 32) & 0x7FFF;
  if (kind < s.count) f(kind);
}

COMMPRESS_DEVICE bool in_trellis(const EncoderSpace& s, const ChainsSpace& own, int kind) {
  return relative_of(s, kind, own.j) <= ECTCQ_MOST_LEVEL;
}
COMMPRESS_DEVICE ChainClass& class_of(const ChainsSpace& own, int kind) { return own.classes[kind]; }
COMMPRESS_DEVICE Chains chains_of(const EncoderSpace& s, const ChainsSpace& own, const EncoderMemory& m) {
  return {m.y, s.n, s.gain, own.inverse, own.blocks, m.kinds, own.classes, own.cells};
}

COMMPRESS_DEVICE void begin_chains(const EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m, int64_t room) {
  if (thread() == 0) {
    const ChainScratch at(s.codec(), s.n);
    own.classes = reinterpret_cast<ChainClass*>(m.trellis + at.classes);
    own.blocks = reinterpret_cast<int32_t*>(m.trellis + at.blocks);
    own.others = reinterpret_cast<int32_t*>(m.trellis + at.others);
    own.spans = reinterpret_cast<int32_t*>(m.trellis + at.spans);
    own.cells = reinterpret_cast<uint8_t*>(m.trellis + at.cells);
    own.chains = m.trellis + at.chains;
    own.room = room;
  }
  __syncthreads();
  each_class(s, [&](int kind) { class_of(own, kind).known = false; });
  __syncthreads();
}

// Of a class that is not in the trellis.
COMMPRESS_DEVICE EcsqQuantiser coarser_quantiser(float gain, int64_t relative, int64_t j) {
  return {gain, static_cast<float>(1.0 / entropy::step_of(j + ECTCQ_COARSER)), 0.5f,
          entropy::raw_bits(relative - ECTCQ_COARSER), false};
}

// No blocks counted; lengths of a normal source where there are none.
COMMPRESS_SELDOM void begin_classes(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m) {
  for (int i = thread(); i < 64 * s.count; i += ENCODER_THREADS) {
    const int kind = i / 64, q = i / 32 % 2, k = i % 32;
    ChainClass& c = class_of(own, kind);
    c.counts.cells[i % 64] = 0;
    m.classes[kind * WARP_WORDS + i % 64] = 0;
    if (s.present[kind] && in_trellis(s, own, kind) && !c.known)
      c.first[q][k] = c.lengths[q][k] = ectcq_length_at(s.level_of[kind] - own.j, q, k);
  }
  __syncthreads();
  each_class(s, [&](int kind) {
    ChainClass& c = class_of(own, kind);
    c.counts.beyond[0] = c.counts.beyond[1] = c.counts.squares = 0;
    c.counted = 0;
    own.met[kind] = 0;
    c.counts.aside = 0;
    if (!s.present[kind]) return;
    if (!in_trellis(s, own, kind)) {
      c.known = false;
      s.quantisers[kind] = coarser_quantiser(s.gain, relative_of(s, kind, own.j), own.j);
    } else if (!c.known) {
      c.model = {};
      c.seen = 0;
      c.known = true;
    }
  });
  __syncthreads();
}

// Of each class every stride-th block, in order, and where chains begin: at every substream, if these are all its
// blocks. By one warp.
COMMPRESS_SELDOM void choose_blocks(const EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m, int stride) {
  const uint32_t below = (1u << lane()) - 1;
  const int each = stride == 1 ? s.each : s.blocks;
  int placed = 0, others = 0, spans = 0, begun = 0;
  COMMPRESS_ROLLED
  for (int first = 0; first < s.blocks; first += 32) {
    const int block = first + lane(), kind = block < s.blocks ? m.kinds[block] : -1;
    bool chosen = kind >= 0;
    if (stride > 1) {
      const uint32_t alike = __match_any_sync(ALL_LANES, kind);
      const uint32_t met = chosen ? own.met[kind] : 0;
      __syncwarp();
      if (chosen && (alike & below) == 0) own.met[kind] = met + __popc(alike);
      __syncwarp();
      chosen = chosen && (met + __popc(alike & below)) % static_cast<uint32_t>(stride) == 0;
    }
    const bool mine = chosen && in_trellis(s, own, kind);
    const uint32_t trellis = __ballot_sync(ALL_LANES, mine), rest = __ballot_sync(ALL_LANES, chosen && !mine);
    if (first % each == 0) begun = placed;  // a substream's blocks are a multiple of 32
    const int place = placed + __popc(trellis & below);
    if (mine) own.blocks[place] = block;
    if (chosen && !mine) own.others[others + __popc(rest & below)] = block;
    const bool begins = mine && (place - begun) % static_cast<int>(ECTCQ_SPAN) == 0;
    if (begins) own.spans[spans] = place;  // at most one of 32
    spans += __ballot_sync(ALL_LANES, begins) != 0;
    placed += __popc(trellis);
    others += __popc(rest);
  }
  if (lane() == 0) {
    own.spans[spans] = placed;
    own.trellis_blocks = placed;
    own.other_blocks = others;
    own.count_of_spans = spans;
  }
}

// Symbols of the blocks chosen that are not in the trellis, a warp's block each, and their raw bits.
COMMPRESS_SELDOM void count_others(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m) {
  uint32_t* const met = words_of_warp(s);
  for (int i = warp(); i < own.other_blocks; i += ENCODER_WARPS) {
    const int block = own.others[i], kind = m.kinds[block];
    met[lane()] = met[32 + lane()] = 0;
    __syncwarp();
    count_block(s, m, s.quantisers[kind], block, met);
    __syncwarp();
    for (int symbol = lane(); symbol < 64; symbol += 32)
      if (met[symbol]) add_globally(m.classes + kind * WARP_WORDS + symbol, met[symbol]);
    if (lane() == 0) {
      ChainClass& c = class_of(own, kind);
      add_globally(&c.counts.aside, static_cast<unsigned long long>(raw_nbytes(s, block, s.quantisers[kind].raw)));
      add_globally(reinterpret_cast<unsigned long long*>(&c.counted), 1ull);
    }
    __syncwarp();
  }
  __syncthreads();
}

// Their models, to s.models, and what their blocks take.
COMMPRESS_SELDOM void fit_others(EncoderSpace& s, ChainsSpace& own, const EncoderMemory& m) {
  for (int kind = warp(); kind < s.count; kind += ENCODER_WARPS) {
    if (!s.present[kind] || in_trellis(s, own, kind)) continue;
    uint32_t* const counts = words_of_warp(s);
    for (int i = lane(); i < 64; i += 32) counts[i] = m.classes[kind * WARP_WORDS + i];
    __syncwarp();
    const Fitted fitted = fit_model(s, m, relative_of(s, kind, own.j) - ECTCQ_COARSER, false);
    if (lane() == 0) {
      s.models[kind] = fitted.model;
      class_of(own, kind).cost = fitted.cost;
    }
    __syncwarp();
  }
  __syncthreads();
  if (thread() == 0) {
    own.bytes_of_others = 0;
    for (int kind = 0; kind < s.count; ++kind) {
      if (!s.present[kind] || in_trellis(s, own, kind)) continue;
      const ChainClass& c = class_of(own, kind);
      const int64_t nbytes = ectcq_bytes_of(c.cost) + static_cast<int64_t>(c.counts.aside);
      own.bytes_of_others += 5 + nbytes * s.members[kind] / c.counted;
    }
  }
  __syncthreads();
}

COMMPRESS_SELDOM void search_spans(EncoderSpace& s, const ChainsSpace& own, const EncoderMemory& m, int first, int last,
                                   bool again) {
  const Chains chains = chains_of(s, own, m);
  const EctcqCode code = ectcq_code_of_states(s.codec().states);
  ChainSpace& space = *reinterpret_cast<ChainSpace*>(words_of_warp(s));
  uint32_t* const rows = own.chains + warp() * chain_words(code.states);
  uint16_t* const costs = reinterpret_cast<uint16_t*>(rows + CHAIN_ROWS * chain_row_words(code.states));
  for (int span = first + warp(); span < last; span += ENCODER_WARPS) {
    const ChainSpan here{own.spans[span], own.spans[span + 1], rows, costs};
    if (again) count_back(space, chains, here.first, here.last);
    search_span(space, chains, here, code);
  }
  __syncthreads();
}

// By one thread each.
COMMPRESS_SELDOM void prepare_class(ChainClass& c, int64_t worth) {
  ectcq_fill_tables(c.model, c.lengths, worth, c.tables);
}
COMMPRESS_SELDOM void learn_class(ChainClass& c, const uint32_t* length, int learning) {
  ectcq_learn(c, length, learning);
}
COMMPRESS_SELDOM int64_t predicted_of(const EncoderSpace& s, int64_t j) { return ectcq_predicted(ChainSource{s}, j); }
COMMPRESS_SELDOM int64_t step_of_cost(const EncoderSpace& s, int64_t target, int64_t cost, int64_t reference) {
  return ectcq_step_for(ChainSource{s}, target, cost, reference);
}
COMMPRESS_SELDOM int64_t bytes_so_far(const EncoderSpace& s, const ChainsSpace& own) {
  int64_t cost = 0;
  for (int k = 0; k < s.count; ++k) cost += ectcq_cost_of(class_of(own, k), s.members[k]);
  return ectcq_bytes_of(cost) + own.bytes_of_others;
}

// The Work of EctcqTurns.
class ChainWork final {
 public:
  COMMPRESS_DEVICE ChainWork(EncoderSpace& s, ChainsSpace& own) : s_(s), own_(own) {}

  COMMPRESS_DEVICE ChainSource source() const { return {s_}; }
  COMMPRESS_DEVICE int64_t room() const { return own_.room; }
  COMMPRESS_DEVICE int64_t step() const { return own_.j; }
  COMMPRESS_DEVICE int64_t price() const { return own_.price; }
  COMMPRESS_DEVICE int spans() const { return own_.count_of_spans; }
  COMMPRESS_DEVICE int span_at(int i) const { return own_.spans[i]; }
  COMMPRESS_DEVICE int64_t predicted(int64_t j) const {
    return answer([&] { return predicted_of(s_, j); });
  }
  COMMPRESS_DEVICE int64_t step_for(int64_t target, int64_t cost, int64_t reference) const {
    return answer([&] { return step_of_cost(s_, target, cost, reference); });
  }
  COMMPRESS_DEVICE int64_t bytes() const {
    return answer([&] { return bytes_so_far(s_, own_); });
  }
  COMMPRESS_DEVICE void set_step(int64_t j, int64_t stride) {
    __syncthreads();  // others may still be at the last one
    if (thread() == 0) {
      own_.j = j;
      own_.inverse = static_cast<float>(1.0 / entropy::step_of(j));
    }
    __syncthreads();
    begin_classes(s_, own_, s_.memory);
    if (warp() == 0) choose_blocks(s_, own_, s_.memory, static_cast<int>(stride));
    __syncthreads();
    count_others(s_, own_, s_.memory);
    fit_others(s_, own_, s_.memory);
  }
  COMMPRESS_DEVICE void prepare(int64_t price) {
    __syncthreads();  // others may still be at the last one
    if (thread() == 0) own_.price = price;
    __syncthreads();
    each_known([&](ChainClass& c) { prepare_class(c, ectcq_worth(s_.codec().rate) * own_.price / ECTCQ_PRICE); });
  }
  COMMPRESS_DEVICE void search(int first, int last, bool again) {
    search_spans(s_, own_, s_.memory, first, last, again);
  }
  COMMPRESS_DEVICE void fit(int learning) {
    each_known([&](ChainClass& c) { learn_class(c, s_.memory.lengths, learning); });
  }
  COMMPRESS_DEVICE void forget() {
    each_known([&](ChainClass& c) { c.known = false; });
  }
  COMMPRESS_DEVICE void keep() {
    each_length([&](ChainClass& c, int q, int k) { c.first[q][k] = c.lengths[q][k]; });
  }
  COMMPRESS_DEVICE void go_back() {
    each_length([&](ChainClass& c, int q, int k) { c.lengths[q][k] = c.first[q][k]; });
  }

 private:
  // What one thread finds out for all.
  template <class F>
  COMMPRESS_DEVICE int64_t answer(F&& f) const {
    if (thread() == 0) own_.answer = f();
    __syncthreads();
    const int64_t found = own_.answer;
    __syncthreads();
    return found;
  }
  template <class F>
  COMMPRESS_DEVICE void each_known(F&& f) {
    each_class(s_, [&](int kind) {
      if (class_of(own_, kind).known) f(class_of(own_, kind));
    });
    __syncthreads();
  }
  template <class F>
  COMMPRESS_DEVICE void each_length(F&& f) {
    for (int i = thread(); i < 64 * s_.count; i += ENCODER_THREADS)
      if (own_.classes[i / 64].known) f(own_.classes[i / 64], i / 32 % 2, i % 32);
    __syncthreads();
  }

  EncoderSpace& s_;
  ChainsSpace& own_;
};

}  // namespace cuda
}  // namespace commpress
