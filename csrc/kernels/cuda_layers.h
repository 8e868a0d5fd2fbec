// A launch works through a table of layers, each with its own codec, in blocks of up to 4096 coordinates.
#pragma once
#include "cuda_device.h"
#include "cuda_job.h"

namespace commpress {
namespace cuda {

// One block: n coordinates from `first` of the values on, `byte` bytes into the payload. `index` counts from the start
// of the layer's tensor. `bits` of every code, or 0 if they differ or there are fewer codes than coordinates.
struct Place {
  Codec codec;
  Key key;
  int64_t first, byte, index;
  int n, bits;
};

COMMPRESS_DEVICE Layer layer_of(const Job& job, int64_t unit) {
  return job.layers ? job.layers[job.layer_of_unit[unit]] : job.single;
}

// Divisions of 64-bit numbers, for rates that are not whole.
COMMPRESS_SELDOM int64_t uneven_bytes_before(Codec codec, int64_t offset, int64_t block) {
  return blocks_nbytes(codec, offset / BLOCK, block);
}

COMMPRESS_DEVICE Place place_of(const Job& job, int64_t unit) {
  Layer layer = job.single;  // a copy: a reference would put the parameters into memory
  if (job.layers) layer = job.layers[job.layer_of_unit[unit]];
  Place place;
  place.codec = {static_cast<int32_t>(layer.family), static_cast<int32_t>(layer.rate), layer.centroid != 0};
  place.key = job.key;
  place.key.tensor += static_cast<uint32_t>(layer.tensor);
  if (job.step) place.key.step += static_cast<uint32_t>(*job.step);
  const int64_t block = unit - layer.unit, start = block * BLOCK;
  place.n = static_cast<int>(layer.numel - start < BLOCK ? layer.numel - start : BLOCK);
  place.bits = static_cast<int>(layer.bits);
  place.index = layer.offset + start;
  place.first = layer.first + start;
  place.byte = layer.byte + (layer.block_nbytes ? block * layer.block_nbytes
                                                : uneven_bytes_before(place.codec, layer.offset, block));
  return place;
}

// A whole block at a bit or more has eight groups. Threads of a block of 128 share it so: sixteen have a group, each of
// them eight rows (a chunk) of four lanes (a quad).
constexpr int BLOCK_THREADS = 128;
struct Spot {
  int group, chunk, quad;
};
COMMPRESS_DEVICE Spot spot_of_thread() { return {thread() / 16, thread() / 4 % 4, thread() % 4}; }
COMMPRESS_DEVICE uint32_t lanes_of_group() { return 0xFFFFu << (thread() & 16); }

// Bits of the codes of a group of a block, and where its bytes begin; `scale_nbytes` is paid per group.
struct GroupPlace {
  int bits, byte;
};
COMMPRESS_SELDOM GroupPlace uneven_group_place(int32_t rate, int64_t index, int group, int scale_nbytes) {
  const int64_t j = index / GROUP, fraction = rate % RATE_ONE, before = mixed(j, fraction);
  const int low = static_cast<int>(rate / RATE_ONE), more = static_cast<int>(mixed(j + group, fraction) - before);
  const int most = static_cast<int>(mixed(j + group + 1, fraction) - before);
  return {low + most - more, group * (scale_nbytes + 64 * low) + 64 * more};
}
COMMPRESS_DEVICE GroupPlace group_place(const Place& at, int group, int scale_nbytes) {
  if (at.bits) return {at.bits, group * (scale_nbytes + 64 * at.bits)};
  return uneven_group_place(at.codec.rate, at.index, group, scale_nbytes);
}

}  // namespace cuda
}  // namespace commpress
