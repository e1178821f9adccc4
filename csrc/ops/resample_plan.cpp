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

bool aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

int odd(int count) { return count | 1; }

// The most that any tile of `size` outputs needs along an axis.
struct Extent {
  Extent(const AxisTable& table, int size) {
    const Axis axis = table.axis(nullptr, nullptr);
    const int count = static_cast<int>(table.spans.size());
    for (int first = 0; first < count; first += size) {
      const int begin = table.spans[first].begin, end = table.spans[std::min(first + size, count) - 1].end;
      pixels = std::max(pixels, end - begin);
      words = std::max(words, word_of(axis, end - 1) - word_of(axis, begin) + 1);
    }
  }
  int pixels = 0, words = 0;
};

// Instructions of a pass that gives `outputs` of `lines` lines.
double pass_cost(const AxisTable& table, int outputs, int lines, int channels) {
  const int warps = (lines + kWarp - 1) / kWarp;
  return outputs * (20 + 2 * table.words + warps * (8 + channels * (4 * table.words + 5)));
}

struct Candidate {
  Plan plan;
  double cost;  // instructions per output of the target
};

Candidate candidate(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Reading reading, int width,
                    int height) {
  const Pixels& target = job.target;
  const int channels = static_cast<int>(target.channels);
  const Extent wide(x, width), high(y, height);
  const Extent &along = job.vertical_first ? high : wide, &across = job.vertical_first ? wide : high;

  Plan plan{};
  plan.width = width;
  plan.height = height;
  plan.across = (target.width + width - 1) / width;
  plan.down = (target.height + height - 1) / height;
  plan.first_lines = across.pixels;
  plan.first_stride = odd(along.words);
  plan.second_lines = job.vertical_first ? height : width;
  plan.second_stride = odd(across.words);
  plan.interleaved = channels > 1 && target.channel_stride == 1 && target.pixel_stride == channels;
  plan.run_length = width * (plan.interleaved ? channels : 1);
  plan.run_stride = 4 * odd(plan.run_length / 4);
  const int runs = height * (plan.interleaved ? 1 : channels);
  plan.second_offset = std::max(4 * channels * plan.first_lines * plan.first_stride, runs * plan.run_stride);
  plan.shared_bytes = plan.second_offset + 4 * channels * plan.second_lines * plan.second_stride;
  plan.by_first_words = Divisor(along.words);
  plan.by_first_positions = Divisor(along.pixels);
  plan.by_first_lines = Divisor(plan.first_lines);
  plan.by_run_length = Divisor(plan.run_length);
  plan.by_run_words = Divisor(plan.run_length / 4);
  plan.reading = reading;
  plan.aligned_runs =
      aligned(target.data, 16) && target.row_stride % 4 == 0 && target.frame_stride % 4 == 0 &&
      (plan.interleaved || (target.pixel_stride == 1 && (channels == 1 || target.channel_stride % 4 == 0)));

  const bool down = job.vertical_first;
  const double load = 40.0 / kWarp * channels * across.pixels * along.words;
  const double first = pass_cost(down ? y : x, down ? height : width, across.pixels, channels);
  const double second = pass_cost(down ? x : y, down ? width : height, plan.second_lines, channels);
  const double store = 40.0 / kWarp * channels * width * height / 4;
  return {plan, (load + first + second + store + 600) / (static_cast<double>(width) * height)};
}

}  // namespace

AxisTable::AxisTable(const AxisKey& key) : key(key), spans(key.count) {
  const auto of_words = [&](int begin, int end) { return (end - 1 + key.phase) / 4 - (begin + key.phase) / 4 + 1; };
  const auto put = [&](int output, int pixel, int32_t tap) {
    const int position = pixel + key.phase - (spans[output].begin + key.phase) / 4 * 4;
    TapWord& word = taps[static_cast<size_t>(output) * words + position / 4];
    const int shift = position % 4 * 8;
    word.low |= take_byte(tap) << shift;
    word.middle |= take_byte(tap) << shift;
    word.high |= take_byte(tap) << shift;
  };
  if (key.in_size == key.out_size) {
    words = 1;
    taps.resize(key.count);
    for (int i = 0; i < key.count; ++i) {
      spans[i] = {key.first + i, key.first + i + 1};
      put(i, key.first + i, int32_t{1} << kFractionBits);
    }
    return;
  }
  const Taps exact(key.in_size, key.out_size, key.first, key.count);
  for (int i = 0; i < key.count; ++i) {
    spans[i] = {exact.spans[i].begin, exact.spans[i].end};
    words = std::max(words, of_words(spans[i].begin, spans[i].end));
  }
  taps.resize(static_cast<size_t>(key.count) * words);
  for (int i = 0; i < key.count; ++i) {
    for (int x = spans[i].begin; x < spans[i].end; ++x)
      put(i, x, exact.values[exact.spans[i].offset + x - spans[i].begin]);
  }
}

Layout layout_of(const Pixels& source, bool vertical_first) {
  const bool even_rows = source.row_stride % 4 == 0 && source.frame_stride % 4 == 0 && aligned(source.data, 4);
  if (vertical_first || !even_rows) return {Reading::Strided, 0};
  const int floats_past = static_cast<int>(reinterpret_cast<uintptr_t>(source.data) / 4 % 4);
  if (source.pixel_stride == 1 && (source.channels == 1 || source.channel_stride % 4 == 0)) {
    return {Reading::Planar, floats_past};
  }
  // Pixel x of RGB begins 3 x floats on, which is a multiple of 4 where x + phase is.
  if (source.channels == 3 && source.channel_stride == 1 && source.pixel_stride == 3) {
    return {Reading::Packed, (4 - floats_past) % 4};
  }
  return {Reading::Strided, 0};
}

std::optional<Plan> plan_tiles(const ResampleJob& job, const AxisTable& x, const AxisTable& y, Reading reading,
                               int shared_bytes) {
  std::optional<Candidate> best;
  for (const int width : {8, 16, 32, 64, 96, 128}) {
    for (int height = 4; height <= 128; height += height < 16 ? 4 : 8) {
      const Candidate next = candidate(job, x, y, reading, width, height);
      const bool fits = next.plan.shared_bytes <= shared_bytes && next.plan.by_first_words.divisor <= kThreads &&
                        next.plan.run_length <= kThreads;
      if (fits && (!best || next.cost < best->cost)) best = next;
    }
  }
  if (!best) return std::nullopt;
  return best->plan;
}

}  // namespace animdetail::resample
