// The streams of a segment, written from its end backwards, and what the header says of them.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "ecsq_classes.h"
#include "entropy_coders.h"

namespace commpress {

class EcsqWriter final {
 public:
  // Streams may reach down to `body`, the bytes of what is known before they are written.
  EcsqWriter(const EcsqClasses& source, int lanes, uint8_t* out, int64_t body)
      : source_(source), lanes_(lanes), out_(out), floor_(out + body), at_(out + source.nbytes()) {
    if (body > source.nbytes()) floor_ = at_;
    begin();
  }

  // All substreams, and escapes behind the body. `encode(block, states, out, escapes)` writes below `out`, where two
  // bytes for each coordinate are free and sixteen more may be spoilt. False: there is not enough room.
  template <class F>
  bool run(F&& encode) {
    const EcsqSubstreams& substreams = source_.substreams();
    stream_at_.resize(substreams.count);
    for (int64_t s = substreams.count; s-- > 0;) {
      for (int64_t b = substreams.last(s); b-- > substreams.first(s);)
        if (source_.kinds()[b] >= 0 && !block(b, encode)) return false;
      if (at_ - floor_ < 4 * lanes_) return false;
      for (int lane = lanes_; lane-- > 0;) memcpy(at_ -= 4, &states_[lane], 4);
      stream_at_[s] = at_ - out_;
      begin();
    }
    return place_escapes();
  }

  int64_t escapes() const { return static_cast<int64_t>(escapes_.size()); }
  int64_t first_stream_at() const { return stream_at_[0]; }

  // put(value, nbytes) for each substream but the first. `low_at`: where the raw bits of each block are.
  template <class F>
  void entries(const std::vector<int64_t>& low_at, F&& put) const {
    const EcsqSubstreams& substreams = source_.substreams();
    auto before = escapes_.begin();
    for (int64_t s = 1; s < substreams.count; ++s) {
      const int64_t first = substreams.first(s) * ECSQ_BLOCK;
      before = std::find_if(before, escapes_.end(), [&](const EcsqEscape& e) { return e.index >= first; });
      put(stream_at_[s], 4);
      put(before - escapes_.begin(), 4);
      put(low_at[substreams.first(s)], 4);
      put(source_.coded_kinds_nbytes()[s], 2);
    }
  }

 private:
  void begin() {
    for (uint32_t& state : states_) state = entropy::RANS_LOW;
  }

  template <class F>
  bool block(int64_t b, F&& encode) {
    // Near the end of the room a block is written apart first.
    const bool near = at_ - floor_ < 2 * ECSQ_BLOCK + 16;
    uint8_t* const from = near ? spare_ + sizeof(spare_) : at_;
    uint8_t* const to = encode(b, states_, from, escapes_);
    if (near) {
      if (at_ - floor_ < from - to) return false;
      memcpy(at_ - (from - to), to, from - to);
    }
    at_ -= from - to;
    return true;
  }

  bool place_escapes() {
    const int64_t nbytes = 4 * escapes();
    if (at_ - floor_ < nbytes) return false;
    std::sort(escapes_.begin(), escapes_.end(),
              [](const EcsqEscape& a, const EcsqEscape& b) { return a.index < b.index; });
    for (size_t i = 0; i < escapes_.size(); ++i) memcpy(floor_ + 4 * i, &escapes_[i].value, 4);
    memset(floor_ + nbytes, 0, at_ - (floor_ + nbytes));
    return true;
  }

  const EcsqClasses& source_;
  const int lanes_;
  uint8_t* const out_;
  uint8_t *floor_, *at_;
  uint32_t states_[entropy::MOST_LANES];
  uint8_t spare_[2 * ECSQ_BLOCK + 64];
  std::vector<EcsqEscape> escapes_;
  std::vector<int64_t> stream_at_;
};

}  // namespace commpress
