// Rate control of a segment with a trellis. About one search of all coordinates: the step is found with a sample of the
// blocks, and on the way through the segment the price of a bit is moved so that the sum comes out right.
#include "ectcq_rate.h"

#include <algorithm>
#include <cstring>

#include "ectcq_tables.h"

namespace commpress {

namespace {

constexpr int SAMPLED_BLOCKS = 128, SAMPLED_TURNS = 3, LOW_TURNS = 8, CHUNKS = 16, TURNS = 30, FINER_TURNS = 4;
constexpr int64_t FAR = 256;          // a move after which lengths begin anew, in 1/2048 octave
constexpr int64_t NEAR = 8;           // a move after which the step is good enough
constexpr int32_t LOW_RATE = 750000;  // below, tables and rate move each other far: more turns, and slower ones
constexpr int64_t UNSEEN = 4 << 16, ESCAPE = 44 << 16;  // bits of an index beyond the largest one, in 2^-16
constexpr int64_t PRICE = 1024, MOST_CHANGE = 307;      // three tenths more or less
constexpr int64_t MOST_PRICE = 2600;                    // of an index, in 1/256 squared step

// Squared steps that a bit is worth, in 1/4096, at 0, 1/2, 1, ... 3 bits and beyond: the best of a normal source.
constexpr int64_t WORTH[] = {2400, 2250, 2000, 1786, 1593, 1520, 1462};

int64_t worth_of(int64_t rate) {
  constexpr int64_t half = RATE_ONE / 2;
  const int64_t place = std::min<int64_t>(rate / half, 5), f = std::min<int64_t>(rate - place * half, half);
  return (WORTH[place] * (half - f) + WORTH[place + 1] * f) / half;
}

// By how much a price has to rise, as a part of it, for one bit less in a coordinate.
int64_t effect_of(int64_t rate) { return rate < LOW_RATE ? 2 : rate < 1200000 ? 3 : rate < 2500000 ? 6 : 10; }

// Between the rows of a table for every half octave from -2 on: the place before, and the way on from there in 1/1024.
struct Between {
  int64_t row, f;
  explicit Between(int64_t level) {
    const int64_t from = std::min<int64_t>(std::max<int64_t>(level + 4096, 0), 10 * 1024);
    row = std::min<int64_t>(from >> 10, 9);
    f = from - 1024 * row;
  }
  int64_t operator()(int64_t before, int64_t after) const { return before * (1024 - f) + after * f; }
};

// In 1/4096 bit.
int64_t rate_at(int64_t level) {
  const Between at(level);
  return (at(ECTCQ_RATES[at.row], ECTCQ_RATES[at.row + 1]) >> 10) + 2 * std::max<int64_t>(level - 6144, 0);
}

int64_t bytes_of(int64_t cost) { return (cost + (1 << 19) - 1) >> 19; }

}  // namespace

EctcqSearch::EctcqSearch(const EcsqClasses& source, int64_t room, Isa isa)
    : source_(source),
      kernels_(ectcq_kernels(isa)),
      room_(room),
      worth_(worth_of(source.codec().rate)),
      states_(source.codec().states),
      classes_(source.count()),
      scratch_(new uint8_t[ectcq_scratch_nbytes(states_) + 64]) {
  const int64_t rest = source.numel() % ECSQ_BLOCK;
  if (rest) memcpy(tail_, source.values_of(source.blocks() - 1), 4 * rest);
}

bool EctcqSearch::run() {
  sample();
  const int64_t goal = room_ - (room_ >> 9), finest = source_.finest_step();
  for (int turn = 0; turn < TURNS; ++turn) {
    const bool fits = pass() && source_.relative(0, j_) >= -(1 << 17);
    const int64_t cost = bytes(), over = cost - room_;
    const bool empty = over < -(room_ >> 8) && turn < FINER_TURNS && j_ > finest;
    if (fits && !empty) return over >= -(room_ >> 6) || j_ <= finest;  // else ecsq does better
    if (over > 0 && over <= room_ >> 8 && shrink(0)) return true;
    const int64_t next = step_for(goal, cost, j_), move = int64_t{16} << std::min(turn, 6);
    j_ = fits ? std::max(std::min(next, j_ - move), finest) : std::max(next, j_ + move);
  }
  return false;
}

bool EctcqSearch::shrink(int64_t nbytes) {
  const int64_t target = std::min(bytes(), room_) - nbytes;
  price_ = std::max(price_, PRICE) + 40 * effect_of(source_.codec().rate);
  for (EctcqClass& c : classes_)
    if (c.known) prepare(c);
  const int64_t chunk = (spans() + CHUNKS - 1) / CHUNKS;
  for (int64_t span = spans() ? (spans() - 1) / chunk * chunk : -1; span >= 0; span -= chunk) {
    const int64_t end = std::min(span + chunk, spans()), at = spans_[span], stop = spans_[end];
    for (int64_t place = at; place < stop; ++place) count(place, true);
    search(span, end);
    for (int64_t place = at; place < stop; ++place) count(place, false);
    fit(0);
    if (bytes() <= target) return true;
  }
  return false;
}

const float* EctcqSearch::values_of(int64_t block) const {
  return source_.size_of(block) < ECSQ_BLOCK ? tail_ : source_.values_of(block);
}

float EctcqSearch::inverse() const { return static_cast<float>(1.0 / entropy::step_of(j_)); }

EctcqBlock EctcqSearch::block_at(int64_t place) {
  const int64_t b = blocks_[place];
  return {values_of(b), &classes_[source_.kinds()[b]].tables, cells_.data() + ECSQ_BLOCK * place};
}

// What normal blocks of these levels would take, in 1/4096 bit for each coordinate of a block.
int64_t EctcqSearch::predicted(int64_t j) const {
  int64_t total = 0;
  for (int k = 0; k < source_.count(); ++k)
    if (source_.present(k)) total += source_.members(k) * (1 + rate_at(source_.level_of(k) - j));
  return total;
}

// The finest step with which so many bytes would do, if others at the step `reference` took `cost`.
int64_t EctcqSearch::step_for(int64_t target, int64_t cost, int64_t reference) const {
  const int64_t limit = target * predicted(reference) / std::max<int64_t>(cost, 1);
  int64_t low = std::max(reference - 1024, source_.finest_step()) - 1, high = reference + 1024;
  while (high - low > 1) {
    const int64_t middle = (low + high) >> 1;
    (predicted(middle) <= limit ? high : low) = middle;
  }
  return high;
}

// Chooses the blocks; of each class every `stride`-th one where there is more than a trellis can have.
void EctcqSearch::set_step(int64_t stride) {
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
    others_ += 5 + (bytes_of(cost) + raw[k]) * source_.members(k) / c.counted;
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
  const Between at(std::max<int64_t>(level, -1024));  // below, all indices are zero, from where no search comes back
  for (int q = 0; q < 2; ++q)
    for (int k = 0; k < ECTCQ_INDICES; ++k)
      c.lengths[q][k] = at(ECTCQ_LENGTHS[at.row][q][k], ECTCQ_LENGTHS[at.row + 1][q][k]) >> 2;
  memcpy(c.first, c.lengths, sizeof(c.first));
  c.model = {};
  c.seen = 0;
  c.known = true;
}

void EctcqSearch::prepare(EctcqClass& c) const {
  const int64_t worth = worth_ * price_ / PRICE;
  for (int q = 0; q < 2; ++q)
    for (int k = 0; k < ECTCQ_INDICES; ++k) {
      const int64_t price = std::min(c.lengths[q][k] * worth >> 20, MOST_PRICE);
      c.tables.levels[2 * q + k % 2][k / 2] = static_cast<uint16_t>((ectcq_level(c.model, q, k) + 4) >> 3);
      c.tables.prices[2 * q + k % 2][k / 2] = static_cast<uint16_t>(price);
    }
  // From where on the second index costs less than the first; later ones follow as if they were as far apart as levels.
  for (int i = 0; i < 4; ++i) {
    const int64_t a = c.tables.levels[i][0], b = c.tables.levels[i][1];
    const int64_t more = int64_t{c.tables.prices[i][1]} - c.tables.prices[i][0];
    const int64_t edge = ((a + b) >> 1) + floor_divide(512 * more, std::max<int64_t>(b - a, 256));
    c.tables.offsets[i] = static_cast<int16_t>(2048 - std::min<int64_t>(std::max<int64_t>(edge, 16), 2816));
  }
}

// Spans from one to another.
void EctcqSearch::search(int64_t first, int64_t last) {
  EctcqBlock span[ECTCQ_SPAN];
  void* const scratch = scratch_.get() + (64 - reinterpret_cast<uintptr_t>(scratch_.get()) % 64);
  for (int64_t s = first; s < last; ++s) {
    const int64_t count = spans_[s + 1] - spans_[s];
    for (int64_t i = 0; i < count; ++i) span[i] = block_at(spans_[s] + i);
    kernels_.search(states_, span, count, source_.gain(), inverse(), scratch);
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

// Lengths go a part of the way to those of the model, 1/2^learning: all the way would be to and fro.
void EctcqSearch::fit(int learning) {
  const int64_t* const length = entropy::lengths();
  for (EctcqClass& c : classes_) {
    if (!c.known || !c.counted) continue;
    c.model = ectcq_fit(c.counts, c.cost);
    c.seen = c.counted;
    if (learning == 0) continue;
    int32_t f[2][entropy::SYMBOLS];
    ectcq_frequencies(c.model, f);
    for (int q = 0; q < 2; ++q) {
      int64_t fresh = 0;
      for (int k = 0; k < ECTCQ_INDICES; ++k) {
        fresh = k <= c.model.largest ? length[f[q][32 + k]] : std::min(fresh + UNSEEN, ESCAPE);
        c.lengths[q][k] += (fresh - c.lengths[q][k]) >> learning;
      }
    }
  }
}

// Of the whole segment, as far as is known.
int64_t EctcqSearch::bytes() const {
  int64_t cost = 0;
  for (int k = 0; k < source_.count(); ++k) {
    const EctcqClass& c = classes_[k];
    if (!c.known || !c.seen) continue;
    const int64_t own = 8 * 65536 * c.model.nbytes();
    cost += own + (c.cost - own) * source_.members(k) / c.seen;
  }
  return bytes_of(cost) + others_;
}

void EctcqSearch::sample() {
  const int64_t goal = room_ - (room_ >> 9), stride = std::max<int64_t>(source_.blocks() / SAMPLED_BLOCKS, 1);
  j_ = std::max(source_.first_step() - 1024, source_.finest_step());
  for (int turn = 0; turn < 2; ++turn) j_ = step_for(64 * goal, predicted(j_), j_);
  price_ = PRICE;
  const bool low = source_.codec().rate < LOW_RATE;
  if (low) j_ = std::max(j_ - FAR, source_.finest_step());
  for (int turn = 0; turn < (low ? LOW_TURNS : SAMPLED_TURNS); ++turn) {
    set_step(stride);
    for (EctcqClass& c : classes_)
      if (c.known) prepare(c);
    search(0, spans());
    for (int64_t place = 0; place < trellis_blocks(); ++place) count(place, false);
    fit(1);
    const int64_t before = j_;
    j_ = step_for(goal, bytes(), before);
    if (!low && turn > 0 && j_ >= before - NEAR && j_ <= before + NEAR) break;
    if (j_ < before - FAR || j_ > before + FAR)
      for (EctcqClass& c : classes_) c.known = false;
  }
  for (EctcqClass& c : classes_) memcpy(c.first, c.lengths, sizeof(c.first));
}

// All blocks, in a few chunks. What is too much so far makes bits dearer in those that are left.
bool EctcqSearch::pass() {
  set_step(1);
  for (EctcqClass& c : classes_) memcpy(c.lengths, c.first, sizeof(c.first));
  const int64_t goal = room_ - (room_ >> 10), total = trellis_blocks();
  const int64_t chunk = (spans() + CHUNKS - 1) / CHUNKS;
  int64_t change = 0, changes = 0;
  for (int64_t span = 0; span < spans(); span += chunk) {
    const int64_t end = std::min(span + chunk, spans()), at = spans_[span], stop = spans_[end];
    price_ = PRICE + change;
    for (EctcqClass& c : classes_)
      if (c.known) prepare(c);
    search(span, end);
    for (int64_t place = at; place < stop; ++place) count(place, false);
    fit(source_.codec().rate < LOW_RATE ? 3 : 1);
    changes += change * (stop - at);
    if (stop == total) break;
    const int64_t more =
        floor_divide((bytes() - goal) * 8 * PRICE * effect_of(source_.codec().rate), (total - stop) * ECSQ_BLOCK);
    change = floor_divide(changes, stop) + std::min<int64_t>(std::max<int64_t>(more, -PRICE), PRICE);
    change = std::min(std::max(change, -MOST_CHANGE), MOST_CHANGE);
  }
  return bytes() <= room_;
}

}  // namespace commpress
