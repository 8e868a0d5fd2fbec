// What the rate control of a segment with a trellis works on.
#include "ectcq_rate.h"

#include <algorithm>
#include <cstring>

namespace commpress {

EctcqSearch::EctcqSearch(const EcsqClasses& source, int64_t room, Isa isa)
    : source_(source),
      kernels_(ectcq_kernels(isa)),
      room_(room),
      worth_(ectcq_worth(source.codec().rate)),
      states_(source.codec().states),
      classes_(source.count()),
      scratch_(new uint8_t[ectcq_scratch_nbytes(states_) + 64]) {
  const int64_t rest = source.numel() % ECSQ_BLOCK;
  if (rest) memcpy(tail_, source.values_of(source.blocks() - 1), 4 * rest);
}

const float* EctcqSearch::values_of(int64_t block) const {
  return source_.size_of(block) < ECSQ_BLOCK ? tail_ : source_.values_of(block);
}

float EctcqSearch::inverse() const { return static_cast<float>(1.0 / entropy::step_of(j_)); }

EctcqBlock EctcqSearch::block_at(int64_t place) {
  const int64_t b = blocks_[place];
  return {values_of(b), &classes_[source_.kinds()[b]].tables, cells_.data() + ECSQ_BLOCK * place};
}

// Chooses the blocks; of each class every `stride`-th one where there is more than a trellis can have.
void EctcqSearch::set_step(int64_t j, int64_t stride) {
  j_ = j;
  std::vector<int64_t> met(classes_.size()), raw(classes_.size());
  std::vector<entropy::Counts> symbols(classes_.size());
  for (int k = 0; k < source_.count(); ++k) {
    EctcqClass& c = classes_[k];
    c.counts = {};
    c.counted = 0;
    if (!source_.present(k)) continue;
    if (in_trellis(k)) {
      if (!c.known) begin(c, source_.level_of(k) - j_);
    } else {
      c.known = false;
      const int64_t relative = source_.relative(k, j_) - ECTCQ_COARSER;
      const float inverse = static_cast<float>(1.0 / entropy::step_of(j_ + ECTCQ_COARSER));
      c.quantiser = {source_.gain(), inverse, 0.5f, entropy::raw_bits(relative), false};
    }
  }
  blocks_.clear();
  for (int64_t b = 0; b < source_.blocks(); ++b) {
    const int k = source_.kinds()[b];
    if (k < 0 || met[k]++ % stride) continue;
    if (in_trellis(k)) {
      blocks_.push_back(b);
      continue;
    }
    EctcqClass& c = classes_[k];
    ++c.counted;
    source_.kernels().count(c.quantiser, source_.values_of(b), nullptr, source_.size_of(b), symbols[k]);
    raw[k] += (source_.size_of(b) * c.quantiser.raw + 7) / 8;
  }
  others_ = 0;
  for (int k = 0; k < source_.count(); ++k) {
    if (!source_.present(k) || in_trellis(k)) continue;
    EctcqClass& c = classes_[k];
    int64_t cost;
    c.uniform = entropy::fit(symbols[k], source_.relative(k, j_) - ECTCQ_COARSER, false, cost);
    others_ += 5 + (ectcq_bytes_of(cost) + raw[k]) * source_.members(k) / c.counted;
  }
  cells_.resize(ECSQ_BLOCK * blocks_.size());
  // Where chains begin: at every substream, if these are all its blocks.
  const int64_t each = stride == 1 ? source_.substreams().each : source_.blocks();
  spans_.clear();
  for (int64_t place = 0; place < trellis_blocks(); ++place)
    if (place == 0 || place - spans_.back() == ECTCQ_SPAN || blocks_[place] / each != blocks_[place - 1] / each)
      spans_.push_back(place);
  spans_.push_back(trellis_blocks());
}

// Code lengths of a normal source.
void EctcqSearch::begin(EctcqClass& c, int64_t level) const {
  for (int q = 0; q < 2; ++q)
    for (int k = 0; k < ECTCQ_INDICES; ++k) c.lengths[q][k] = ectcq_length_at(level, q, k);
  memcpy(c.first, c.lengths, sizeof(c.first));
  c.model = {};
  c.seen = 0;
  c.known = true;
}

void EctcqSearch::prepare(int64_t price) {
  price_ = price;
  for (EctcqClass& c : classes_)
    if (c.known) ectcq_fill_tables(c.model, c.lengths, worth_ * price / ECTCQ_PRICE, c.tables);
}

void EctcqSearch::search(int64_t first, int64_t last, bool again) {
  EctcqBlock span[ECTCQ_SPAN];
  void* const scratch = scratch_.get() + (64 - reinterpret_cast<uintptr_t>(scratch_.get()) % 64);
  for (int64_t s = first; s < last; ++s) {
    const int64_t at = spans_[s], count = spans_[s + 1] - at;
    for (int64_t i = 0; i < count; ++i) {
      span[i] = block_at(at + i);
      if (again) this->count(at + i, true);
    }
    kernels_.search(states_, span, count, source_.gain(), inverse(), scratch);
    for (int64_t i = 0; i < count; ++i) this->count(at + i, false);
  }
}

void EctcqSearch::count(int64_t place, bool away) {
  EctcqClass& c = classes_[source_.kinds()[blocks_[place]]];
  if (!away) {
    ++c.counted;
    return kernels_.count(block_at(place), source_.gain(), inverse(), c.counts);
  }
  EctcqCounts here;
  kernels_.count(block_at(place), source_.gain(), inverse(), here);
  c.counts.take_away(here);
  --c.counted;
}

void EctcqSearch::fit(int learning) {
  for (EctcqClass& c : classes_) ectcq_learn(c, entropy::lengths(), learning);
}

int64_t EctcqSearch::bytes() const {
  int64_t cost = 0;
  for (int k = 0; k < source_.count(); ++k) cost += ectcq_cost_of(classes_[k], source_.members(k));
  return ectcq_bytes_of(cost) + others_;
}

void EctcqSearch::forget() {
  for (EctcqClass& c : classes_) c.known = false;
}

void EctcqSearch::keep() {
  for (EctcqClass& c : classes_) memcpy(c.first, c.lengths, sizeof(c.first));
}

void EctcqSearch::go_back() {
  for (EctcqClass& c : classes_) memcpy(c.lengths, c.first, sizeof(c.first));
}

}  // namespace commpress
