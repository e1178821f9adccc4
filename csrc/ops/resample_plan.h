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

// Of a multiprocessor: the blocks that registers are left for, so that some sum while others load, and the most that
// each of them shares where that is enough: what is best on an H100. Build options, to measure others.
#if !defined(ANIMDETAIL_BLOCKS)
#define ANIMDETAIL_BLOCKS 4
#endif
#if !defined(ANIMDETAIL_TILE_KIB)
#define ANIMDETAIL_TILE_KIB 55
#endif
inline constexpr int kBlocks = ANIMDETAIL_BLOCKS, kSharedBytes = ANIMDETAIL_TILE_KIB << 10;

// What CUDA says of shared memory: a multiprocessor's, what each of its blocks costs beside its own, and the most that
// one block may have.
struct Card {
  int processors, shared_bytes, reserved_bytes, most_bytes;
};

// Tiles of which kBlocks are at work in a multiprocessor, or fewer where those would be too small. No plan where not
// even one fits.
std::optional<Plan> plan_tiles(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Access reading,
                               Access writing, const Card& card);

}  // namespace animdetail::resample
