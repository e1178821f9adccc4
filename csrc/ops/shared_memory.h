#pragma once

// Whether two views have an element's byte in common. Ranges that cross are not enough: the alpha channel of a picture
// lies between its colours, and one half of a frame between the rows of the other.

#include <algorithm>
#include <array>
#include <cstdlib>

#include "animdetail/check.h"
#include "animdetail/ops.h"

namespace animdetail {

// Elements of `bytes` each, counts[k] of them along an axis, steps[k] bytes apart.
struct Footprint {
  const char* first;
  int64_t bytes;
  std::array<int64_t, 4> counts, steps;
};

inline Footprint footprint(const Pixels& pixels) {
  const int64_t bytes = bytes_of(pixels.element);
  return {pixels.data,
          bytes,
          {pixels.frames, pixels.height, pixels.width, pixels.channels},
          {pixels.frame_stride * bytes, pixels.row_stride * bytes, pixels.pixel_stride * bytes,
           pixels.channel_stride * bytes}};
}

// Of a mask that is as large as `pixels`.
inline Footprint footprint(const Mask& mask, const Pixels& pixels) {
  return {reinterpret_cast<const char*>(mask.data),
          sizeof(float),
          {pixels.frames, pixels.height, pixels.width, 1},
          {mask.frame_stride * 4, mask.row_stride * 4, mask.pixel_stride * 4, 0}};
}

// The distances that 0 to `most` of each step add up to.
class Distances {
 public:
  // A backward step is a forward one from the other end.
  void add(int64_t most, int64_t step) {
    if (most == 0 || step == 0) return;
    if (step < 0) start_ += most * step;
    step = std::abs(step);
    const auto end = terms_.begin() + count_;
    const auto same = std::find_if(terms_.begin(), end, [&](const Term& term) { return term.step == step; });
    if (same == end) {
      terms_[count_++] = {step, most};
    } else {
      same->most += most;
    }
  }

  bool reach(int64_t distance) {
    std::sort(terms_.begin(), terms_.begin() + count_, [](Term a, Term b) { return a.step > b.step; });
    return reach_from(0, distance - start_);
  }

 private:
  struct Term {
    int64_t step, most;
  };

  // Long steps first: where axes nest, what the shorter ones can add leaves one number of the long ones, or two.
  bool reach_from(int index, int64_t distance) {
    if (--tries_left_ < 0) return true;  // strides that do not nest: it cannot be ruled out
    int64_t rest = 0;
    for (int i = index; i < count_; ++i) rest += terms_[i].step * terms_[i].most;
    if (distance < 0 || distance > rest) return false;
    if (index == count_) return true;
    const auto [step, most] = terms_[index];
    rest -= step * most;
    const int64_t fewest = distance > rest ? (distance - rest + step - 1) / step : 0;
    for (int64_t taken = fewest; taken <= std::min(most, distance / step); ++taken) {
      if (reach_from(index + 1, distance - taken * step)) return true;
    }
    return false;
  }

  std::array<Term, 10> terms_{};
  int count_ = 0;
  int64_t start_ = 0;
  int tries_left_ = 10000;
};

inline bool share_memory(const Footprint& a, const Footprint& b) {
  Distances distances;  // from the first byte of a to that of b
  for (int axis = 0; axis < 4; ++axis) {
    if (a.counts[axis] == 0 || b.counts[axis] == 0) return false;
    distances.add(a.counts[axis] - 1, a.steps[axis]);
    distances.add(b.counts[axis] - 1, -b.steps[axis]);
  }
  distances.add(a.bytes - 1, 1);
  distances.add(b.bytes - 1, -1);
  return distances.reach(reinterpret_cast<intptr_t>(b.first) - reinterpret_cast<intptr_t>(a.first));
}

inline void check_apart(const char* op, const char* written, const Footprint& there, const char* read,
                        const Footprint& here) {
  check(!share_memory(there, here), op, ": ", read, " shares memory with ", written,
        ", so it would change while it is read. Pass a copy of ", read);
}

}  // namespace animdetail
