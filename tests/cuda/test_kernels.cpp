// The kernels against the CPU path, to the bit: families, rates, sizes, magnitudes, dtypes, alignments, several
// senders, tables of layers; and payloads that no encoder writes.
//   test_kernels [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all.
#include <cstring>
#include <memory>

#include "kernel_inputs.h"
#include "simt/engine.h"

namespace {

constexpr cuda::Queue QUEUE{0, 1, nullptr};

// Several layers of a bucket, and the table that kernels read.
struct Bucket {
  std::vector<cuda::Layer> layers;
  std::vector<int32_t> layer_of_unit;
  int64_t numel = 0, nbytes = 0, units = 0;
  uint32_t families = 0;

  void add(Codec codec, int64_t tensor, int64_t offset, int64_t n) {
    layers.push_back({codec.family, codec.rate, codec.centroid, tensor, offset, n, numel, nbytes, units,
                      cuda::even_bits(codec), cuda::even_block_nbytes(codec)});
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    layer_of_unit.insert(layer_of_unit.end(), blocks, static_cast<int32_t>(layers.size() - 1));
    numel += n;
    nbytes += payload_nbytes(codec, offset, n);
    units += blocks;
    families |= cuda::family_bit(codec.family);
  }
  cuda::Job job(const Key& key, const int64_t* step) const {
    if (layers.size() == 1) return {nullptr, nullptr, layers[0], units, key, step};
    return {layers.data(), layer_of_unit.data(), {}, units, key, step};
  }
  // fn(payload description, first coordinate, first byte) for each layer.
  template <class F>
  void each(const Key& key, F&& fn) const {
    for (const cuda::Layer& layer : layers) {
      Payload payload{{static_cast<int32_t>(layer.family), static_cast<int32_t>(layer.rate), layer.centroid != 0},
                      key,
                      layer.offset,
                      layer.numel};
      payload.key.tensor += static_cast<uint32_t>(layer.tensor);
      fn(payload, layer.first, layer.byte);
    }
  }
};

// Encodes for several senders, decodes their sum, and compares all of it with the CPU path.
void check(const Bucket& bucket, Kind kind, cuda::Input input, int senders, const std::string& what, Noise& noise) {
  const float gains[] = {1.0f, 0.25f + noise.unit(), 0x1p-110f, 0x1p105f, 0x1p-148f};  // the last: scales of zero
  const float gain = gains[noise.below(8) ? noise.below(2) : noise.below(5)];
  const float beta = noise.below(2) ? 1.0f : noise.unit();
  const bool accumulate = noise.below(2);
  const int64_t step = noise.below(50);
  const Key common = key_of(noise);
  std::vector<std::vector<uint8_t>> payloads;
  std::vector<std::unique_ptr<Buffer>> sent;
  cuda::Sources sources{};
  Buffer sum(4 * bucket.numel, 4 * noise.below(4), 0), known(4 * bucket.numel, 0, 0);
  std::vector<float> before = values(NORMAL, bucket.numel, noise);
  if (kind == HUGE_VALUES && noise.below(2))  // so that sums become infinite, and none is NaN
    for (float& x : before) x = x < 0.0f ? -0x1.fffffep127f : 0x1.fffffep127f;
  if (bucket.numel) {
    std::memcpy(sum.data(), before.data(), 4 * bucket.numel);
    std::memcpy(known.data(), before.data(), 4 * bucket.numel);
  }
  bool overflow = false;
  for (int sender = 0; sender < senders; ++sender) {
    Key key = common, counted = common;
    key.sender_phase = counted.sender_phase = static_cast<uint32_t>(sender) << 8 | 16;
    counted.step += static_cast<uint32_t>(step);
    std::vector<float> x = values(kind, bucket.numel, noise);
    const int64_t width = input == cuda::FLOAT32 ? 4 : 2;
    Buffer data(width * bucket.numel, width * noise.below(5), 0);
    if (input == cuda::FLOAT32) {
      if (bucket.numel) std::memcpy(data.data(), x.data(), 4 * bucket.numel);
    } else {
      const std::vector<uint16_t> halves = narrowed(x, input);
      if (bucket.numel) std::memcpy(data.data(), halves.data(), 2 * bucket.numel);
    }
    sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(17), 0xCD));
    Buffer& payload = *sent.back();
    require(
        cuda::encode(bucket.job(key, &step), bucket.families, {data.data(), input}, gain, payload.data(), QUEUE) == 0,
        what + ": launch");
    std::vector<uint8_t> expected(bucket.nbytes);
    bucket.each(counted, [&](const Payload& p, int64_t first, int64_t byte) {
      encode(p, x.data() + first, gain, expected.data() + byte, Isa::PLAIN);
      decode(p, expected.data() + byte, known.floats() + first, accumulate || sender > 0, gain, sender ? 1.0f : beta,
             Isa::PLAIN);
    });
    payload.check_guards(what);
    same(payload.data(), expected.data(), bucket.nbytes, what + ", payload");
    sources.payload[sender] = payload.data();
    sources.sender_phase[sender] = key.sender_phase;
  }
  sources.count = senders;
  sources.position = static_cast<int32_t>(noise.below(9));
  cuda::Report report{0, 0};
  require(cuda::decode(bucket.job(common, &step), bucket.families, sources, sum.floats(), {accumulate, gain, beta},
                       &report, QUEUE) == 0,
          what + ": launch");
  sum.check_guards(what);
  same(sum.floats(), known.floats(), bucket.numel, what + ", sum");
  for (int64_t i = 0; i < bucket.numel; ++i) overflow = overflow || !(bits_of(known.floats()[i]) << 1 < 0xFF000000u);
  require(report.invalid == 0, what + ": a payload of its own is called invalid");
  require((report.non_finite != 0) == overflow, what + ": finiteness");
}

void single_layers(Run& run) {
  const int32_t rates[] = {10000,   333333,  999999,  1000000, 1500000, 2000000, 2718281,
                           3000000, 4000000, 5000000, 6000000, 7000000, 8000000};
  const int64_t sizes[] = {1, 31, 127, 128, 500, 512, 4095, 4096, 4097, 8192 + 640, 3 * 4096 - 5};
  const Codec families[] = {
      {UNIFORM, 0, false}, {LLOYD, 0, false}, {HADAMARD_LLOYD, 0, false}, {HADAMARD_LLOYD, 0, true}};
  for (Codec codec : families)
    for (int32_t rate : rates)
      for (int64_t n : sizes)
        for (int kind = 0; kind < KINDS; ++kind) {
          codec.rate = rate;
          const std::string what = "family " + std::to_string(codec.family) + (codec.centroid ? " centroid" : "") +
                                   " rate " + std::to_string(rate) + " n " + std::to_string(n) + " " + KIND_NAMES[kind];
          if (!run.next()) continue;
          Noise noise{run.seed + static_cast<uint64_t>(run.number)};
          Bucket bucket;
          bucket.add(codec, noise.below(3), BLOCK * noise.below(1000), n);
          check(bucket, static_cast<Kind>(kind), static_cast<cuda::Input>(noise.below(3)),
                1 + static_cast<int>(noise.below(3)), what, noise);
        }
}

void plain_layers(Run& run) {
  for (int family : {RAW, CAST_FP16, CAST_BF16})
    for (int64_t n : {1, 31, 4096, 4097, 10000})
      for (int kind = 0; kind < KINDS; ++kind) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        Bucket bucket;
        bucket.add({family, 0, false}, 0, BLOCK * noise.below(1000), n);
        check(bucket, static_cast<Kind>(kind), cuda::FLOAT32, 2, "family " + std::to_string(family), noise);
      }
}

void tables(Run& run) {
  for (int table = 0; table < 60; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    const int count = 1 + static_cast<int>(noise.below(6));
    for (int i = 0; i < count; ++i) {
      const int32_t family = table % 3 == 0   ? static_cast<int32_t>(noise.below(6))
                             : table % 3 == 1 ? (noise.below(2) ? HADAMARD_LLOYD : RAW)
                                              : (noise.below(3) ? UNIFORM : RAW);
      const int32_t rate = noise.below(4) ? static_cast<int32_t>(RATE_ONE * (1 + noise.below(8)))
                                          : static_cast<int32_t>(1 + noise.below(8 * RATE_ONE));
      bucket.add({family, rate, family == HADAMARD_LLOYD && noise.below(2)}, 65536 * (i + 1), BLOCK * noise.below(9),
                 1 + noise.below(noise.below(2) ? 3 * BLOCK : 300));
    }
    check(bucket, static_cast<Kind>(noise.below(KINDS)), cuda::FLOAT32, 1 + static_cast<int>(noise.below(4)),
          "table " + std::to_string(table), noise);
  }
}

// More blocks of work than blocks of threads: the grid has BLOCKS_PER_PROCESSOR of them.
void persistent(Run& run) {
  for (int attempt = 0; attempt < 24; ++attempt) {
    if (!run.next() && attempt % 8 != 2) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const Kind kinds[] = {NORMAL, MIXED, HEAVY, NOT_FINITE};
    Bucket bucket;
    const int64_t blocks = attempt % 4 == 3 ? 5 : 20 + noise.below(21);
    int64_t tensor = 0;
    while (bucket.units < blocks) {
      const int32_t family = attempt % 4 == 0   ? UNIFORM
                             : attempt % 4 == 1 ? HADAMARD_LLOYD
                                                : static_cast<int32_t>(noise.below(6));
      const int32_t rate = noise.below(2) ? static_cast<int32_t>(RATE_ONE * (1 + noise.below(8)))
                                          : static_cast<int32_t>(1 + noise.below(8 * RATE_ONE));
      const int64_t whole = attempt % 4 < 2 ? blocks : 1 + noise.below(9);
      if (attempt % 8 ==
          2) {  // ways that share no barrier, one after the other: a grid of eight, eight of each; in every run
        const bool second = bucket.units / 8 % 2 == 1;
        bucket.add({attempt % 16 == 2 || !second ? HADAMARD_LLOYD : UNIFORM, 2 * RATE_ONE, false}, tensor += 65536, 0,
                   8 * BLOCK);
        bucket.add({attempt % 16 == 2 ? LLOYD : UNIFORM, RATE_ONE / 3, false}, tensor += 65536, 0, 8 * BLOCK);
        continue;
      }
      bucket.add({family, rate, family == HADAMARD_LLOYD && noise.below(2)}, tensor += 65536, BLOCK * noise.below(9),
                 BLOCK * whole - noise.below(2) * noise.below(BLOCK));
    }
    check(bucket, kinds[noise.below(4)], cuda::FLOAT32, 1 + static_cast<int>(noise.below(2)),
          "persistent " + std::to_string(attempt), noise);
  }
}

// Decodes bytes of several senders together: the same values as the CPU path gives, and the same verdict.
void check_any_bytes(const Bucket& bucket, const Key& common, std::vector<std::unique_ptr<Buffer>>& sent,
                     const std::string& what) {
  Buffer out(4 * bucket.numel, 0, 0);
  std::vector<float> known(bucket.numel);
  cuda::Sources sources{};
  sources.count = static_cast<int32_t>(sent.size());
  sources.position = 6;
  int32_t invalid = 0;
  for (size_t sender = 0; sender < sent.size(); ++sender) {
    Key key = common;
    key.sender_phase = static_cast<uint32_t>(sender) << 8 | 16;
    sources.payload[sender] = sent[sender]->data();
    sources.sender_phase[sender] = key.sender_phase;
    bucket.each(key, [&](const Payload& p, int64_t first, int64_t byte) {
      if (inspect(p, sent[sender]->data() + byte).invalid_block >= 0)
        invalid = sources.position + static_cast<int32_t>(sender) + 1;
      else
        decode(p, sent[sender]->data() + byte, known.data() + first, sender > 0, 1.5f, 1.0f, Isa::PLAIN);
    });
  }
  cuda::Report report{0, 0};
  cuda::decode(bucket.job(common, nullptr), bucket.families, sources, out.floats(), {false, 1.5f, 1.0f}, &report,
               QUEUE);
  out.check_guards(what);
  require(report.invalid == invalid, what + ": verdict " + std::to_string(report.invalid));
  if (!invalid) same(out.floats(), known.data(), bucket.numel, what);
}

Codec any_codec(Noise& noise) {
  const int32_t family = UNIFORM + static_cast<int32_t>(noise.below(3));
  const int32_t rate =
      static_cast<int32_t>(noise.below(2) ? RATE_ONE * (1 + noise.below(8)) : 1 + noise.below(8 * RATE_ONE));
  return {family, rate, noise.below(2) == 1 && family == HADAMARD_LLOYD};
}

std::string name_of(const char* what, const Bucket& bucket) {
  const cuda::Layer& layer = bucket.layers[0];
  return what + (" family " + std::to_string(layer.family)) + " rate " + std::to_string(layer.rate) + " n " +
         std::to_string(layer.numel);
}

// Any bytes.
void hostile(Run& run) {
  for (int attempt = 0; attempt < 120; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    const Codec codec = any_codec(noise);
    const int64_t offset = BLOCK * noise.below(9), senders = 1 + noise.below(2);
    bucket.add(codec, 0, offset, 1 + noise.below(2 * BLOCK));
    std::vector<std::unique_ptr<Buffer>> sent;
    for (int64_t sender = 0; sender < senders; ++sender) {
      sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(5), 0));
      for (int64_t i = 0; i < bucket.nbytes; ++i)
        sent.back()->data()[i] = static_cast<uint8_t>(noise.below(attempt % 2 ? 256 : 3));
    }
    check_any_bytes(bucket, key_of(noise), sent, name_of("any bytes,", bucket));
  }
}

// Payloads of an encoder of which one byte is another; half of them lists of few values.
void damaged(Run& run) {
  for (int attempt = 0; attempt < 400; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const bool lists = noise.below(2) == 1, halves = noise.below(2) == 1;
    Codec codec = any_codec(noise);
    if (lists) codec = {UNIFORM, static_cast<int32_t>(RATE_ONE * (1 + noise.below(8))), false};
    const int64_t offset = BLOCK * noise.below(9), n = noise.below(2) ? GROUP : 1 + noise.below(2 * BLOCK);
    const int64_t senders = 1 + noise.below(2);
    Bucket bucket;
    bucket.add(codec, 0, offset, n);
    const Key common = key_of(noise);
    std::vector<std::unique_ptr<Buffer>> sent;
    for (int64_t sender = 0; sender < senders; ++sender) {
      Key key = common;
      key.sender_phase = static_cast<uint32_t>(sender) << 8 | 16;
      const std::vector<float> x = values(lists ? (n < 3000 ? SPARSE : FEW) : NORMAL, n, noise);
      sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(5), 0));
      uint8_t* const bytes = sent.back()->data();
      bucket.each(key, [&](const Payload& p, int64_t, int64_t) { encode(p, x.data(), 1.0f, bytes, Isa::PLAIN); });
      // Mostly where scales and the first entries of lists are.
      uint8_t& byte = bytes[noise.below(noise.below(4) && bucket.nbytes > 26 ? 26 : bucket.nbytes)];
      byte = static_cast<uint8_t>(halves ? byte + 2 * noise.below(2) - 1 : noise.below(8) ? 0 : 0x7F << noise.below(2));
    }
    check_any_bytes(bucket, common, sent, name_of("damaged,", bucket));
  }
}

// Lists of few values, and scales, right and with each flaw that makes them invalid. All other groups are zero.
void forged(Run& run) {
  enum Flaw { NONE, REPEATED, DESCENDING, BEYOND, LAST, EMPTY, TOO_LONG, FULL, ZERO_VALUE, INFINITE, SCALE, FLAWS };
  for (int attempt = 0; attempt < 600; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const Flaw flaw = static_cast<Flaw>(attempt % FLAWS);
    const int bits = 1 + static_cast<int>(noise.below(8));
    const int64_t n = noise.below(2) ? BLOCK : GROUP * noise.below(4) + 128 + noise.below(GROUP - 128);
    const int64_t group = noise.below((n + GROUP - 1) / GROUP), start = group * (2 + 64 * bits);
    const int64_t count_of_group = group * GROUP + GROUP < n ? GROUP : n - group * GROUP;
    const int64_t nbytes = packed_nbytes(count_of_group, bits), most = nbytes / LIST_ENTRY_NBYTES;
    Bucket bucket;
    bucket.add({UNIFORM, static_cast<int32_t>(bits * RATE_ONE), false}, 0, 0, n);
    std::vector<std::unique_ptr<Buffer>> sent;
    sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(5), 0));
    uint8_t* const bytes = sent[0]->data();
    const auto put = [&](int64_t at, uint32_t half) {
      for (int i = 0; i < 2 && at + i < bucket.nbytes; ++i) bytes[at + i] = static_cast<uint8_t>(half >> (8 * i));
    };
    int64_t count = 2 + noise.below(most - 1 < 9 ? most - 1 : 9);
    if (flaw == EMPTY) count = 0;
    if (flaw == FULL) count = most;
    if (flaw == TOO_LONG) count = most + 1;
    put(start, SCALE16_LIST + static_cast<uint32_t>(count));
    const int64_t flawed = count ? noise.below(count) : 0;
    int64_t position = -1;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t at = start + 2 + LIST_ENTRY_NBYTES * e, room = count_of_group - position - (count - e);
      position += 1 + noise.below(room < 1 ? 1 : room < 40 ? room : 40);
      int64_t written = position;
      if (e && e == flawed && flaw == REPEATED) written = bytes[at - 6] | bytes[at - 5] << 8;
      if (e && e == flawed && flaw == DESCENDING) written = 0;
      if (e == count - 1 && flaw == BEYOND) written = count_of_group;
      if (e == count - 1 && flaw == LAST) written = count_of_group - 1;
      uint32_t value = bits_of(normal(noise) + 0.01f);
      if (e == flawed && flaw == ZERO_VALUE) value = noise.below(2) ? 0x80000000u : 0;
      if (e == flawed && flaw == INFINITE) value = noise.below(2) ? 0x7F800000u : 0xFFC00000u;
      put(at, static_cast<uint32_t>(written));
      put(at + 2, value);
      put(at + 4, value >> 16);
    }
    if (flaw == SCALE) put(start, SCALE16_LARGEST + static_cast<uint32_t>(noise.below(3)));
    check_any_bytes(bucket, key_of(noise), sent,
                    name_of("forged,", bucket) + " flaw " + std::to_string(static_cast<int>(flaw)));
  }
}

}  // namespace

int main(int count, char** arguments) {
  const auto number = [&](int i, int64_t otherwise) { return i < count ? std::atoll(arguments[i]) : otherwise; };
  const uint64_t seed = static_cast<uint64_t>(number(1, 1));
  const simt::Order orders[] = {simt::Order::IN_ORDER, simt::Order::REVERSED, simt::Order::RANDOM};
  simt::set_schedule({orders[number(2, 0)], static_cast<unsigned>(seed), static_cast<unsigned>(number(3, 1)),
                      static_cast<uint8_t>(seed % 2 ? 0xA5 : 0)});
  Run run{seed, number(4, 1)};
  single_layers(run);
  plain_layers(run);
  tables(run);
  Run often{seed, (run.parts + 3) / 4};  // the only cases in which blocks of threads have a second block of work
  persistent(often);
  hostile(run);
  damaged(run);
  forged(run);
  std::printf("passed\n");
}
