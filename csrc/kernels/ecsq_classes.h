// What the encoders of a segment share: its coordinates, scaled and rotated, and the classes of its blocks.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "ecsq_format.h"
#include "ecsq_kernels.h"

namespace commpress {

class EcsqClasses final {
 public:
  EcsqClasses(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain, Isa isa);

  // Scales, rotates, classifies. False if no block has a value that is finite and not zero.
  bool prepare();

  int64_t size_of(int64_t block) const { return std::min(ECSQ_BLOCK, n_ - block * ECSQ_BLOCK); }
  const float* values_of(int64_t block) const { return x_ + block * ECSQ_BLOCK; }
  // Null if there is none. Drawn anew each time, into `w`: reading it back would take as long.
  const int32_t* dither_of(int64_t block, int32_t* w) const {
    if (!codec_.dither) return nullptr;
    kernels_.dither(key_, index_ + block * ECSQ_BLOCK, size_of(block), w);
    return w;
  }
  int64_t relative(int kind, int64_t j) const { return centre_ + kind * ECSQ_CLASS_WIDTH * 128 - j; }
  bool only_zeros() const;
  bool any_nan() const;

  const EcsqCodec& codec() const { return codec_; }
  const EcsqKernels& kernels() const { return kernels_; }
  int64_t numel() const { return n_; }
  int64_t nbytes() const { return nbytes_; }
  int64_t blocks() const { return blocks_; }
  float gain() const { return gain_; }
  // Power of two that x and gain were divided by.
  int64_t shift() const { return shift_; }
  // Of every block: a class or an entropy::Kind.
  const std::vector<int16_t>& kinds() const { return kinds_; }
  const EcsqSubstreams& substreams() const { return substreams_; }
  // Of all substreams, one after the other, and how many bytes are those of each.
  const std::vector<uint8_t>& coded_kinds() const { return coded_kinds_; }
  const std::vector<int64_t>& coded_kinds_nbytes() const { return coded_kinds_nbytes_; }
  int count() const { return static_cast<int>(present_.size()); }
  bool present(int kind) const { return present_[kind]; }
  int64_t centre() const { return centre_; }
  // Mean level of the blocks of a class that is present, in 1/2048 octave, and their number.
  int64_t level_of(int kind) const { return levels_[kind]; }
  int64_t members(int kind) const { return members_[kind]; }
  int64_t first_step() const { return first_; }
  int64_t finest_step() const { return finest_; }
  // Of a segment that is not coded with a trellis: bytes before the coded classes.
  int64_t header() const { return header_; }
  int64_t room() const { return room_; }

 private:
  uint32_t largest_finite() const;
  void own_copy();
  void gather(int64_t first, int64_t last);
  bool gather_in_one_pass();
  void rotate(int64_t at, const float* from);
  bool rotate_in_one_pass();
  void classify(const std::vector<int64_t>& levels);
  void encode_kinds();
  void find_first_step(const std::vector<int64_t>& weight, int64_t least, int64_t greatest);

  const EcsqCodec codec_;
  const Key key_;
  const int64_t index_;
  const float* x_;
  const int64_t n_;
  float gain_;
  const int64_t nbytes_;
  const int64_t blocks_;
  const EcsqSubstreams substreams_;
  const EcsqKernels& kernels_;
  std::unique_ptr<float[]> copy_;
  int64_t shift_ = 0;
  std::vector<float> sums_;
  std::vector<uint32_t> mosts_;
  std::vector<int16_t> kinds_;
  std::vector<bool> present_;
  std::vector<uint8_t> coded_kinds_;
  std::vector<int64_t> coded_kinds_nbytes_;
  std::vector<int64_t> levels_, members_;
  int64_t centre_ = 0, first_ = 0, finest_ = 0, header_ = 0, room_ = 0;
};

}  // namespace commpress
