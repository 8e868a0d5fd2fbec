// Rate control of a segment with a trellis: the step, the indices and the tables that fill the budget.
#pragma once
#include <memory>
#include <vector>

#include "ecsq_classes.h"
#include "ectcq.h"

namespace commpress {

// Of a class in the trellis `lengths`, `model`, `counts`, `tables`; of another one the rest.
struct EctcqClass {
  bool known = false;                 // whether there are lengths
  int64_t lengths[2][ECTCQ_INDICES];  // that the search reckons with, in 2^-16 bit
  int64_t first[2][ECTCQ_INDICES];    // those that a pass begins with
  int64_t counted = 0;                // blocks in `counts`
  int64_t seen = 0, cost = 0;         // blocks of the last model, and what they took in 2^-16 bit
  EctcqModel model;
  EctcqCounts counts;
  EctcqTables tables;
  entropy::Model uniform;
  EcsqQuantiser quantiser;
};

class EctcqSearch final {
 public:
  // `room`: bytes for tables, raw bits, escapes and stream.
  EctcqSearch(const EcsqClasses& source, int64_t room, Isa isa);

  // Finds the step and all indices. False if no step fits, or much room is left.
  bool run();
  // Makes room for about so many bytes more.
  bool shrink(int64_t nbytes);

  int64_t step() const { return j_; }
  float inverse() const;
  bool in_trellis(int kind) const { return source_.relative(kind, j_) <= ECTCQ_MOST_LEVEL; }
  const EctcqClass& of(int kind) const { return classes_[kind]; }
  int64_t trellis_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  // The block at that place among those of the trellis.
  EctcqBlock block_at(int64_t place);

 private:
  const float* values_of(int64_t block) const;
  int64_t predicted(int64_t j) const;
  int64_t step_for(int64_t target, int64_t cost, int64_t reference) const;
  void set_step(int64_t stride);
  void begin(EctcqClass& c, int64_t level) const;
  void prepare(EctcqClass& c) const;
  int64_t spans() const { return static_cast<int64_t>(spans_.size()) - 1; }
  void search(int64_t first, int64_t last);
  void count(int64_t place, bool away);
  void fit(int learning);
  int64_t bytes() const;
  void sample();
  bool pass();

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
  int64_t price_ = 0;           // of a bit, in 1/1024 of `worth_`
  alignas(64) float tail_[ECSQ_BLOCK] = {0};
};

}  // namespace commpress
