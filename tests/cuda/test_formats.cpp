// The kernels of number formats against the CPU path, to the bit: schemes, widths, blocks, sizes, magnitudes, dtypes,
// alignments, several senders, tables of layers; and payloads that no encoder writes.
//   test_formats [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all.
#include <memory>

#include "formats_kernels.h"
#include "kernel_inputs.h"
#include "simt/engine.h"

namespace {

constexpr cuda::Queue QUEUE{0, 1, nullptr};

struct Named {
  const char* name;
  Format format;
};
// scheme, exponent, mantissa, levels, block, stochastic, euclidean, trits, may_saturate
const Named FORMATS[] = {
    {"mxfp8", {FLOAT, 4, 3, 0, 32, true, false, false, false}},
    {"mxfp8 nearest", {FLOAT, 4, 3, 0, 32, false, false, false, true}},
    {"mxfp8 e5m2", {FLOAT, 5, 2, 0, 32, true, false, false, false}},
    {"mxfp6", {FLOAT, 2, 3, 0, 32, true, false, false, false}},
    {"mxfp6 e3m2 nearest", {FLOAT, 3, 2, 0, 32, false, false, false, true}},
    {"mxfp4", {FLOAT, 2, 1, 0, 32, true, false, false, false}},
    {"mxfp4 nearest", {FLOAT, 2, 1, 0, 32, false, false, false, true}},
    {"nvfp4", {NVFP4, 2, 1, 0, 16, true, false, false, false}},
    {"nvfp4 nearest", {NVFP4, 2, 1, 0, 16, false, false, false, false}},
    {"float:e4m3", {FLOAT, 4, 3, 0, 512, true, false, false, false}},
    {"float:e1m2, block 16", {FLOAT, 1, 2, 0, 16, true, false, false, false}},
    {"float:e3m4, block 64", {FLOAT, 3, 4, 0, 64, true, false, false, false}},
    {"float:e5m10, block 4096", {FLOAT, 5, 10, 0, 4096, true, false, false, false}},
    {"float:e6m6, block 128 nearest", {FLOAT, 6, 6, 0, 128, false, false, false, false}},
    {"float:e7m12, block 256", {FLOAT, 7, 12, 0, 256, true, false, false, false}},
    {"float:e7m23, block 1024", {FLOAT, 7, 23, 0, 1024, true, false, false, false}},
    {"float:e4m3 without scale", {FLOAT, 4, 3, 0, 0, true, false, false, false}},
    {"float:e5m2 without scale", {FLOAT, 5, 2, 0, 0, false, false, false, false}},
    {"float:e5m0 without scale", {FLOAT, 5, 0, 0, 0, true, false, false, false}},
    {"float:e8m7", {FLOAT, 8, 7, 0, 0, true, false, false, false}},
    {"float:e8m23", {FLOAT, 8, 23, 0, 0, true, false, false, false}},
    {"natural", {FLOAT, 7, 0, 0, 512, true, false, false, false}},
    {"natural without scale", {FLOAT, 8, 0, 0, 0, true, false, false, false}},
    {"int8", {LEVELS, 0, 0, 127, 512, true, false, false, false}},
    {"int8, block 16 nearest", {LEVELS, 0, 0, 127, 16, false, false, false, false}},
    {"qsgd:1", {LEVELS, 0, 0, 1, 512, true, true, false, false}},
    {"qsgd:7, block 32", {LEVELS, 0, 0, 7, 32, true, true, false, false}},
    {"qsgd:1000, block 2048", {LEVELS, 0, 0, 1000, 2048, true, true, false, false}},
    {"qsgd:32767, block 4096 nearest", {LEVELS, 0, 0, 32767, 4096, false, true, false, false}},
    {"qsgd:3, norm linf", {LEVELS, 0, 0, 3, 512, true, false, false, false}},
    {"ternary", {LEVELS, 0, 0, 1, 512, true, false, true, false}},
    {"ternary, block 4096 nearest", {LEVELS, 0, 0, 1, 4096, false, false, true, false}},
    {"sign", {SIGN, 0, 0, 0, 4096, false, false, false, false}},
    {"sign, block 16", {SIGN, 0, 0, 0, 16, false, false, false, false}},
    {"sign, block 1024", {SIGN, 0, 0, 0, 1024, false, false, false, false}},
    {"sign without scale", {SIGN, 0, 0, 0, 0, false, false, false, false}},
    {"onebit", {TWO_MEANS, 0, 0, 0, 4096, false, false, false, false}},
    {"onebit, block 128", {TWO_MEANS, 0, 0, 0, 128, false, false, false, false}},
};
constexpr int64_t MOST_FORMATS = sizeof FORMATS / sizeof *FORMATS;

struct Bucket {
  std::vector<cuda::Layer> layers;
  std::vector<int32_t> layer_of_unit;
  int64_t numel = 0, nbytes = 0, units = 0;

  void add(const Format& format, int64_t tensor, int64_t offset, int64_t n) {
    require(packed_format(unpacked_format(packed_format(format))) == packed_format(format), "a format as a number");
    layers.push_back({cuda::FORMAT, packed_format(format), 0, tensor, offset, n, numel, nbytes, units, 0,
                      payload_nbytes(format, BLOCK)});
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    layer_of_unit.insert(layer_of_unit.end(), blocks, static_cast<int32_t>(layers.size() - 1));
    numel += n;
    nbytes += payload_nbytes(format, n);
    units += blocks;
  }
  cuda::Job job(const Key& key, const int64_t* step) const {
    if (layers.size() == 1) return {nullptr, nullptr, layers[0], units, key, step};
    return {layers.data(), layer_of_unit.data(), {}, units, key, step};
  }
  // fn(format, key, layer) for each layer.
  template <class F>
  void each(Key key, F&& fn) const {
    const uint32_t tensor = key.tensor;
    for (const cuda::Layer& layer : layers) {
      key.tensor = tensor + static_cast<uint32_t>(layer.tensor);
      fn(unpacked_format(static_cast<int32_t>(layer.rate)), key, layer);
    }
  }
};

// Values at the edges of a format: denormals among others, ties, huge ones, signed zeros, single values that are not
// finite.
void spoil(std::vector<float>& x, Noise& noise) {
  if (x.empty() || noise.below(2)) return;
  for (int i = 0; i < 12; ++i) {
    const uint32_t edges[] = {0x80000000u, 0x00000001u, 0x80400000u, 0x7F7FFFFFu,
                              0x3F800000u, 0x3FC00000u, 0xBF900000u};
    x[noise.below(static_cast<int64_t>(x.size()))] = float_of(edges[noise.below(7)]);
  }
}

// Encodes for several senders, decodes their sum, and compares all of it with the CPU path.
void check(const Bucket& bucket, Kind kind, cuda::Input input, int senders, const std::string& what, Noise& noise) {
  const float gains[] = {1.0f, 0.25f + noise.unit(), 0x1p-110f, 0x1p105f, 0x1p-148f};
  const float gain = gains[noise.below(8) ? noise.below(2) : noise.below(5)];
  const float beta = noise.below(2) ? 1.0f : noise.unit();
  const bool accumulate = noise.below(2);
  const int64_t step = noise.below(50);
  const Key common = key_of(noise);
  std::vector<std::unique_ptr<Buffer>> sent;
  cuda::Sources sources{};
  Buffer sum(4 * bucket.numel, 4 * noise.below(4), 0), known(4 * bucket.numel, 0, 0);
  const std::vector<float> before = values(NORMAL, bucket.numel, noise);
  if (bucket.numel) {
    std::memcpy(sum.data(), before.data(), 4 * bucket.numel);
    std::memcpy(known.data(), before.data(), 4 * bucket.numel);
  }
  for (int sender = 0; sender < senders; ++sender) {
    Key key = common, counted = common;
    key.sender_phase = counted.sender_phase = static_cast<uint32_t>(sender) << 8 | 16;
    counted.step += static_cast<uint32_t>(step);
    std::vector<float> x = values(kind, bucket.numel, noise);
    spoil(x, noise);
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
    require(cuda::encode(bucket.job(key, &step), cuda::family_bit(cuda::FORMAT), {data.data(), input}, gain,
                         payload.data(), QUEUE) == 0,
            what + ": launch");
    std::vector<uint8_t> expected(bucket.nbytes);
    bucket.each(counted, [&](const Format& f, const Key& own, const cuda::Layer& layer) {
      encode(f, own, layer.offset, x.data() + layer.first, layer.numel, gain, expected.data() + layer.byte, Isa::PLAIN);
      decode(f, expected.data() + layer.byte, known.floats() + layer.first, layer.numel, accumulate || sender > 0, gain,
             sender ? 1.0f : beta, Isa::PLAIN);
    });
    payload.check_guards(what);
    same(payload.data(), expected.data(), bucket.nbytes, what + ", payload");
    sources.payload[sender] = payload.data();
    sources.sender_phase[sender] = key.sender_phase;
  }
  sources.count = senders;
  sources.position = static_cast<int32_t>(noise.below(9));
  cuda::Report report{0, 0};
  require(cuda::decode(bucket.job(common, &step), cuda::family_bit(cuda::FORMAT), sources, sum.floats(),
                       {accumulate, gain, beta}, &report, QUEUE) == 0,
          what + ": launch");
  sum.check_guards(what);
  same(sum.floats(), known.floats(), bucket.numel, what + ", sum");
  bool overflow = false;
  for (int64_t i = 0; i < bucket.numel; ++i) overflow = overflow || !(bits_of(known.floats()[i]) << 1 < 0xFF000000u);
  require(report.invalid == 0, what + ": a payload of its own is called invalid");
  require((report.non_finite != 0) == overflow, what + ": finiteness");
}

void single_layers(Run& run) {
  const int64_t sizes[] = {1, 31, 500, 512, 4095, 4096, 4097, 8192 + 640};
  for (const Named& named : FORMATS)
    for (int64_t n : sizes)
      for (int kind = 0; kind < KINDS; ++kind) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        Bucket bucket;
        bucket.add(named.format, noise.below(3), BLOCK * noise.below(1000), n);
        check(bucket, static_cast<Kind>(kind), static_cast<cuda::Input>(noise.below(3)),
              1 + static_cast<int>(noise.below(noise.below(8) ? 3 : 16)),
              named.name + (" n " + std::to_string(n)) + " " + KIND_NAMES[kind], noise);
      }
}

// Every format's whole block of ordinary values, whatever else is left out.
void whole_blocks(Run& run) {
  for (const Named& named : FORMATS) {
    Noise noise{run.seed * 977 + static_cast<uint64_t>(++run.number)};
    Bucket bucket;
    bucket.add(named.format, 0, BLOCK * noise.below(1000), BLOCK);
    check(bucket, noise.below(2) ? HEAVY : NORMAL, cuda::FLOAT32, 1, named.name + std::string(" whole block"), noise);
  }
}

// Layers of several formats, more blocks of work than blocks of threads, one format's ways after another's.
void tables(Run& run) {
  for (int table = 0; table < 40; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    const int64_t blocks = table % 2 ? 3 : 20 + noise.below(12);
    while (bucket.units < blocks)
      bucket.add(FORMATS[noise.below(MOST_FORMATS)].format, 65536 * (bucket.units + 1), BLOCK * noise.below(9),
                 1 + noise.below(noise.below(2) ? 3 * BLOCK : 300));
    const Kind kinds[] = {NORMAL, MIXED, HEAVY, NOT_FINITE};
    check(bucket, kinds[noise.below(4)], cuda::FLOAT32, 1 + static_cast<int>(noise.below(3)),
          "table " + std::to_string(table), noise);
  }
}

// Any bytes, and an encoder's of which one is another: the values of the CPU path, and the same verdict.
void hostile(Run& run) {
  for (int attempt = 0; attempt < 6 * MOST_FORMATS; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const Named& named = FORMATS[attempt % MOST_FORMATS];
    const int64_t n = 1 + noise.below(2 * BLOCK);
    const std::string what = named.name + std::string(", any bytes, n ") + std::to_string(n);
    Bucket bucket;
    bucket.add(named.format, 0, 0, n);
    Key key = key_of(noise);
    std::vector<std::unique_ptr<Buffer>> sent;
    std::vector<float> known(n);
    cuda::Sources sources{};
    sources.count = 1 + static_cast<int32_t>(noise.below(2));
    sources.position = 6;
    int32_t invalid = 0;
    for (int sender = 0; sender < sources.count; ++sender) {
      sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(5), 0));
      uint8_t* const bytes = sent.back()->data();
      if (noise.below(2)) {
        for (int64_t i = 0; i < bucket.nbytes; ++i)
          bytes[i] = static_cast<uint8_t>(noise.below(noise.below(2) ? 256 : 3));
      } else {
        const std::vector<float> x = values(NORMAL, n, noise);
        encode(named.format, key, 0, x.data(), n, 1.0f, bytes, Isa::PLAIN);
        const int64_t scales = scales_nbytes(named.format, n < BLOCK ? n : BLOCK);
        if (named.format.scheme == NVFP4 && noise.below(2))
          bytes[3] = 0x7B;  // an outer scale that is too large, and nothing else
        else
          bytes[noise.below(scales && noise.below(4) ? scales : bucket.nbytes)] =
              static_cast<uint8_t>(noise.below(2) ? noise.below(256) : 0x7F << noise.below(2));
      }
      sources.payload[sender] = bytes;
      if (invalid_block(named.format, bytes, n) >= 0)
        invalid = sources.position + sender + 1;
      else
        decode(named.format, bytes, known.data(), n, sender > 0, 1.5f, 1.0f, Isa::PLAIN);
    }
    Buffer out(4 * n, 0, 0);
    cuda::Report report{0, 0};
    cuda::decode(bucket.job(key, nullptr), cuda::family_bit(cuda::FORMAT), sources, out.floats(), {false, 1.5f, 1.0f},
                 &report, QUEUE);
    out.check_guards(what);
    require(report.invalid == invalid, what + ": verdict " + std::to_string(report.invalid));
    if (!invalid) same(out.floats(), known.data(), n, what);
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
  whole_blocks(run);
  single_layers(run);
  Run often{seed, (run.parts + 3) / 4};  // the only cases in which blocks of threads have a second block of work
  tables(often);
  hostile(run);
  std::printf("passed\n");
}
