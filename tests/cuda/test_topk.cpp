// The kernels of `topk` against the CPU path, to the bit: fractions, value widths, segments, sizes, magnitudes, dtypes,
// alignments, several senders, tables of layers; and payloads that no encoder writes.
//   test_topk [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all.
#include <memory>

#include "kernel_inputs.h"
#include "simt/engine.h"
#include "sparse.h"

namespace {

constexpr cuda::Queue QUEUE{0, 1, nullptr};

SparseCodec topk(int32_t fraction, int32_t bits, int64_t block) { return {TOPK, fraction, bits, false, block}; }

int64_t nbytes_of(const SparseCodec& codec, int64_t offset, int64_t n) {
  return sparse_payload_nbytes(codec, gap_cost(codec.fraction), offset, n);
}

struct Bucket {
  std::vector<cuda::Layer> layers;
  std::vector<int32_t> layer_of_unit;
  int64_t numel = 0, nbytes = 0, units = 0;

  void add(const SparseCodec& codec, int64_t segment, int64_t n) {
    const int64_t offset = segment * codec.block, size = nbytes_of(codec, offset, n);
    layers.push_back({cuda::TOPK_SEGMENTS, cuda::packed_topk(codec.fraction, codec.bits, codec.block), 0, 0, offset, n,
                      numel, nbytes, units, 0, 1});
    const int64_t segments = (n + codec.block - 1) / codec.block;
    layer_of_unit.insert(layer_of_unit.end(), segments, static_cast<int32_t>(layers.size() - 1));
    numel += n;
    nbytes += size;
    units += segments;
  }
  cuda::Job job(const Key& key) const {
    if (layers.size() == 1) return {nullptr, nullptr, layers[0], units, key, nullptr};
    return {layers.data(), layer_of_unit.data(), {}, units, key, nullptr};
  }
  // fn(payload, layer) for each layer.
  template <class F>
  void each(const Key& key, F&& fn) const {
    for (const cuda::Layer& layer : layers)
      fn(SparsePayload{cuda::unpacked_topk(static_cast<int32_t>(layer.rate)), key, layer.offset, layer.numel}, layer);
  }
};

// Ties, denormals, huge values and signed zeros among others.
void spoil(std::vector<float>& x, Noise& noise) {
  const int64_t n = static_cast<int64_t>(x.size());
  const int64_t way = noise.below(4);
  if (way == 0)
    for (float& v : x)
      if (bits_of(v) << 1 < 0xFF000000u)
        v = static_cast<float>(static_cast<int>(v * 2.0f < 1e6f && v * 2.0f > -1e6f ? v * 2.0f : 0.0f));
  if (way == 1)
    for (int i = 0; i < 12; ++i) {
      const uint32_t edges[] = {0x80000000u, 0x00000001u, 0x80400000u, 0x7F7FFFFFu, 0x3F800000u, 0xFF7FFFFFu};
      x[noise.below(n)] = float_of(edges[noise.below(6)]);
    }
}

// Encodes for several senders, decodes their sum, and compares all of it with the CPU path.
void check(const Bucket& bucket, Kind kind, cuda::Input input, int senders, const std::string& what, Noise& noise) {
  const float gains[] = {1.0f, 0.25f + noise.unit(), 0x1p-110f, 0x1p105f, 0x1p-148f};
  const float gain = gains[noise.below(4) ? noise.below(2) : noise.below(5)];
  const float beta = noise.below(2) ? 1.0f : noise.unit();
  const bool accumulate = noise.below(2);
  const Key key = key_of(noise);
  std::vector<std::unique_ptr<Buffer>> sent;
  cuda::Sources sources{};
  Buffer sum(4 * bucket.numel, 4 * noise.below(4), 0), known(4 * bucket.numel, 0, 0);
  const std::vector<float> before = values(NORMAL, bucket.numel, noise);
  std::memcpy(sum.data(), before.data(), 4 * bucket.numel);
  std::memcpy(known.data(), before.data(), 4 * bucket.numel);
  for (int sender = 0; sender < senders; ++sender) {
    std::vector<float> x = values(kind, bucket.numel, noise);
    spoil(x, noise);
    const int64_t width = input == cuda::FLOAT32 ? 4 : 2;
    Buffer data(width * bucket.numel, width * noise.below(5), 0);
    if (input == cuda::FLOAT32) {
      std::memcpy(data.data(), x.data(), 4 * bucket.numel);
    } else {
      const std::vector<uint16_t> halves = narrowed(x, input);
      std::memcpy(data.data(), halves.data(), 2 * bucket.numel);
    }
    sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(17), 0xCD));
    Buffer& payload = *sent.back();
    require(cuda::encode(bucket.job(key), cuda::family_bit(cuda::TOPK_SEGMENTS), {data.data(), input}, gain,
                         payload.data(), QUEUE) == 0,
            what + ": launch");
    std::vector<uint8_t> expected(bucket.nbytes);
    bucket.each(key, [&](const SparsePayload& p, const cuda::Layer& layer) {
      sparse_encode(p, x.data() + layer.first, gain, expected.data() + layer.byte, Isa::PLAIN);
      sparse_decode(p, expected.data() + layer.byte, known.floats() + layer.first, accumulate || sender > 0, gain,
                    sender ? 1.0f : beta, Isa::PLAIN);
    });
    payload.check_guards(what);
    same(payload.data(), expected.data(), bucket.nbytes, what + ", payload");
    sources.payload[sender] = payload.data();
  }
  sources.count = senders;
  sources.position = static_cast<int32_t>(noise.below(9));
  cuda::Report report{0, 0};
  require(cuda::decode(bucket.job(key), cuda::family_bit(cuda::TOPK_SEGMENTS), sources, sum.floats(),
                       {accumulate, gain, beta}, &report, QUEUE) == 0,
          what + ": launch");
  sum.check_guards(what);
  same(sum.floats(), known.floats(), bucket.numel, what + ", sum");
  bool overflow = false;
  for (int64_t i = 0; i < bucket.numel; ++i) overflow = overflow || !(bits_of(known.floats()[i]) << 1 < 0xFF000000u);
  require(report.invalid == 0, what + ": a payload of its own is called invalid");
  require((report.non_finite != 0) == overflow, what + ": finiteness");
}

constexpr int32_t WIDTHS[] = {1, 2, 3, 4, 5, 6, 7, 8, 16, 32};
constexpr int32_t FRACTIONS[] = {1, 1000, 10000, 60000, 250000, 500000, 900000, 1000000};

SparseCodec any_codec(Noise& noise) {
  return topk(FRACTIONS[noise.below(8)], WIDTHS[noise.below(10)], int64_t{4096} << noise.below(3));
}

void single_layers(Run& run) {
  const int64_t sizes[] = {1, 31, 500, 4096, 4097, 8192 + 640};
  for (int32_t bits : WIDTHS)
    for (int64_t n : sizes)
      for (int kind = 0; kind < KINDS; ++kind) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        const SparseCodec codec = topk(FRACTIONS[noise.below(8)], bits, int64_t{4096} << noise.below(3));
        Bucket bucket;
        bucket.add(codec, noise.below(1000), n);
        check(bucket, static_cast<Kind>(kind), static_cast<cuda::Input>(noise.below(3)),
              1 + static_cast<int>(noise.below(3)),
              "topk of " + std::to_string(codec.fraction) + ", bits " + std::to_string(bits) + ", n " +
                  std::to_string(n) + ", " + KIND_NAMES[kind],
              noise);
      }
}

// The longest segments, whose bits fill shared memory; 2^20 - 5 coordinates only where every case is run.
void long_segments(Run& run) {
  for (int32_t fraction : {10000, 1000000}) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    bucket.add(topk(fraction, 4, SPARSE_LARGEST_BLOCK), 3, run.parts == 1 ? (int64_t{1} << 20) - 5 : 262144 + 4097);
    check(bucket, NORMAL, cuda::FLOAT32, 1, "long segments", noise);
  }
  if (run.parts > 2) return;
  Noise noise{run.seed};
  Bucket bucket;
  bucket.add(topk(10000, 4, 65536), 0, 65536 + 5);
  check(bucket, NORMAL, cuda::FLOAT32, 2, "default segments", noise);
}

// Layers of several codecs, more segments than blocks of threads, one model after another.
void tables(Run& run) {
  for (int table = 0; table < 20; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    while (bucket.units < 12) bucket.add(any_codec(noise), noise.below(9), 1 + noise.below(9000));
    const Kind kinds[] = {NORMAL, MIXED, HEAVY, NOT_FINITE};
    check(bucket, kinds[noise.below(4)], cuda::FLOAT32, 1 + static_cast<int>(noise.below(3)),
          "table " + std::to_string(table), noise);
  }
}

// Any bytes, and an encoder's of which some are others: the values of the CPU path, and the same verdict.
void hostile(Run& run) {
  for (int attempt = 0; attempt < 200; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const SparseCodec codec = any_codec(noise);
    const int64_t n = 1 + noise.below(9000);
    Bucket bucket;
    bucket.add(codec, 0, n);
    const Key key = key_of(noise);
    const SparsePayload payload{codec, key, 0, n};
    Buffer bytes(bucket.nbytes, noise.below(5), 0);
    const std::vector<float> x = values(NORMAL, n, noise);
    sparse_encode(payload, x.data(), 1.0f, bytes.data(), Isa::PLAIN);
    const int64_t from = noise.below(3) ? 8 : 0;  // behind the header most often
    const int64_t way = noise.below(3);
    for (int64_t i = from; i < bucket.nbytes; ++i)
      if (way == 0 || noise.below(way == 1 ? 50 : 1000) == 0)
        bytes.data()[i] = static_cast<uint8_t>(noise.below(2) ? 255 : noise.below(256));
    const std::string what = "any bytes, attempt " + std::to_string(attempt);
    cuda::Sources sources{};
    sources.count = 1;
    sources.position = 6;
    sources.payload[0] = bytes.data();
    std::vector<float> known(n);
    const bool valid = sparse_inspect(payload, bytes.data()) < 0;
    if (valid) sparse_decode(payload, bytes.data(), known.data(), false, 1.5f, 1.0f, Isa::PLAIN);
    Buffer out(4 * n, 0, 0xCD);
    cuda::Report report{0, 0};
    cuda::decode(bucket.job(key), cuda::family_bit(cuda::TOPK_SEGMENTS), sources, out.floats(), {false, 1.5f, 1.0f},
                 &report, QUEUE);
    out.check_guards(what);
    require(report.invalid == (valid ? 0 : 7), what + ": verdict " + std::to_string(report.invalid));
    if (valid) same(out.floats(), known.data(), n, what);
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
  long_segments(run);
  Run often{seed, (run.parts + 3) / 4};
  tables(often);
  hostile(often);
  std::printf("passed\n");
}
