#pragma once

// What is decided on the host before a resampling is launched: the tables of taps and the size of the tiles.

#include <optional>
#include <vector>

#include "resample_tile.h"

namespace animdetail::resample {

// One axis of a job: outputs [first, first + count) of out_size, from in_size pixels.
struct AxisKey {
  int in_size, out_size, first, count, phase;
};

// The tables that an Axis points to, on the host. An axis that keeps its size has one tap of 1: the same bits as no
// pass.
struct AxisTable {
  explicit AxisTable(const AxisKey& key);

  Axis axis(const void* spans_in_place, const void* taps_in_place) const {
    return {static_cast<const Span*>(spans_in_place), static_cast<const TapWord*>(taps_in_place), words, key.phase};
  }

  AxisKey key;
  std::vector<Span> spans;
  std::vector<TapWord> taps;
  int words = 0;  // of taps of an output
};

// Reading 16 bytes at a time wants words that begin where memory is aligned.
struct Layout {
  Reading reading;
  int phase;
};
Layout layout_of(const Pixels& source, bool vertical_first);

// No plan where not even small tiles fit into `shared_bytes`.
std::optional<Plan> plan_tiles(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Reading reading,
                               int shared_bytes);

}  // namespace animdetail::resample
