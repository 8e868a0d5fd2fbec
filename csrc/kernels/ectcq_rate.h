// What the rate control of a segment with a trellis works on: its blocks, their indices, and the tables.
#pragma once
#include <memory>
#include <vector>

#include "ecsq_classes.h"
#include "ectcq_turns.h"

namespace commpress {

struct EctcqClass : EctcqLearner<EctcqCounts> {
  // Of one that is not in the trellis.
  entropy::Model uniform;
  EcsqQuantiser quantiser;
};

class EctcqSearch final {
 public:
  // `room`: bytes for tables, raw bits, escapes and stream.
  EctcqSearch(const EcsqClasses& source, int64_t room, Isa isa);

  // The Work of EctcqTurns.
  const EcsqClasses& source() const { return source_; }
  int64_t room() const { return room_; }
  int64_t predicted(int64_t j) const { return ectcq_predicted(source_, j); }
  int64_t step_for(int64_t target, int64_t cost, int64_t reference) const {
    return ectcq_step_for(source_, target, cost, reference);
  }
  void set_step(int64_t j, int64_t stride);
  int64_t step() const { return j_; }
  int spans() const { return static_cast<int>(spans_.size()) - 1; }
  int span_at(int i) const { return static_cast<int>(spans_[i]); }
  void prepare(int64_t price);
  int64_t price() const { return price_; }
  void search(int64_t first, int64_t last, bool again);
  void fit(int learning);
  int64_t bytes() const;
  void forget();
  void keep();
  void go_back();

  float inverse() const;
  bool in_trellis(int kind) const { return source_.relative(kind, j_) <= ECTCQ_MOST_LEVEL; }
  const EctcqClass& of(int kind) const { return classes_[kind]; }
  int64_t trellis_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  // The block at that place among those of the trellis.
  EctcqBlock block_at(int64_t place);

 private:
  const float* values_of(int64_t block) const;
  void begin(EctcqClass& c, int64_t level) const;
  void count(int64_t place, bool away);

  const EcsqClasses& source_;
  const EctcqKernels& kernels_;
  const int64_t room_, worth_;
  const int states_;
  std::vector<EctcqClass> classes_;
  std::vector<int64_t> blocks_;  // of the trellis
  std::vector<int64_t> spans_;   // places of their first blocks, and the end
  std::vector<uint8_t> cells_;
  std::unique_ptr<uint8_t[]> scratch_;
  int64_t j_ = 0, others_ = 0;  // step; bytes of the classes that are not in the trellis
  int64_t price_ = ECTCQ_PRICE;
  alignas(64) float tail_[ECSQ_BLOCK] = {0};
};

}  // namespace commpress
