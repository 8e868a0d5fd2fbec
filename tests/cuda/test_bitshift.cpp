// The kernels of the bitshift trellis against the CPU path, to the bit: all rates, lengths of a state, sizes,
// rotations, magnitudes, several senders, tables of layers; and payloads that no encoder writes.
//   test_bitshift [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS [NUMEL]]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all. NUMEL: instead of all that,
// so many coordinates are encoded and decoded, at a few rates.
#include <algorithm>
#include <memory>

#include "bitshift_codec.h"
#include "cuda_decode_trellis.h"
#include "kernel_inputs.h"
#include "simt/engine.h"
#include "trellis_emulated.h"

namespace {

constexpr cuda::Queue QUEUE{0, 1, nullptr};

int shortest(const TrellisRate& rate) {
  const int least = 2 * rate.bits + 4;
  return least > TRELLIS_SHORTEST ? least : TRELLIS_SHORTEST;
}

Trellis trellis(const TrellisRate& rate, int length, bool rotated, bool centroid) {
  return {rate.bits, rate.values, length, rotated, centroid, rate.spread};
}

// Layers with their codebooks, one behind the other as on a device.
struct Bucket {
  std::vector<cuda::Layer> layers;
  std::vector<Trellis> trellises;
  std::vector<int32_t> layer_of_unit;
  std::vector<float> codebooks;
  int64_t numel = 0, nbytes = 0, units = 0;

  void add(const Trellis& t, int64_t block, int64_t n) {
    const int64_t offset = block * BLOCK, size = trellis_nbytes(t, offset, n), begin = codebooks.size();
    layers.push_back({cuda::BITSHIFT, cuda::packed_trellis(t.bits, t.values, t.length, t.rotated), t.centroid,
                      static_cast<int64_t>(layers.size()), offset, n, numel, nbytes, units, begin, 1});
    trellises.push_back(t);
    const float* const levels = codebook_of(t).levels.get();
    codebooks.insert(codebooks.end(), levels, levels + codebook_size(t));
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    layer_of_unit.insert(layer_of_unit.end(), blocks, static_cast<int32_t>(layers.size() - 1));
    numel += n;
    nbytes += size;
    units += blocks;
  }
  cuda::Job job(const Key& key) const {
    cuda::Job job{nullptr, nullptr, {}, units, key, nullptr};
    job.codebooks = codebooks.data();
    if (layers.size() == 1) {
      job.single = layers[0];
    } else {
      job.layers = layers.data();
      job.layer_of_unit = layer_of_unit.data();
    }
    return job;
  }
  // fn(payload, layer) for each layer.
  template <class F>
  void each(const Key& key, F&& fn) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      Key own = key;
      own.tensor += static_cast<uint32_t>(layers[i].tensor);
      fn(TrellisPayload{trellises[i], own, layers[i].offset, layers[i].numel}, layers[i]);
    }
  }
};

std::string name_of(const Trellis& t, int64_t n) {
  return std::string(t.rotated ? "hadamard+" : "") + "bitshift of " + std::to_string(t.bits) + "/" +
         std::to_string(t.values) + ", length " + std::to_string(t.length) + ", n " + std::to_string(n);
}

// What the kernels make of several senders' payloads, and what the CPU path does.
void compare(const Bucket& bucket, const Key& key, const std::vector<std::vector<uint8_t>>& payloads,
             const std::string& what, Noise& noise) {
  const float gain = noise.below(2) ? 1.0f : 0.25f + noise.unit(), beta = noise.below(2) ? 1.0f : noise.unit();
  const bool accumulate = noise.below(2);
  Buffer sum(4 * bucket.numel, 4 * noise.below(4), 0), known(4 * bucket.numel, 0, 0);
  const std::vector<float> before = values(NORMAL, bucket.numel, noise);
  std::memcpy(sum.data(), before.data(), 4 * bucket.numel);
  std::memcpy(known.data(), before.data(), 4 * bucket.numel);
  std::vector<std::unique_ptr<Buffer>> sent;
  cuda::Sources sources{};
  sources.count = static_cast<int32_t>(payloads.size());
  sources.position = static_cast<int32_t>(noise.below(9));
  int32_t invalid = 0;
  for (int32_t sender = 0; sender < sources.count; ++sender) {
    sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(17), 0));
    std::memcpy(sent.back()->data(), payloads[sender].data(), bucket.nbytes);
    sources.payload[sender] = sent.back()->data();
    Key own = key;
    own.sender_phase = sources.sender_phase[sender] = static_cast<uint32_t>(sender) << 8 | 16;
    bucket.each(own, [&](const TrellisPayload& p, const cuda::Layer& layer) {
      const uint8_t* const in = payloads[sender].data() + layer.byte;
      if (inspect(p, in).invalid_block >= 0) {
        invalid = sources.position + sender + 1;
        return;
      }
      decode(p, in, known.floats() + layer.first, accumulate || sender > 0, gain, sender ? 1.0f : beta, Isa::PLAIN);
    });
  }
  cuda::Report report{0, 0};
  require(cuda::decode(bucket.job(key), cuda::family_bit(cuda::BITSHIFT), sources, sum.floats(),
                       {accumulate, gain, beta}, &report, QUEUE) == 0,
          what + ": launch");
  sum.check_guards(what);
  require(report.invalid == invalid, what + ": verdict " + std::to_string(report.invalid));
  if (invalid) return;
  same(sum.floats(), known.floats(), bucket.numel, what);
  bool overflow = false;
  for (int64_t i = 0; i < bucket.numel; ++i) overflow = overflow || !(bits_of(known.floats()[i]) << 1 < 0xFF000000u);
  require((report.non_finite != 0) == overflow, what + ": finiteness");
}

// The kernels' payload of x; it must be the CPU path's. A value larger than the rest asks for two rotations.
std::vector<uint8_t> encoded(const Bucket& bucket, const Key& key, uint32_t sender, Kind kind, bool spike,
                             Noise& noise) {
  std::vector<float> x = values(kind, bucket.numel, noise);
  if (spike)
    for (const cuda::Layer& layer : bucket.layers) x[layer.first + noise.below(layer.numel)] = 300.0f;
  Key own = key;
  own.sender_phase = sender << 8 | 16;
  const cuda::Input input = static_cast<cuda::Input>(noise.below(3));
  const int64_t width = input == cuda::FLOAT32 ? 4 : 2;
  Buffer data(width * bucket.numel, width * noise.below(5), 0);
  if (input == cuda::FLOAT32)
    std::memcpy(data.data(), x.data(), 4 * bucket.numel);
  else
    std::memcpy(data.data(), narrowed(x, input).data(), 2 * bucket.numel);
  const float gain = noise.below(8) ? 0.5f + noise.unit() : 0x1p100f;
  std::vector<uint8_t> expected(bucket.nbytes);
  int64_t words = 0;
  bucket.each(own, [&](const TrellisPayload& p, const cuda::Layer& layer) {
    encode(p, x.data() + layer.first, gain, expected.data() + layer.byte, Isa::PLAIN);
    const int64_t needed = cuda::scratch_words(p.trellis);
    if (needed > words) words = needed;
  });
  const int32_t count = 1 + static_cast<int32_t>(noise.below(3));
  Buffer scratch(4 * words * count, 0, 0xCD), payload(bucket.nbytes, noise.below(17), 0xCD);
  const std::string what = name_of(bucket.trellises[0], bucket.numel) + ", " + KIND_NAMES[kind];
  require(cuda::encode(bucket.job(own), cuda::family_bit(cuda::BITSHIFT), {data.data(), input}, gain, payload.data(),
                       QUEUE, {reinterpret_cast<uint32_t*>(scratch.data()), words, count}) == 0,
          what + ": launch");
  payload.check_guards(what);
  scratch.check_guards(what + ", scratch");
  same(payload.data(), expected.data(), bucket.nbytes, what + ", payload");
  return expected;
}

// Bytes that any decoder takes, without a search for the best: scales of every kind, and random bits.
std::vector<uint8_t> drawn(const Bucket& bucket, bool valid, Noise& noise) {
  std::vector<uint8_t> payload(bucket.nbytes);
  for (uint8_t& byte : payload) byte = static_cast<uint8_t>(noise.below(256));
  const uint32_t scales[] = {0u,          SCALE32_NON_FINITE, 0x3F800000u, 0x00000001u, 0x7F7FFFFFu,
                             0x68000001u, 0x7F800000u,        0x80000000u, 0x7F812345u};
  for (size_t i = 0; i < bucket.layers.size(); ++i) {
    const Trellis& t = bucket.trellises[i];
    const cuda::Layer& layer = bucket.layers[i];
    uint8_t* at = payload.data() + layer.byte;
    trellis_pieces(t, layer.numel, [&](int64_t first, int64_t n) {
      if (n < SMALLEST_PIECE) {  // another codec's: an encoder's bytes
        const std::vector<float> x = values(NORMAL, n, noise);
        encode(Payload{trellis_rest(t), {}, layer.offset + first, n}, x.data(), 1.0f, at, Isa::PLAIN);
        return;
      }
      uint32_t scale = scales[noise.below(3) ? 2 : noise.below(valid ? 6 : 9)];
      if (scale != 0 && scale < SCALE32_INFINITY && (t.rotated || !valid) && noise.below(3) == 0)
        scale |= SCALE32_TWO_ROTATIONS;
      std::memcpy(at, &scale, 4);
      at += trellis_piece_nbytes(t, n);
    });
  }
  return payload;
}

// Every rate and length, with drawn bytes: what a decoder makes of them does not depend on who wrote them.
void all_codecs(Run& run) {
  const int64_t sizes[] = {1, 31, 1023, 1024, 4097, 2048 + 1024 + 130, 32768 + 4096 + 1024 + 7, 65536 + 16384 + 5};
  for (const TrellisRate& rate : TRELLIS_RATES)
    for (int length = shortest(rate); length <= TRELLIS_LONGEST; ++length)
      for (int64_t n : sizes) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        const Trellis t = trellis(rate, length, noise.below(3) != 0, noise.below(2));
        Bucket bucket;
        bucket.add(t, noise.below(1000), n);
        std::vector<std::vector<uint8_t>> payloads;
        const int64_t senders = n > 30000 ? 1 : 1 + noise.below(3);
        for (int64_t sender = 0; sender < senders; ++sender) payloads.push_back(drawn(bucket, true, noise));
        compare(bucket, key_of(noise), payloads, name_of(t, n), noise);
      }
}

// An encoder's payloads of values of every kind.
void encoders(Run& run) {
  for (const TrellisRate& rate : TRELLIS_RATES)
    for (int kind = 0; kind < KINDS; ++kind)
      for (int64_t n : {1, 31, 4097, rate.values > 1 ? 16384 + 8192 + 1500 : 8192 + 1500}) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        const int length = shortest(rate) + static_cast<int>(noise.below(3));
        const Trellis t =
            trellis(rate, length < TRELLIS_LONGEST ? length : TRELLIS_LONGEST, noise.below(3) != 0, noise.below(2));
        Bucket bucket;
        bucket.add(t, noise.below(1000), n);
        const Key key = key_of(noise);
        std::vector<std::vector<uint8_t>> payloads;
        const uint32_t senders = 1 + static_cast<uint32_t>(noise.below(3));
        for (uint32_t sender = 0; sender < senders; ++sender)
          payloads.push_back(encoded(bucket, key, sender, static_cast<Kind>(kind), noise.below(2), noise));
        compare(bucket, key, payloads, name_of(t, n) + ", " + KIND_NAMES[kind], noise);
      }
}

// All lengths of a state: costs in shared memory and not.
void lengths(Run& run) {
  for (const TrellisRate& rate : TRELLIS_RATES)
    for (int length = 11; length <= (run.parts == 1 ? TRELLIS_LONGEST : 14); ++length) {
      if (length < shortest(rate) || !run.next()) continue;
      Noise noise{run.seed + static_cast<uint64_t>(run.number)};
      Bucket bucket;
      bucket.add(trellis(rate, length, noise.below(2), noise.below(2)), 0, 1024);
      const Key key = key_of(noise);
      compare(bucket, key, {encoded(bucket, key, 0, NORMAL, false, noise)}, name_of(bucket.trellises[0], 1024), noise);
    }
}

// Tables of layers that are encoded, by more blocks of threads than some have pieces.
void encoded_tables(Run& run) {
  for (int table = 0; table < 6; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    while (bucket.units < 12) {
      const TrellisRate& rate = TRELLIS_RATES[noise.below(11)];
      bucket.add(trellis(rate, shortest(rate), noise.below(2), noise.below(2)), noise.below(9), 1 + noise.below(20000));
    }
    const Key key = key_of(noise);
    std::vector<std::vector<uint8_t>> payloads;
    for (uint32_t sender = 0; sender < 2; ++sender)
      payloads.push_back(encoded(bucket, key, sender, MIXED, noise.below(2), noise));
    compare(bucket, key, payloads, "encoded table " + std::to_string(table), noise);
  }
}

Trellis any_trellis(Noise& noise) {
  const TrellisRate& rate = TRELLIS_RATES[noise.below(sizeof(TRELLIS_RATES) / sizeof(TRELLIS_RATES[0]))];
  const int least = shortest(rate);
  return trellis(rate, least + static_cast<int>(noise.below(TRELLIS_LONGEST - least + 1)), noise.below(2),
                 noise.below(2));
}

// Layers of several codecs, more blocks than blocks of threads; and scales that no encoder writes.
void tables(Run& run, bool valid) {
  for (int table = 0; table < 30; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    while (bucket.units < 12) bucket.add(any_trellis(noise), noise.below(9), 1 + noise.below(20000));
    std::vector<std::vector<uint8_t>> payloads;
    for (int64_t sender = noise.below(3); sender >= 0; --sender) payloads.push_back(drawn(bucket, valid, noise));
    compare(bucket, key_of(noise), payloads, "table " + std::to_string(table), noise);
  }
}

// 2^18 - 5 coordinates, the span above and below a bit.
void long_payloads(Run& run) {
  for (const TrellisRate& rate : TRELLIS_RATES)
    if ((rate.bits == 1 && rate.values == 20) || (rate.bits == 3 && rate.values == 2)) {
      if (!run.next()) continue;
      Noise noise{run.seed + static_cast<uint64_t>(run.number)};
      const int64_t n = (int64_t{1} << 18) - 5;
      const Trellis t = trellis(rate, 12, true, false);
      Bucket bucket;
      bucket.add(t, 16, n);
      compare(bucket, key_of(noise), {drawn(bucket, true, noise)}, name_of(t, n), noise);
    }
}

// As many coordinates as asked for: the search takes minutes for a million of them.
void searches(uint64_t seed, int64_t n) {
  for (const TrellisRate& rate : TRELLIS_RATES) {
    if (rate.values != 20 && rate.bits != rate.values && rate.bits != 2) continue;
    Noise noise{seed + static_cast<uint64_t>(rate.bits * rate.values)};
    Bucket bucket;
    bucket.add(trellis(rate, shortest(rate), rate.values != 1 || rate.bits != 1, false), 4, n);
    const Key key = key_of(noise);
    const std::vector<uint8_t> payload = encoded(bucket, key, 0, MIXED, false, noise);
    compare(bucket, key, {payload}, name_of(bucket.trellises[0], n), noise);
  }
}

// The codeword that a coordinate belongs to is found without a division: for all of them.
void codewords() {
  for (const TrellisRate& rate : TRELLIS_RATES) {
    const int64_t chain = trellis_chain(trellis(rate, 16, true, true), WIDEST_PIECE);
    const uint32_t reciprocal = cuda::reciprocal_of(rate.values);
    for (int64_t i = 0; i < chain; ++i)
      require(cuda::codeword_of(static_cast<uint32_t>(i), reciprocal) == static_cast<uint32_t>(i / rate.values),
              "codeword of coordinate " + std::to_string(i));
  }
}

// The first of the nodes with the least cost, in every thread: what follows from it hardly depends on which of equals.
void best_of_nodes(Noise& noise) {
  for (int digits = 5; digits <= 11; ++digits) {
    std::vector<float> costs(1 << digits);
    for (float& cost : costs) cost = static_cast<float>(noise.below(costs.size() / 8));
    std::vector<int32_t> found(cuda::TRELLIS_THREADS, -1);
    cuda::best_nodes(costs.data(), digits, found.data());
    const int32_t first = static_cast<int32_t>(std::min_element(costs.begin(), costs.end()) - costs.begin());
    for (int32_t node : found) require(node == first, "best of " + std::to_string(costs.size()) + " nodes");
  }
}

// Pieces are found where trellis_pieces() has them.
void pieces(Noise& noise) {
  for (int attempt = 0; attempt < 300; ++attempt) {
    const Trellis t = any_trellis(noise);
    const int64_t numel = 1 + noise.below(300000);
    int64_t byte = 0;
    trellis_pieces(t, numel, [&](int64_t first, int64_t n) {
      for (int64_t at : {first, first + n / 2, first + n - 1}) {
        const TrellisPiece piece = trellis_piece_at(t, numel, at);
        require(piece.first == first && piece.n == n && piece.byte == byte, "piece of " + std::to_string(at));
      }
      byte += trellis_piece_nbytes(t, n);
    });
  }
}

}  // namespace

int main(int count, char** arguments) {
  const auto number = [&](int i, int64_t otherwise) { return i < count ? std::atoll(arguments[i]) : otherwise; };
  const uint64_t seed = static_cast<uint64_t>(number(1, 1));
  const simt::Order orders[] = {simt::Order::IN_ORDER, simt::Order::REVERSED, simt::Order::RANDOM};
  simt::set_schedule({orders[number(2, 0)], static_cast<unsigned>(seed), static_cast<unsigned>(number(3, 1)),
                      static_cast<uint8_t>(seed % 2 ? 0xA5 : 0)});
  if (number(5, 0)) {
    searches(seed, number(5, 0));
    std::printf("passed\n");
    return 0;
  }
  codewords();
  Noise noise{seed};
  pieces(noise);
  best_of_nodes(noise);
  Run run{seed, number(4, 1)};
  all_codecs(run);
  encoders(run);
  lengths(run);
  Run often{seed, (run.parts + 3) / 4};
  encoded_tables(often);
  tables(often, true);
  tables(often, false);
  if (run.parts <= 3) long_payloads(run);
  std::printf("passed\n");
}
