// What the tests of the entropy-coded quantisers under the emulator have in common: codecs, segments and values.
#pragma once
#include <cmath>

#include "ecsq_format.h"
#include "ectcq.h"
#include "kernel_inputs.h"

namespace {

constexpr cuda::Queue QUEUE{0, 1, nullptr};

struct Bucket {
  std::vector<cuda::Layer> layers;  // one for each segment
  std::vector<int32_t> layer_of_unit;
  int64_t numel = 0, nbytes = 0, units = 0;

  void add(const EcsqCodec& codec, int64_t offset, int64_t n, int64_t tensor = 0) {
    ecsq_segments({codec, {}, offset, n}, [&](int64_t index, int64_t part, int64_t) {
      const int64_t size = ecsq_segment_nbytes(codec, part);
      layers.push_back({cuda::ENTROPY, cuda::packed_entropy(codec.rate, codec.rotate, codec.dither, codec.states),
                        codec.centroid, tensor, index, part, numel, nbytes, units, 0, codec.substream});
      const int64_t substreams = EcsqSubstreams(codec, part).count;
      layer_of_unit.insert(layer_of_unit.end(), substreams, static_cast<int32_t>(layers.size() - 1));
      numel += part;
      nbytes += size;
      units += substreams;
    });
  }
  cuda::Job job(const Key& key) const {
    if (layers.size() == 1) return {nullptr, nullptr, layers[0], units, key, nullptr};
    return {layers.data(), layer_of_unit.data(), {}, units, key, nullptr};
  }
  // fn(codec, key, layer) for each segment.
  template <class F>
  void each(Key key, F&& fn) const {
    const uint32_t tensor = key.tensor;
    for (const cuda::Layer& layer : layers) {
      key.tensor = tensor + static_cast<uint32_t>(layer.tensor);
      fn(cuda::entropy_codec_of(layer), key, layer);
    }
  }
};

// Classes far apart, blocks of zeros and of what is not finite, and values without a symbol.
void spoil(std::vector<float>& x, int64_t way, Noise& noise) {
  const int64_t n = static_cast<int64_t>(x.size());
  for (int64_t b = 0; b < n; b += ECSQ_BLOCK) {
    const int64_t end = std::min(n, b + ECSQ_BLOCK);
    const float scale = way == 1   ? std::ldexp(1.0f, static_cast<int>(noise.below(30)) - 15)
                        : way == 2 ? (noise.below(5) ? 1.0f : 300.0f)
                        : way == 3 ? (noise.below(4) ? 1.0f : 0.0f)
                                   : 1.0f;
    if (scale != 1.0f)
      for (int64_t i = b; i < end; ++i) x[i] = scale == 0.0f ? 0.0f : x[i] * scale;
    // Few steps off for most: their blocks stay in classes of the trellis.
    if (way % 2 == 0 && noise.below(2)) x[b + noise.below(end - b)] *= static_cast<float>(8 + noise.below(40));
    if (way == 2 && noise.below(3) == 0) x[b + noise.below(end - b)] = noise.below(2) ? 3e4f : -1e30f;
    if (way == 3 && noise.below(20) == 0)
      x[b + noise.below(end - b)] = float_of(noise.below(2) ? 0x7FC00000u : 0x7F800000u);
  }
}

constexpr int32_t RATES[] = {50000, 300000, 1000000, 1500000, 2000000, 3300000, 5000000, 8000000};
constexpr int STATES[] = {8, 16, 32, 64, 128, 256};

// 0 ecsq, 1 ecdq, 2 trellis; each with and without a rotation.
EcsqCodec codec_of(int64_t kind, int32_t rate, Noise& noise) {
  EcsqCodec codec{rate, noise.below(2) == 0, kind == 1, kind != 1 && noise.below(2) == 0};
  const int64_t substreams[] = {0, ECSQ_LEAST_SUBSTREAM, 20 << 10, 64 << 10};
  codec.substream = substreams[noise.below(4)];
  if (kind == 2) codec.states = STATES[noise.below(3) ? noise.below(2) : noise.below(6)];
  return codec;
}
EcsqCodec any_codec(Noise& noise) { return codec_of(noise.below(3), RATES[noise.below(8)], noise); }

std::string name_of(const EcsqCodec& codec, int64_t n) {
  return std::string(codec.rotate ? "hadamard+" : "") +
         (codec.states   ? "trellis"
          : codec.dither ? "ecdq"
                         : "ecsq") +
         " of " + std::to_string(codec.rate) + ", states " + std::to_string(codec.states) + ", substream " +
         std::to_string(codec.substream) + ", n " + std::to_string(n);
}

}  // namespace
