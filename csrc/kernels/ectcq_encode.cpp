// Encoding of a segment with the trellis: rate control, stream, header.
#include <algorithm>
#include <cstring>

#include "ecsq_classes.h"
#include "ectcq.h"
#include "ectcq_tables.h"
#include "entropy_coders.h"

namespace commpress {

namespace {

constexpr int SAMPLED_SPANS = 8, SAMPLED_TURNS = 10, TABLE_TURNS = 3,
              FULL_TURNS = 8;                           // the first ones with the lengths of a table
constexpr int32_t LEAST_RATE = 200000;                  // below, ecsq is better
constexpr int64_t UNSEEN = 4 << 16, ESCAPE = 44 << 16;  // bits of an index beyond the largest one, in 2^-16

// Squared steps that a bit is worth, in 1/4096, at 0, 1/2, 1, ... 3 bits and beyond: the best of a normal source.
constexpr int64_t WORTH[] = {2400, 2250, 2000, 1786, 1593, 1520, 1462};

int64_t worth_of(int64_t rate) {
  constexpr int64_t half = RATE_ONE / 2;
  const int64_t place = std::min<int64_t>(rate / half, 5), f = std::min<int64_t>(rate - place * half, half);
  return (WORTH[place] * (half - f) + WORTH[place + 1] * f) / half;
}

class Encoder final {
 public:
  Encoder(const EcsqClasses& source, uint8_t* out, Isa isa)
      : source_(source),
        out_(out),
        nbytes_(source.nbytes()),
        header_(ecsq_header_nbytes(source.codec()) + (source.count() + 7) / 8),
        room_(nbytes_ - header_ - static_cast<int64_t>(source.coded_kinds().size()) - 3 * ECTCQ_LANES - 8),
        kernels_(ectcq_kernels(isa)),
        price_(static_cast<double>(worth_of(source.codec().rate)) * 0x1p-28),
        classes_(source.count()) {
    const int64_t rest = source.numel() % ECSQ_BLOCK;
    if (rest) memcpy(tail_, source.values_of(source.blocks() - 1), 4 * rest);
  }

  bool run() {
    if (room_ < nbytes_ / 2 || source_.codec().rate < LEAST_RATE) return false;
    const int64_t n = source_.numel(), finest = source_.finest_step();
    int64_t j = std::max(source_.first_step() - 1536, finest);
    const int64_t spans = (source_.blocks() + ECTCQ_SPAN - 1) / ECTCQ_SPAN,
                  stride = std::max<int64_t>(spans / SAMPLED_SPANS, 1);
    for (int turn = 0; turn < SAMPLED_TURNS; ++turn) {
      if (turn < TABLE_TURNS)
        for (Class& c : classes_) c.known = false;
      const int64_t move = floor_divide((pass(j, stride) - room_) * 16384, n);
      j = std::max(j + std::min<int64_t>(std::max<int64_t>(move, -1024), 1024), finest);
    }
    const int64_t slack = room_ >> 8;
    int64_t boost = 1, before = 0, filled = 0;  // faster and faster in one direction: the tables improve on the way
    for (int turn = 0; turn < 30; ++turn) {
      const int64_t c = pass(j, 1), over = c - room_ + slack / 2;
      if (c <= room_ && source_.relative(0, j) >= -(1 << 17) && (!found_ || c > filled)) {
        keep(j);
        filled = c;
      }
      if (found_ && (turn >= FULL_TURNS || j == finest || (c <= room_ && c >= room_ - slack))) break;
      boost = turn == 0 ? 2 : (over > 0) == (before > 0) ? std::min<int64_t>(2 * boost, 8) : 1;
      before = over;
      const int64_t move = floor_divide(over * 16384 * boost, n);
      const int64_t next = std::max(j + std::min<int64_t>(std::max<int64_t>(move, -1024), 1024), finest);
      j = turn < FULL_TURNS ? next : j + (int64_t{16} << std::min(turn - FULL_TURNS, 6));
    }
    for (int i = 0; i < 40 && found_; ++i) {
      if (write()) return true;
      pass(best_ + 16, 1);  // coding took more than the sum of its logarithms
      keep(best_ + 16);
    }
    return false;
  }

 private:
  struct Class {
    bool known = false;
    int64_t lengths[2][ECTCQ_INDICES];  // that the search reckons with
    EctcqModel model;
    EctcqCounts counts;
    entropy::Model uniform;
    entropy::Counts symbols;
    EcsqQuantiser quantiser;
    EctcqTables tables;
  };

  bool in_trellis(int kind, int64_t j) const { return source_.relative(kind, j) <= ECTCQ_MOST_LEVEL; }
  const float* values_of(int64_t block) const {
    return source_.size_of(block) < ECSQ_BLOCK ? tail_ : source_.values_of(block);
  }
  float inverse_of(int64_t j) const { return static_cast<float>(1.0 / entropy::step_of(j)); }

  void keep(int64_t j) {
    found_ = true;
    best_ = j;
    kept_ = classes_;
    kept_cells_.swap(cells_);
  }

  void prepare(Class& c, int kind, int64_t j) const {
    const int64_t relative = source_.relative(kind, j);
    if (!in_trellis(kind, j)) {
      const int64_t there = relative - ECTCQ_COARSER;
      c.quantiser = {source_.gain(), inverse_of(j + ECTCQ_COARSER), 0.5f, entropy::raw_bits(there), false};
      c.symbols = {};
      return;
    }
    c.counts = {};
    if (!c.known) begin(c, relative);
    for (int q = 0; q < 2; ++q)
      for (int k = 0; k < ECTCQ_INDICES; ++k) {
        c.tables.levels[2 * q + k % 2][k / 2] = static_cast<float>(ectcq_level(c.model, q, k)) / 4096.0f;
        c.tables.prices[2 * q + k % 2][k / 2] = static_cast<float>(static_cast<double>(c.lengths[q][k]) * price_);
      }
  }

  // Code lengths in 2^-16 bit of a normal source.
  static void begin(Class& c, int64_t relative) {
    const int64_t row = std::min<int64_t>(std::max<int64_t>((relative + 512) >> 10, -4), 6) + 4;
    for (int q = 0; q < 2; ++q)
      for (int k = 0; k < ECTCQ_INDICES; ++k) c.lengths[q][k] = ECTCQ_LENGTHS[row][q][k] << 8;
    c.model = {};
    c.known = true;
  }

  // Half the way to those of the model: all the way would be to and fro.
  static void learn(Class& c) {
    const int64_t* const length = entropy::lengths();
    int32_t f[2][entropy::SYMBOLS];
    ectcq_frequencies(c.model, f);
    for (int q = 0; q < 2; ++q) {
      int64_t fresh = 0;
      for (int k = 0; k < ECTCQ_INDICES; ++k) {
        fresh = k <= c.model.largest ? length[f[q][32 + k]] : std::min(fresh + UNSEEN, ESCAPE);
        c.lengths[q][k] = (c.lengths[q][k] + fresh) >> 1;
      }
    }
  }

  // Searches every stride-th span of blocks. Bytes of the whole; leaves models and cells.
  int64_t pass(int64_t j, int64_t stride) {
    const int count = source_.count();
    for (int k = 0; k < count; ++k)
      if (source_.present(k)) prepare(classes_[k], k, j);
    blocks_.clear();
    int64_t uniform = 0, sampled = 0, seen = 0, raw = 0;
    for (int64_t b = 0; b < source_.blocks(); ++b) {
      const int kind = source_.kinds()[b];
      if (kind < 0) continue;
      if (in_trellis(kind, j)) {
        blocks_.push_back(b);
        continue;
      }
      if (uniform++ % stride) continue;
      ++sampled;
      Class& c = classes_[kind];
      source_.kernels().count(c.quantiser, source_.values_of(b), nullptr, source_.size_of(b), c.symbols);
      raw += (source_.size_of(b) * c.quantiser.raw + 7) / 8;
    }
    cells_.resize(ECSQ_BLOCK * blocks_.size());
    const float inverse = inverse_of(j);
    const int64_t total = static_cast<int64_t>(blocks_.size());
    for (int64_t at = 0; at < total; at += stride * ECTCQ_SPAN) {
      EctcqBlock span[ECTCQ_SPAN];
      const int64_t size = std::min(ECTCQ_SPAN, total - at);
      for (int64_t i = 0; i < size; ++i) span[i] = block_at(at + i, classes_, cells_);
      kernels_.search(span, size, source_.gain(), inverse);
      for (int64_t i = 0; i < size; ++i)
        kernels_.count(span[i], source_.gain(), inverse, classes_[source_.kinds()[blocks_[at + i]]].counts);
      seen += size;
    }
    int64_t bits = 0, others = 0;
    for (int k = 0; k < count; ++k) {
      if (!source_.present(k)) continue;
      Class& c = classes_[k];
      int64_t here;
      if (in_trellis(k, j)) {
        if (std::all_of(c.counts.of, c.counts.of + 66, [](uint64_t x) { return x == 0; })) continue;
        c.model = ectcq_fit(c.counts, here);
        learn(c);
        bits += here;
      } else {
        c.uniform = entropy::fit(c.symbols, source_.relative(k, j) - ECTCQ_COARSER, false, here);
        others += here + 5 * 8 * 65536;
      }
    }
    const auto bytes = [](int64_t cost) { return (cost + (1 << 19) - 1) / (1 << 19); };
    return (seen ? bytes(bits) * total / seen : 0) + (sampled ? (bytes(others) + raw) * uniform / sampled : 0);
  }

  EctcqBlock block_at(int64_t place, std::vector<Class>& classes, std::vector<uint8_t>& cells) const {
    const int64_t b = blocks_[place];
    return {values_of(b), &classes[source_.kinds()[b]].tables, cells.data() + ECSQ_BLOCK * place};
  }

  // What keep() kept, which was the last pass or one with other blocks: they are found again.
  bool write() {
    const int count = source_.count();
    const int64_t j = best_;
    std::vector<EctcqClassCoder> coders(count);
    std::vector<EcsqClassCoder> uniform(count);
    int64_t body = header_ + static_cast<int64_t>(source_.coded_kinds().size());
    for (int k = 0; k < count; ++k) {
      if (!source_.present(k)) continue;
      ready(coders[k], uniform[k], k);
      body += in_trellis(k, j) ? kept_[k].model.nbytes() : 5;
    }
    blocks_.clear();
    std::vector<int64_t> low_at(source_.blocks());
    for (int64_t b = 0; b < source_.blocks(); ++b) {
      const int kind = source_.kinds()[b];
      low_at[b] = body;
      if (kind < 0) continue;
      if (in_trellis(kind, j))
        blocks_.push_back(b);
      else
        body += (source_.size_of(b) * kept_[kind].quantiser.raw + 7) / 8;
    }
    if (body + 4 * ECTCQ_LANES > nbytes_) return false;
    uint32_t states[entropy::MOST_LANES];
    for (uint32_t& state : states) state = entropy::RANS_LOW;
    std::vector<EcsqEscape> escapes;
    uint8_t* at = out_ + nbytes_;
    uint8_t spare[2 * ECSQ_BLOCK + 64];
    const float inverse = inverse_of(j);
    int64_t place = static_cast<int64_t>(blocks_.size());
    for (int64_t b = source_.blocks(); b-- > 0;) {
      const int kind = source_.kinds()[b];
      if (kind < 0) continue;
      // Near the end of the room a block is written apart first.
      const bool near = at - (out_ + body) < 2 * ECSQ_BLOCK;
      uint8_t* const from = near ? spare + sizeof(spare) : at;
      uint8_t* to;
      if (in_trellis(kind, j))
        to = kernels_.encode(coders[kind], block_at(--place, kept_, kept_cells_), source_.gain(), inverse,
                             b * ECSQ_BLOCK, states, from, escapes);
      else
        to = source_.kernels().encode(uniform[kind], source_.values_of(b), nullptr, source_.size_of(b), b * ECSQ_BLOCK,
                                      states, ECTCQ_LANES, from, out_ + low_at[b], escapes);
      if (near) {
        if (at - (out_ + body) < from - to) return false;
        memcpy(at - (from - to), to, from - to);
      }
      at -= from - to;
    }
    if (at - (out_ + body) < 4 * ECTCQ_LANES + 4 * static_cast<int64_t>(escapes.size())) return false;
    for (int lane = ECTCQ_LANES; lane-- > 0;) memcpy(at -= 4, &states[lane], 4);
    std::sort(escapes.begin(), escapes.end(),
              [](const EcsqEscape& a, const EcsqEscape& b) { return a.index < b.index; });
    for (const EcsqEscape& e : escapes) {
      memcpy(out_ + body, &e.value, 4);
      body += 4;
    }
    memset(out_ + body, 0, at - (out_ + body));
    write_header(j, coders, escapes.size(), at - out_);
    return true;
  }

  void ready(EctcqClassCoder& c, EcsqClassCoder& u, int k) const {
    const auto entry = [](const int32_t (&f)[entropy::SYMBOLS], uint32_t (&out)[entropy::SYMBOLS]) {
      uint32_t start = 0;
      for (int s = 0; s < entropy::SYMBOLS; start += static_cast<uint32_t>(f[s++]))
        out[s] = static_cast<uint32_t>(f[s]) | start << 16;
    };
    if (in_trellis(k, best_)) {
      int32_t f[2][entropy::SYMBOLS];
      ectcq_frequencies(kept_[k].model, f);
      c.largest = kept_[k].model.largest;
      c.empty = kept_[k].model.empty();
      for (int q = 0; q < 2; ++q) entry(f[q], c.entry[q]);
      return;
    }
    entropy::Frequencies f;
    entropy::frequencies_of(kept_[k].uniform, source_.relative(k, best_) - ECTCQ_COARSER, false, f);
    u.quantiser = kept_[k].quantiser;
    u.largest = kept_[k].uniform.largest;
    u.empty = kept_[k].uniform.empty();
    u.folded = false;
    entry(f.of[0], u.entry[0]);
  }

  void write_header(int64_t j, const std::vector<EctcqClassCoder>& coders, size_t escapes, int64_t stream) {
    uint8_t* to = out_;
    const auto put = [&](int64_t value, int nbytes) {
      for (int i = 0; i < nbytes; ++i) *to++ = static_cast<uint8_t>(value >> (8 * i));
    };
    const int count = source_.count();
    put(ECSQ_TRELLIS, 1);
    put(j + 2048 * source_.shift(), 3);
    put(source_.relative(0, j), 3);
    put(count, 1);
    put(static_cast<int64_t>(source_.coded_kinds().size()), 2);
    put(static_cast<int64_t>(escapes), 4);
    put(stream, 4);
    uint8_t* const rho_at = to;
    if (ecsq_has_rho(source_.codec())) to += 4;
    for (int byte = 0; byte < (count + 7) / 8; ++byte) {
      int mask = 0;
      for (int k = 0; k < 8 && 8 * byte + k < count; ++k) mask |= source_.present(8 * byte + k) << k;
      put(mask, 1);
    }
    double energy = 0, product = 0;
    for (int k = 0; k < count; ++k) {
      if (!source_.present(k)) continue;
      if (!in_trellis(k, j)) {
        const entropy::Model& m = kept_[k].uniform;
        put((m.shift + 64) | m.escape << 7, 1);
        put(m.largest | m.shape << 5, 1);
        put(0, 3);
        continue;
      }
      const EctcqModel& m = kept_[k].model;
      put(m.largest | m.ample[0] << 5 | m.ample[1] << 6 | m.escape << 7, 1);
      for (int q = 0; q < 2; ++q)
        for (const int8_t place : m.places[q]) put(place, 1);
      int64_t sum = 0;
      for (int q = 0; q < 2; ++q)
        for (int i = 1; i <= m.largest; ++i) {
          put(m.codes[q][i], 1);
          sum +=
              ectcq_level(m, q, i) * static_cast<int64_t>(kept_[k].counts.of[32 * q + i] & ((uint64_t{1} << 40) - 1));
        }
      energy += static_cast<double>(16 * (kept_[k].counts.squares - coders[k].escaped));
      product += static_cast<double>(sum);
    }
    memcpy(to, source_.coded_kinds().data(), source_.coded_kinds().size());
    const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
    if (ecsq_has_rho(source_.codec())) memcpy(rho_at, &rho, 4);
  }

  const EcsqClasses& source_;
  uint8_t* const out_;
  const int64_t nbytes_, header_, room_;
  const EctcqKernels& kernels_;
  const double price_;
  std::vector<Class> classes_, kept_;
  std::vector<uint8_t> cells_, kept_cells_;
  std::vector<int64_t> blocks_;  // of the trellis
  bool found_ = false;
  int64_t best_ = 0;
  alignas(64) float tail_[ECSQ_BLOCK] = {0};
};

}  // namespace

bool ectcq_encode(const EcsqClasses& source, uint8_t* out, Isa isa) { return Encoder(source, out, isa).run(); }

}  // namespace commpress
