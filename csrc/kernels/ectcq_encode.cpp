// Encoding of a segment with the trellis: stream and header.
#include <algorithm>
#include <cstring>

#include "ecsq_classes.h"
#include "ecsq_writer.h"
#include "ectcq_model.h"
#include "ectcq_rate.h"

namespace commpress {

namespace {

class Encoder final {
 public:
  Encoder(const EcsqClasses& source, uint8_t* out, Isa isa)
      : source_(source),
        out_(out),
        nbytes_(source.nbytes()),
        header_(ecsq_header_nbytes(source.codec()) + (source.count() + 7) / 8 + source.substreams().entries_nbytes()),
        room_(nbytes_ - header_ - static_cast<int64_t>(source.coded_kinds().size()) -
              3 * ECTCQ_LANES * source.substreams().count - 8),
        kernels_(ectcq_kernels(isa)),
        search_(source, room_, isa),
        turns_(search_) {}

  bool run() {
    if (room_ < nbytes_ / 2 || source_.codec().rate < ECTCQ_LEAST_RATE) return false;
    bool found = turns_.run();
    for (int turn = 0; turn < 40 && found; ++turn) {
      if (write()) return true;
      found = turns_.shrink(nbytes_ >> 10);  // coding took more than the sum of its logarithms
    }
    return false;
  }

 private:
  bool write() {
    const int count = source_.count();
    const int64_t j = search_.step();
    std::vector<EctcqClassCoder> coders(count);
    std::vector<EcsqClassCoder> uniform(count);
    int64_t body = header_ + static_cast<int64_t>(source_.coded_kinds().size());
    for (int k = 0; k < count; ++k) {
      if (!source_.present(k)) continue;
      ready(coders[k], uniform[k], k);
      body += search_.in_trellis(k) ? search_.of(k).model.nbytes() : 5;
    }
    std::vector<int64_t> low_at(source_.blocks());
    for (int64_t b = 0; b < source_.blocks(); ++b) {
      const int kind = source_.kinds()[b];
      low_at[b] = body;
      if (kind < 0) continue;
      if (!search_.in_trellis(kind)) body += (source_.size_of(b) * search_.of(kind).quantiser.raw + 7) / 8;
    }
    EcsqWriter writer(source_, ECTCQ_LANES, out_, body);
    const float inverse = search_.inverse();
    int64_t place = search_.trellis_blocks();
    const bool fits = writer.run([&](int64_t b, uint32_t* states, uint8_t* to, std::vector<EcsqEscape>& escapes) {
      const int kind = source_.kinds()[b];
      if (search_.in_trellis(kind))
        return kernels_.encode(coders[kind], search_.block_at(--place), source_.gain(), inverse, b * ECSQ_BLOCK, states,
                               to, escapes);
      return source_.kernels().encode(uniform[kind], source_.values_of(b), nullptr, source_.size_of(b), b * ECSQ_BLOCK,
                                      states, ECTCQ_LANES, to, out_ + low_at[b], escapes);
    });
    if (fits) write_header(j, coders, low_at, writer);
    return fits;
  }

  void ready(EctcqClassCoder& c, EcsqClassCoder& u, int k) const {
    const auto entry = [](const int32_t (&f)[entropy::SYMBOLS], uint32_t (&out)[entropy::SYMBOLS]) {
      uint32_t start = 0;
      for (int s = 0; s < entropy::SYMBOLS; start += static_cast<uint32_t>(f[s++]))
        out[s] = static_cast<uint32_t>(f[s]) | start << 16;
    };
    if (search_.in_trellis(k)) {
      int32_t f[2][entropy::SYMBOLS];
      ectcq_frequencies(search_.of(k).model, f);
      c.largest = search_.of(k).model.largest;
      c.empty = search_.of(k).model.empty();
      for (int q = 0; q < 2; ++q) entry(f[q], c.entry[q]);
      return;
    }
    entropy::Frequencies f;
    entropy::frequencies_of(search_.of(k).uniform, source_.relative(k, search_.step()) - ECTCQ_COARSER, false, f);
    u.quantiser = search_.of(k).quantiser;
    u.largest = search_.of(k).uniform.largest;
    u.empty = search_.of(k).uniform.empty();
    u.folded = false;
    entry(f.of[0], u.entry[0]);
  }

  void write_header(int64_t j, const std::vector<EctcqClassCoder>& coders, const std::vector<int64_t>& low_at,
                    const EcsqWriter& writer) {
    uint8_t* to = out_;
    const auto put = [&](int64_t value, int nbytes) {
      for (int i = 0; i < nbytes; ++i) *to++ = static_cast<uint8_t>(value >> (8 * i));
    };
    const int count = source_.count();
    put(ECSQ_TRELLIS, 1);
    put(j + 2048 * source_.shift(), 3);
    put(source_.relative(0, j), 3);
    put(count, 1);
    put(source_.coded_kinds_nbytes()[0], 2);
    put(writer.escapes(), 4);
    put(writer.first_stream_at(), 4);
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
      if (!search_.in_trellis(k)) {
        const entropy::Model& m = search_.of(k).uniform;
        put((m.shift + 64) | m.escape << 7, 1);
        put(m.largest | m.shape << 5, 1);
        put(0, 3);
        continue;
      }
      const EctcqModel& m = search_.of(k).model;
      put(m.largest | m.ample[0] << 5 | m.ample[1] << 6 | m.escape << 7, 1);
      for (int q = 0; q < 2; ++q)
        for (const int8_t place : m.places[q]) put(place, 1);
      int64_t sum = 0;
      for (int q = 0; q < 2; ++q)
        for (int i = 1; i <= m.largest; ++i) {
          put(m.codes[q][i], 1);
          sum += ectcq_level(m, q, i) * search_.of(k).counts.magnitude(q, i);
        }
      energy += static_cast<double>(16 * (search_.of(k).counts.squares - coders[k].escaped));
      product += static_cast<double>(sum);
    }
    writer.entries(low_at, put);
    memcpy(to, source_.coded_kinds().data(), source_.coded_kinds().size());
    const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
    if (ecsq_has_rho(source_.codec())) memcpy(rho_at, &rho, 4);
  }

  const EcsqClasses& source_;
  uint8_t* const out_;
  const int64_t nbytes_, header_, room_;
  const EctcqKernels& kernels_;
  EctcqSearch search_;
  EctcqTurns<EctcqSearch> turns_;
};

}  // namespace

bool ectcq_encode(const EcsqClasses& source, uint8_t* out, Isa isa) { return Encoder(source, out, isa).run(); }

}  // namespace commpress
