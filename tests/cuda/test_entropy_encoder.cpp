// The encoder of the entropy-coded quantisers against the CPU path, to the byte: rates, trellises, sizes, substreams,
// segments, magnitudes, gains, alignments, dtypes and tables of layers.
//   test_entropy_encoder [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS [N]]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all. N: one long payload of each
// kind of so many coordinates instead.
#include <memory>

#include "entropy_encoder_emulated.h"
#include "entropy_inputs.h"
#include "entropy_tables.h"
#include "simt/engine.h"

namespace {

// Encodes with the kernel and on the CPU. What the scratch memory holds before is any bytes, and there is no more of it
// than a segment needs.
void check(const Bucket& bucket, std::vector<float> x, float gain, const std::string& what, Noise& noise,
           bool exact = false) {
  const cuda::Input input =
      exact ? cuda::FLOAT32 : static_cast<cuda::Input>(noise.below(4) < 2 ? 0 : 1 + noise.below(2));
  const bool halves = input != cuda::FLOAT32;
  const Key key = key_of(noise);
  Buffer from(bucket.numel * (halves ? 2 : 4), (halves ? 2 : 4) * noise.below(5), 0);
  if (halves)
    std::memcpy(from.data(), narrowed(x, input).data(), 2 * x.size());
  else
    std::memcpy(from.data(), x.data(), 4 * x.size());
  Buffer known(bucket.nbytes, 0, 0), made(bucket.nbytes, noise.below(17), 0xCD);
  int64_t each = 0;
  bucket.each(key, [&](const EcsqCodec& codec, const Key& own, const cuda::Layer& layer) {
    ecsq_encode(codec, own, layer.offset, x.data() + layer.first, layer.numel, gain, known.data() + layer.byte,
                Isa::PLAIN);
    each = std::max(each, cuda::EntropyScratch(codec, layer.numel).end);
  });
  const int64_t shares = std::min<int64_t>(bucket.units, 1 + noise.below(3));
  Buffer memory(4 * each * shares, 0, static_cast<uint8_t>(noise.below(256)));
  const cuda::Scratch scratch{reinterpret_cast<uint32_t*>(memory.data()), each, static_cast<int32_t>(shares)};
  require(cuda::encode(bucket.job(key), cuda::family_bit(cuda::ENTROPY), {from.data(), input}, gain, made.data(), QUEUE,
                       scratch) == 0,
          what + ": launch");
  made.check_guards(what);
  memory.check_guards(what + ", scratch");
  same(made.data(), known.data(), bucket.nbytes, what);
}

float gain_of(Noise& noise) {
  const float gains[] = {1.0f, 0.25f + noise.unit(), 0x1p-110f, 0x1p105f, 0x1p-148f, 0x1p-60f, 0x1p61f};
  return gains[noise.below(4) ? noise.below(2) : noise.below(7)];
}

std::vector<float> spoilt(Kind kind, int64_t n, int64_t way, Noise& noise) {
  std::vector<float> x = values(kind, n, noise);
  spoil(x, way, noise);
  return x;
}

void single_layers(Run& run) {
  const int32_t rates[] = {50000, 300000, 1000000, 1500000, 2000000, 3300000, 5000000, 8000000, 8388607};
  const int64_t sizes[] = {1, 31, 511, 512, 513, 4097, 10000, 20021};
  for (int64_t kind = 0; kind < 3; ++kind)
    for (int32_t rate : rates)
      for (int64_t n : sizes) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        const EcsqCodec codec = codec_of(kind, rate, noise);
        const int64_t way = noise.below(4);
        const Kind values = static_cast<Kind>(noise.below(2) ? int64_t{NORMAL} : noise.below(KINDS));
        Bucket bucket;
        bucket.add(codec, BLOCK * noise.below(3), n);
        check(bucket, spoilt(values, n, way, noise), gain_of(noise),
              std::string(KIND_NAMES[values]) + ", way " + std::to_string(way) + ", " + name_of(codec, n), noise);
      }
}

// All kinds of values at a few rates, whatever the kind of codec.
void all_kinds(Run& run) {
  for (int kind = 0; kind < KINDS; ++kind)
    for (int64_t n : {int64_t{700}, int64_t{9000}})
      for (int turn = 0; turn < 3; ++turn) {
        if (!run.next()) continue;
        Noise noise{run.seed + static_cast<uint64_t>(run.number)};
        const EcsqCodec codec = codec_of(turn, RATES[noise.below(8)], noise);
        Bucket bucket;
        bucket.add(codec, 0, n);
        check(bucket, spoilt(static_cast<Kind>(kind), n, 0, noise), gain_of(noise),
              std::string(KIND_NAMES[kind]) + ", " + name_of(codec, n), noise);
      }
}

// Of 32 lanes, several substreams, sampled searches, and on both sides of the border of segments.
void long_layers(Run& run) {
  const int64_t border = ECSQ_SEGMENT;
  struct Case {
    int64_t kind;
    int32_t rate;
    int64_t offset, n;
  };
  const Case cases[] = {{0, 4000000, 0, 70001},  {1, 5000000, 0, 66000},
                        {2, 3300000, 0, 90113},  {0, 8000000, border - 4096, 9001},
                        {2, 6000000, 0, 60000},  {1, 8000000, border - 20480, 80001},
                        {0, 2000000, 0, 140000}, {1, 1500000, 0, 133120},
                        {0, 700000, 0, 150000}};
  for (const Case& one : cases)
    for (int64_t way = 0; way < 4; way += 2) {
      if (!run.next()) continue;
      Noise noise{run.seed + static_cast<uint64_t>(run.number)};
      const EcsqCodec codec = codec_of(one.kind, one.rate, noise);
      Bucket bucket;
      bucket.add(codec, one.offset, one.n);
      check(bucket, spoilt(NORMAL, one.n, way + noise.below(2), noise), gain_of(noise), "long " + name_of(codec, one.n),
            noise);
    }
}

// Layers of several codecs, more than blocks of threads.
void tables(Run& run) {
  for (int table = 0; table < 6; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    while (bucket.units < 6)
      bucket.add(any_codec(noise), BLOCK * noise.below(9), 1 + noise.below(9000), noise.below(99));
    const Kind kinds[] = {NORMAL, MIXED, HEAVY, NOT_FINITE};
    check(bucket, spoilt(kinds[noise.below(4)], bucket.numel, noise.below(4), noise), gain_of(noise),
          "table " + std::to_string(table), noise);
  }
}

// What fills a budget to the last byte, so that coding takes more than was reckoned with: few values, or one large.
void tight(Run& run) {
  for (int attempt = 0; attempt < 12; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const int64_t n = 600 + noise.below(3000);
    std::vector<float> x(n);
    for (int64_t i = 0; i < n; ++i)
      x[i] = attempt % 3 == 0   ? (noise.below(30) ? 0.0f : std::ldexp(1.0f, static_cast<int>(noise.below(200)) - 100))
             : attempt % 3 == 1 ? (noise.below(2) ? 1.0f : -1.0f)
                                : std::ldexp(normal(noise), static_cast<int>(i / ECSQ_BLOCK % 7) * -9);
    EcsqCodec codec = codec_of(noise.below(2), RATES[noise.below(5)], noise);
    if (attempt % 2) codec.rotate = false;
    Bucket bucket;
    bucket.add(codec, 0, n);
    check(bucket, std::move(x), 1.0f, "tight " + std::to_string(attempt) + ", " + name_of(codec, n), noise);
  }
}

// Means at the edge of a level, where the last bit of a sum decides which.
void edges(Run& run) {
  for (uint32_t edge : entropy::LEVEL) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const int64_t n = 512 + noise.below(400);
    std::vector<float> x(n);
    for (int64_t i = 0; i < n; ++i) x[i] = float_of((127u << 23 | edge) + noise.below(3) - 1);
    EcsqCodec codec = codec_of(0, 2000000, noise);
    codec.rotate = false;
    Bucket bucket;
    bucket.add(codec, 0, n);
    check(bucket, std::move(x), 1.0f, "edge " + std::to_string(edge), noise, true);
  }
}

// Blocks so far above the others that they have no class of their own, and values of more steps than are sent.
void far_blocks(Run& run) {
  for (int64_t kind = 0; kind < 3; ++kind) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const int64_t n = 18000 + noise.below(5000);
    std::vector<float> x = values(NORMAL, n, noise);
    for (int64_t i = 0; i < ECSQ_BLOCK; ++i) x[1024 + i] *= 0x1p115f;
    EcsqCodec codec = codec_of(kind, 8000000, noise);
    codec.rotate = false;
    Bucket bucket;
    bucket.add(codec, 0, n);
    check(bucket, std::move(x), 1.0f, "far blocks, " + name_of(codec, n), noise, true);
  }
}

// Segments so short that values are sent as they are.
void shortest_layers(Run& run) {
  const Kind kinds[] = {NORMAL, HUGE_VALUES, NOT_FINITE, TINY};
  for (int64_t n = 1; n <= 20; ++n) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const EcsqCodec codec = any_codec(noise);
    Bucket bucket;
    bucket.add(codec, 0, n);
    std::vector<float> x = values(kinds[n % 4], n, noise);
    if (n % 4 == 2) x[noise.below(n)] = float_of(noise.below(2) ? 0xFF800000u : 0x7FC12345u);
    check(bucket, std::move(x), n % 4 == 1 ? 0x1p20f : gain_of(noise), "short " + name_of(codec, n), noise, true);
  }
}

// There is room to the last byte, and not for one more.
void rooms(Run& run) {
  for (int attempt = 0; attempt < 8; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    const uint32_t substreams = 1 + static_cast<uint32_t>(noise.below(3));
    std::vector<uint32_t> streams(substreams), escaped(substreams);
    uint32_t sum = 0;
    for (uint32_t i = 0; i < substreams; ++i) {
      streams[i] = 4 + 2 * static_cast<uint32_t>(noise.below(200));
      escaped[i] = static_cast<uint32_t>(noise.below(50));
      sum += streams[i] + 4 * escaped[i];
    }
    const uint32_t body = 100 + static_cast<uint32_t>(noise.below(50)), nbytes = body + sum;
    require(cuda::streams_fit(streams, escaped, body, nbytes), "there is room to the last byte");
    require(!cuda::streams_fit(streams, escaped, body + 1, nbytes), "there is no room for one byte more");
    require(!cuda::streams_fit(streams, escaped, nbytes + 1, nbytes), "there is no room at all");
  }
}

// Segments with a trellis: all numbers of states, rates where tables and step move each other, classes beside the
// trellis with raw bits and without, and values without an index.
void trellises(Run& run) {
  struct Case {
    int32_t rate;
    int64_t n, substream;
  };
  const Case cases[] = {{200000, 330000, 0},     {350000, 190000, ECSQ_LEAST_SUBSTREAM},
                        {600000, 130001, 0},     {749999, 90000, 0},
                        {1100000, 66000, 0},     {1500000, 50001, ECSQ_LEAST_SUBSTREAM},
                        {2000000, 70000, 0},     {2499999, 30000, 0},
                        {3000000, 21900, 0},     {4000000, 16385, 0},
                        {4500000, 40000, 16384}, {5000000, 13100, 0},
                        {6500000, 33000, 8192},  {8000000, 8200, 0},
                        {8388607, 17000, 8192},  {3300000, 80000, 8192}};
  for (const Case& one : cases)
    for (int64_t way = 0; way < 5; ++way) {
      if (!run.next()) continue;
      Noise noise{run.seed + static_cast<uint64_t>(run.number)};
      EcsqCodec codec = codec_of(2, one.rate, noise);
      codec.substream = one.substream;
      if (way == 4) codec.rotate = false;
      std::vector<float> x = spoilt(way == 4 ? HEAVY : NORMAL, one.n, way % 4, noise);
      if (one.n < 50000 && noise.below(2)) codec.states = STATES[noise.below(6)];
      Bucket bucket;
      bucket.add(codec, BLOCK * noise.below(3), one.n);
      check(bucket, std::move(x), gain_of(noise), "way " + std::to_string(way) + ", " + name_of(codec, one.n), noise);
    }
}

void long_payloads(int64_t n, uint64_t seed) {
  for (int64_t kind = 0; kind < 3; ++kind) {
    Noise noise{seed + static_cast<uint64_t>(kind)};
    EcsqCodec codec = codec_of(kind, 4000000, noise);
    codec.substream = 64 << 10;
    Bucket bucket;
    bucket.add(codec, 0, n);
    check(bucket, spoilt(NORMAL, n, 2, noise), 1.0f, "very long " + name_of(codec, n), noise);
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
  if (number(5, 0)) {
    long_payloads(number(5, 0), seed);
  } else {
    single_layers(run);
    all_kinds(run);
    long_layers(run);
    trellises(run);
    tables(run);
    tight(run);
    Run often{seed, (run.parts + 3) / 4};
    edges(often);
    far_blocks(often);
    shortest_layers(often);
    rooms(often);
  }
  std::printf("passed\n");
}
