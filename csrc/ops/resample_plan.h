#pragma once

// What is decided on the host before a resampling is launched: the tables of taps and the size of the tiles.

#include <optional>
#include <vector>

#include "resample_tile.h"

namespace animdetail::resample {

// One axis of a job: outputs [first, first + count) of out_size, from in_size pixels, after `lead` that are none.
struct AxisKey {
  int in_size, out_size, first, count, phase, lead;
};

// What an Axis points to, on the host. An axis that keeps its size has one tap of 1: the same bits as no pass.
struct AxisTable {
  explicit AxisTable(const AxisKey& key);

  std::vector<TapBlock> blocks() const;  // of the same taps

  Axis axis() const { return {spans.data(), nullptr, taps.data(), steps, longest, key.phase, key.lead}; }

  AxisKey key;
  std::vector<Span> spans;    // of each output
  std::vector<int32_t> taps;  // `longest` of each output
  int longest = 0, steps = 0;
};

// Reading or writing 16 bytes at a time wants fours of pixels that begin where memory is aligned: at those that are
// multiples of four once `phase` is added.
struct Layout {
  Access access;
  int phase;
};
Layout layout_of(const Pixels& pixels, bool vertical_first);

// What tiles are made for: the most that a block may share, and how many blocks run at once.
struct Room {
  int shared_bytes, blocks;
};

// No plan where not even small tiles fit.
std::optional<Plan> plan_tiles(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Access reading,
                               Access writing, Room room);

}  // namespace animdetail::resample
