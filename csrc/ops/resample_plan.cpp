#include "resample_plan.h"

#include <algorithm>

#include "taps.h"

namespace animdetail::resample {
namespace {

// A signed byte from the low end of `tap`, which loses it.
uint32_t take_byte(int32_t& tap) {
  const int8_t low = static_cast<int8_t>(tap & 0xff);
  tap = (tap - low) / 256;
  return static_cast<uint8_t>(low);
}

int whole(int count, int unit) { return (count + unit - 1) / unit * unit; }

// The next multiple of 4 that is none of 8: eight lines then lie in different banks of shared memory.
int padded(int words) { return whole(words, 8) - (words % 8 != 0 && words % 8 <= 4 ? 4 : -4); }

// The most that any tile of `size` outputs needs along an axis.
struct Extent {
  Extent(const AxisTable& table, int size) {
    const Axis axis = table.axis();
    const int count = static_cast<int>(table.spans.size());
    for (int first = 0; first < count; first += size) {
      const int last = std::min(first + size, count) - 1;
      const int begin = table.spans[first].begin, end = table.spans[last].end;
      const int origin = word_of(axis, begin);
      pixels = std::max(pixels, end - begin);
      words = std::max(words, word_of(axis, end - 1) - origin + 1);
      const int begin_of_last = table.spans[last / kGroup * kGroup].begin;
      words_read = std::max(words_read, word_of(axis, begin_of_last) - origin + axis.steps * kStepWords);
    }
    lines = whole(4 * words, kGroup);
  }
  int pixels = 0, words = 0;
  int words_read = 0;  // by a pass along it, with taps of zero at the end
  int lines = 0;       // of a pass across it
};

struct Candidate {
  Plan plan;
  double cost;  // instructions of a warp, per output of the target
};

// Of a pass over `items` of 16 outputs by 16 lines, of which some warps take one more than others.
double pass_cost(const AxisTable& table, int items) {
  constexpr int kWarps = kThreads / kWarp;
  return whole(items, kWarps) * (40 + 16 * table.steps);
}

Candidate candidate(const ResampleJob& job, const AxisTable& x, const AxisTable& y, int width, int height,
                    const Extent& wide, const Extent& high) {
  const bool down = job.vertical_first;
  const int channels = static_cast<int>(job.target.channels);
  const Extent &along = down ? high : wide, &across = down ? wide : high;
  const int outputs = down ? height : width;  // of the first pass, lines of the second

  Plan plan{};
  plan.width = width;
  plan.height = height;
  plan.across = (job.target.width + x.key.lead + width - 1) / width;
  plan.down = (job.target.height + y.key.lead + height - 1) / height;
  plan.first_stride = padded(along.words_read);
  plan.second_stride = padded(std::max(across.words_read, across.lines / 4));
  plan.first_channel = across.lines * plan.first_stride;
  plan.second_channel = outputs * plan.second_stride;
  plan.second_offset = channels * plan.first_channel;
  plan.shared_bytes = 4 * (plan.second_offset + channels * plan.second_channel);
  plan.by_words = Divisor(along.words);
  plan.by_positions = Divisor(along.pixels);
  plan.by_lines = Divisor(across.pixels);

  const double load = 30.0 / kWarp * channels * across.pixels * along.words;
  const int groups = outputs / kGroup, other_groups = (down ? width : height) / kGroup;
  const double first = pass_cost(down ? y : x, groups * (across.lines / kGroup) * channels);
  const double second = pass_cost(down ? x : y, groups * other_groups) * channels;
  return {plan, (load + first + second + 1000) / (static_cast<double>(width) * height)};
}

std::vector<Candidate> candidates(const ResampleJob& job, const AxisTable& x, const AxisTable& y) {
  constexpr int kSizes = 8;
  std::vector<Extent> wide, high;
  for (int size = 1; size <= kSizes; ++size) {
    wide.emplace_back(x, size * kGroup);
    high.emplace_back(y, size * kGroup);
  }
  std::vector<Candidate> made;
  for (int column = 0; column < kSizes; ++column) {
    for (int row = 0; row < kSizes; ++row) {
      Candidate next = candidate(job, x, y, (column + 1) * kGroup, (row + 1) * kGroup, wide[column], high[row]);
      if (next.plan.by_words.divisor <= kThreads) made.push_back(next);
    }
  }
  return made;
}

}  // namespace

AxisTable::AxisTable(const AxisKey& key) : key(key) {
  const int count = key.lead + key.count;
  spans.resize(count);
  if (key.in_size == key.out_size) {
    longest = 1;
    taps.resize(count);
    for (int i = key.lead; i < count; ++i) {
      const int pixel = key.first + i - key.lead;
      spans[i] = {pixel, pixel + 1};
      taps[i] = int32_t{1} << kFractionBits;
    }
  } else {
    const Taps exact(key.in_size, key.out_size, key.first, key.count);
    longest = exact.longest;
    taps.resize(static_cast<size_t>(count) * longest);
    for (int i = key.lead; i < count; ++i) {
      const Taps::Span& span = exact.spans[i - key.lead];
      spans[i] = {span.begin, span.end};
      std::copy_n(exact.values.begin() + span.offset, span.end - span.begin,
                  taps.begin() + static_cast<ptrdiff_t>(i) * longest);
    }
  }
  std::fill_n(spans.begin(), key.lead, spans[key.lead]);  // with taps of zero
  const Axis axis = this->axis();
  for (int first = 0; first < count; first += kGroup) {
    const int end = spans[std::min(first + kGroup, count) - 1].end;
    const int words = word_of(axis, end - 1) - word_of(axis, spans[first].begin) + 1;
    steps = std::max(steps, whole(words, kStepWords) / kStepWords);
  }
}

std::vector<TapBlock> AxisTable::blocks() const {
  const int count = static_cast<int>(spans.size());
  const Axis axis = this->axis();
  std::vector<TapBlock> made(static_cast<size_t>(whole(count, kGroup) / kGroup) * steps);
  for (int i = 0; i < count; ++i) {
    const int group = i / kGroup, slot = slot_of(i % kGroup);
    const int origin = 4 * word_of(axis, spans[group * kGroup].begin) - key.phase;
    for (int x = spans[i].begin; x < spans[i].end; ++x) {
      const int position = x - origin, word = position / 4 % kStepWords;
      TapBlock& block = made[static_cast<size_t>(group) * steps + position / 4 / kStepWords];
      int32_t tap = taps[static_cast<size_t>(i) * longest + x - spans[i].begin];
      for (auto& part : block.parts) {
        part[slot % 8 * 4 + word % 4][slot / 8 + word / 4 * 2] |= take_byte(tap) << position % 4 * 8;
      }
    }
  }
  return made;
}

Layout layout_of(const Pixels& pixels, bool vertical_first) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pixels.data), bytes = bytes_of(pixels.element);
  const bool even_rows = pixels.row_stride % 4 == 0 && pixels.frame_stride % 4 == 0 && address % bytes == 0;
  if (vertical_first || !even_rows) return {Access::Strided, 0};
  const int past = static_cast<int>(address / bytes % 4);
  if (pixels.pixel_stride == 1 && (pixels.channels == 1 || pixels.channel_stride % 4 == 0)) {
    return {Access::Planar, past};
  }
  // Pixel x of RGB begins 3 x elements on, which is a multiple of 4 where x + phase is.
  if (pixels.channels == 3 && pixels.channel_stride == 1 && pixels.pixel_stride == 3) {
    return {Access::Packed, (4 - past) % 4};
  }
  return {Access::Strided, 0};
}

std::optional<Plan> plan_tiles(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Access reading,
                               Access writing, const Card& card) {
  const std::vector<Candidate> all = candidates(job, x, y);
  const auto best_of = [&](int bytes, int blocks) {
    std::optional<Plan> best;
    double least = 0;
    for (const Candidate& one : all) {
      // The last blocks run while others have nothing left to do.
      const double tiles = static_cast<double>(one.plan.across) * one.plan.down * job.target.frames;
      const double cost = one.cost * (1 + 0.5 * blocks * card.processors / tiles);
      if (one.plan.shared_bytes > bytes || (best && cost >= least)) continue;
      best = one.plan;
      least = cost;
    }
    return best;
  };
  std::optional<Plan> plan;
  for (int blocks = kBlocks; blocks > 0 && !plan; --blocks) {
    plan = best_of(std::min(kSharedBytes, card.shared_bytes / blocks - card.reserved_bytes), blocks);
  }
  if (!plan) plan = best_of(card.most_bytes, 1);
  if (!plan) return std::nullopt;
  plan->reading = reading;
  plan->writing = writing;
  return plan;
}

}  // namespace animdetail::resample
