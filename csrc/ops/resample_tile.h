#pragma once

// How a block of threads resamples one tile of a picture. The tile lies in memory that the block shares as bytes, four
// pixels to a word along the axis that is summed next:
//
//   load     floats of the source -> bytes
//   pass     weighted sums along the first axis, written so that the second axis lies along the words
//   pass     the same along the second axis
//   store    bytes -> floats of the target, or blended into it
//
// Each step is a function of (thread, threads) without barriers inside. The kernel runs the steps with barriers between
// them; tests/harness runs them on a CPU, under sanitizers.
//
// Sums stay exact: a tap of 24 bits is three signed bytes, and four pixels meet four of these in one instruction.

#include <cstdint>
#include <cstring>

#include "animdetail/math/blend.h"
#include "animdetail/math/resample.h"
#include "animdetail/ops.h"

namespace animdetail::resample {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;  // of a block; a row of a tile has no more words

// Source pixels [begin, end) that an output is summed of.
struct Span {
  int32_t begin, end;
};

// The taps of four pixels: byte i of each belongs to pixel i; tap = low + 2^8 middle + 2^16 high.
struct alignas(16) TapWord {
  uint32_t low, middle, high, unused;
};

// One axis of the job. Pixel x lies in word (x + phase) / 4: where rows are read 16 bytes at a time, words begin where
// memory is aligned.
struct Axis {
  const Span* spans;    // of each output of the target's window
  const TapWord* taps;  // `words` of each output
  int words, phase;
};

ANIMDETAIL_HD int word_of(const Axis& axis, int pixel) { return (pixel + axis.phase) >> 2; }

// Division by a number that is known before the launch; exact for numerators * divisor below 2^32.
struct Divisor {
  uint32_t divisor = 1, inverse = 0;
  Divisor() = default;
  explicit Divisor(int by) : divisor(by), inverse(by == 1 ? 0 : uint32_t((uint64_t{1} << 32) / uint32_t(by) + 1)) {}
};

ANIMDETAIL_HD int quotient(int numerator, const Divisor& by) {
  if (by.divisor == 1) return numerator;
#if defined(__CUDA_ARCH__)
  return __umulhi(numerator, by.inverse);
#else
  return static_cast<int>((uint64_t(uint32_t(numerator)) * by.inverse) >> 32);
#endif
}

// How the source lies in memory, as far as reading it fast goes.
enum class Reading : uint8_t {
  Strided,  // anything
  Planar,   // rows of one channel, 16-byte aligned at words
  Packed,   // rows of interleaved RGB, likewise
};

// What is the same for every tile. A line is what one pass sums along; lengths are the largest of any tile.
struct Plan {
  int width, height;     // outputs of a tile
  int64_t across, down;  // tiles of a frame
  int first_lines;       // of a channel, in the first pass
  int first_stride;      // words between them; odd, so that 32 lines lie in 32 banks of shared memory
  int second_lines, second_stride;
  int run_length;     // bytes that lie side by side in the target, and here
  int run_stride;     // bytes from one such run to the next
  int second_offset;  // bytes to the second pass's lines; the result takes the place of the first's
  int shared_bytes;
  Divisor by_first_words, by_first_positions, by_first_lines, by_run_length, by_run_words;
  Reading reading;
  bool interleaved;   // the target's channels lie side by side
  bool aligned_runs;  // they can be read and written 16 bytes at a time
};

struct TileJob {
  Pixels source, target;
  Mask mask;
  Axis x, y;
  Plan plan;
  Range source_range, target_range;
  bool vertical_first;
};

// A rectangle of outputs and the source pixels that it needs.
struct Tile {
  int64_t frame;
  int x, y, width, height;
  int source_x, source_y, source_width, source_height;
};

ANIMDETAIL_HD Tile tile_at(const TileJob& job, int64_t index) {
  const Plan& plan = job.plan;
  Tile tile;
  const int64_t row = index / plan.across;
  tile.frame = row / plan.down;
  tile.x = static_cast<int>(index - row * plan.across) * plan.width;
  tile.y = static_cast<int>(row - tile.frame * plan.down) * plan.height;
  const int right = static_cast<int>(job.target.width) - tile.x, bottom = static_cast<int>(job.target.height) - tile.y;
  tile.width = right < plan.width ? right : plan.width;
  tile.height = bottom < plan.height ? bottom : plan.height;
  // Spans begin and end further on from output to output.
  tile.source_x = job.x.spans[tile.x].begin;
  tile.source_y = job.y.spans[tile.y].begin;
  tile.source_width = job.x.spans[tile.x + tile.width - 1].end - tile.source_x;
  tile.source_height = job.y.spans[tile.y + tile.height - 1].end - tile.source_y;
  return tile;
}

struct Four {
  float value[4];
};

// 16 bytes at once, from and to aligned memory.
ANIMDETAIL_HD Four load_four(const float* from) {
#if defined(__CUDA_ARCH__)
  const float4 loaded = *reinterpret_cast<const float4*>(from);
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
#else
  Four loaded;
  std::memcpy(&loaded, __builtin_assume_aligned(from, 16), sizeof loaded);
  return loaded;
#endif
}

ANIMDETAIL_HD void store_four(const Four& four, float* to) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<float4*>(to) = make_float4(four.value[0], four.value[1], four.value[2], four.value[3]);
#else
  std::memcpy(__builtin_assume_aligned(to, 16), &four, sizeof four);
#endif
}

ANIMDETAIL_HD TapWord load_taps(const TapWord* from) {
#if defined(__CUDA_ARCH__)
  const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(from));
  return {loaded.x, loaded.y, loaded.z, loaded.w};
#else
  return *from;
#endif
}

ANIMDETAIL_HD Span load_span(const Span* from) {
#if defined(__CUDA_ARCH__)
  const int2 loaded = __ldg(reinterpret_cast<const int2*>(from));
  return {loaded.x, loaded.y};
#else
  return *from;
#endif
}

ANIMDETAIL_HD uint32_t pack(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return uint32_t{a} | uint32_t{b} << 8 | uint32_t{c} << 16 | uint32_t{d} << 24;
}

// sum + four products of an unsigned byte (pixels) and a signed one (taps).
ANIMDETAIL_HD int32_t add_products(int32_t sum, uint32_t pixels, uint32_t taps) {
#if defined(__CUDA_ARCH__)
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pixels), "r"(taps));
#else
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int32_t>(pixels >> 8 * i & 0xff) * static_cast<int8_t>(taps >> 8 * i & 0xff);
  }
#endif
  return sum;
}

template <Range range>
ANIMDETAIL_HD uint8_t to_byte(float value) {
  return range == Range::Vae ? quantise_vae(value) : quantise(value);
}

ANIMDETAIL_HD float to_float(uint8_t value, Range range) {
  return range == Range::Vae ? dequantise_vae(value) : dequantise(value);
}

// Which of the rows of `words` words a thread begins with, which word of them is its own, and how many rows on its next
// one lies. Threads that are left over get none.
struct Share {
  int row, word, step;
};

ANIMDETAIL_HD Share share(const Divisor& words, int thread, int threads) {
  const int row = quotient(thread, words), step = quotient(threads, words);
  return {row < step ? row : 1 << 30, thread - row * static_cast<int>(words.divisor), step};
}

// Rows of the source whose pixels lie side by side, `step` channels interleaved: a word of each channel at a time.
template <int channels, int step, Range range>
ANIMDETAIL_HD void load_rows(const TileJob& job, const Tile& tile, uint32_t* lines, int thread, int threads) {
  constexpr int kAtOnce = step == 1 ? 4 : 2;  // words that are on their way before the first is used
  const Plan& plan = job.plan;
  const Share mine = share(plan.by_first_words, thread, threads);
  const int first_word = word_of(job.x, tile.source_x);
  if (first_word + mine.word > word_of(job.x, tile.source_x + tile.source_width - 1)) return;
  const int x = 4 * (first_word + mine.word) - job.x.phase, width = static_cast<int>(job.source.width);
  const bool inside = x >= 0 && x + 4 <= width;
  const float* plane = job.source.data + tile.frame * job.source.frame_stride + tile.source_y * job.source.row_stride +
                       static_cast<int64_t>(x) * step;
  for (int p = 0; p < channels / step; ++p, plane += job.source.channel_stride) {
    for (int row = mine.row; row < tile.source_height; row += kAtOnce * mine.step) {
      Four values[kAtOnce][step];
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        if (row + k * mine.step >= tile.source_height) continue;
        const float* from = plane + (row + k * mine.step) * job.source.row_stride;
        if (inside) {
          ANIMDETAIL_UNROLL
          for (int i = 0; i < step; ++i) values[k][i] = load_four(from + 4 * i);
        } else {
          ANIMDETAIL_UNROLL
          for (int i = 0; i < 4 * step; ++i) {
            const int pixel = x + i / step;
            values[k][i / 4].value[i % 4] = pixel >= 0 && pixel < width ? from[i] : 0.0f;
          }
        }
      }
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        if (row + k * mine.step >= tile.source_height) continue;
        uint32_t* to = lines + (p * plan.first_lines + row + k * mine.step) * plan.first_stride + mine.word;
        ANIMDETAIL_UNROLL
        for (int c = 0; c < step; ++c) {
          const auto byte = [&](int pixel) {
            const int i = pixel * step + c;
            return to_byte<range>(values[k][i / 4].value[i % 4]);
          };
          to[c * plan.first_lines * plan.first_stride] = pack(byte(0), byte(1), byte(2), byte(3));
        }
      }
    }
  }
}

// Pixels of any strides, one at a time; lines run down the picture where the first pass does.
template <int channels, Range range>
ANIMDETAIL_HD void load_pixels(const TileJob& job, const Tile& tile, uint8_t* lines, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool down = job.vertical_first;
  const Axis& along = down ? job.y : job.x;
  const int positions = plan.by_first_positions.divisor;
  const int start = down ? tile.source_y : tile.source_x, length = down ? tile.source_height : tile.source_width;
  const int lines_used = down ? tile.source_width : tile.source_height;
  const int offset = start + along.phase - 4 * word_of(along, start);
  const float* frame = job.source.data + tile.frame * job.source.frame_stride;
  // Neighbouring threads read neighbouring columns.
  const int items = plan.first_lines * positions;
  for (int item = thread; item < items; item += threads) {
    const int slow = quotient(item, down ? plan.by_first_lines : plan.by_first_positions);
    const int fast = item - slow * (down ? plan.first_lines : positions);
    const int line = down ? fast : slow, position = down ? slow : fast;
    if (line >= lines_used || position >= length) continue;
    const int x = tile.source_x + (down ? line : position), y = tile.source_y + (down ? position : line);
    const float* from = frame + y * job.source.row_stride + x * job.source.pixel_stride;
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      lines[4 * (c * plan.first_lines + line) * plan.first_stride + offset + position] =
          to_byte<range>(from[c * job.source.channel_stride]);
    }
  }
}

template <int channels, Range range>
ANIMDETAIL_HD void load(const TileJob& job, const Tile& tile, uint8_t* shared, int thread, int threads) {
  uint32_t* words = reinterpret_cast<uint32_t*>(shared);
  if (job.plan.reading == Reading::Planar) {
    load_rows<channels, 1, range>(job, tile, words, thread, threads);
  } else if (channels == 3 && job.plan.reading == Reading::Packed) {
    load_rows<3, 3, range>(job, tile, words, thread, threads);
  } else {
    load_pixels<channels, range>(job, tile, shared, thread, threads);
  }
}

// Where a pass writes: output o of line i of channel c.
struct Steps {
  int output, line, channel;
};

// Lines of bytes that one pass goes along, and where its results go.
struct Lines {
  const uint32_t* from;
  int origin;              // the word that `from` is
  int count, per_channel;  // that hold pixels, and that there is room for
  int stride;              // words from line to line
  uint8_t* to;
  Steps steps;
};

ANIMDETAIL_HD uint8_t rounded(uint32_t sum) { return round_and_clip(static_cast<int32_t>(sum)); }

// One output of every line, from `words` words of taps, which stay in registers.
template <int channels, int words>
ANIMDETAIL_HD void sum_lines(const Lines& lines, const uint32_t* from, const TapWord* taps, uint8_t* to, int lane) {
  TapWord tap[words];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < words; ++i) tap[i] = load_taps(taps + i);
  const int to_next_channel = lines.per_channel * lines.stride;
  from += lane * lines.stride;
  to += lane * lines.steps.line;
  for (int line = lane; line < lines.count; line += kWarp) {
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      uint32_t four[words];
      ANIMDETAIL_UNROLL
      for (int i = 0; i < words; ++i) four[i] = from[c * to_next_channel + i];
      int32_t high = 0;
      ANIMDETAIL_UNROLL
      for (int i = 0; i < words; ++i) high = add_products(high, four[i], tap[i].high);
      int32_t middle = static_cast<int32_t>(uint32_t(high) << 8);
      ANIMDETAIL_UNROLL
      for (int i = 0; i < words; ++i) middle = add_products(middle, four[i], tap[i].middle);
      int32_t low = static_cast<int32_t>((uint32_t(middle) << 8) + uint32_t(kHalf));
      ANIMDETAIL_UNROLL
      for (int i = 0; i < words; ++i) low = add_products(low, four[i], tap[i].low);
      to[c * lines.steps.channel] = rounded(low);
    }
    from += kWarp * lines.stride;
    to += kWarp * lines.steps.line;
  }
}

// The same for any number of words.
template <int channels>
ANIMDETAIL_HD void sum_long_lines(const Lines& lines, const uint32_t* from, const TapWord* taps, int words, uint8_t* to,
                                  int lane) {
  for (int line = lane; line < lines.count; line += kWarp) {
    int32_t low[channels] = {}, middle[channels] = {}, high[channels] = {};
    for (int word = 0; word < words; ++word) {
      const TapWord tap = load_taps(taps + word);
      ANIMDETAIL_UNROLL
      for (int c = 0; c < channels; ++c) {
        const uint32_t four = from[(c * lines.per_channel + line) * lines.stride + word];
        low[c] = add_products(low[c], four, tap.low);
        middle[c] = add_products(middle[c], four, tap.middle);
        high[c] = add_products(high[c], four, tap.high);
      }
    }
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      to[line * lines.steps.line + c * lines.steps.channel] =
          rounded(uint32_t(kHalf) + uint32_t(low[c]) + (uint32_t(middle[c]) << 8) + (uint32_t(high[c]) << 16));
    }
  }
}

// Sums the outputs [first, first + outputs) along the lines. A warp takes one output of every line: they have their
// taps in common.
template <int channels>
ANIMDETAIL_HD void pass(const Axis& axis, int first, int outputs, const Lines& lines, int thread, int threads) {
  const int lane = thread % kWarp;
  for (int output = thread / kWarp; output < outputs; output += threads / kWarp) {
    const Span span = load_span(axis.spans + first + output);
    const int begin = word_of(axis, span.begin), words = word_of(axis, span.end - 1) - begin + 1;
    const TapWord* taps = axis.taps + static_cast<int64_t>(first + output) * axis.words;
    const uint32_t* from = lines.from + begin - lines.origin;
    uint8_t* to = lines.to + output * lines.steps.output;
    // Only RGB is worth the code.
    switch (channels == 3 ? words : 0) {
      case 1: sum_lines<channels, 1>(lines, from, taps, to, lane); break;
      case 2: sum_lines<channels, 2>(lines, from, taps, to, lane); break;
      case 3: sum_lines<channels, 3>(lines, from, taps, to, lane); break;
      case 4: sum_lines<channels, 4>(lines, from, taps, to, lane); break;
      case 5: sum_lines<channels, 5>(lines, from, taps, to, lane); break;
      case 6: sum_lines<channels, 6>(lines, from, taps, to, lane); break;
      default: sum_long_lines<channels>(lines, from, taps, words, to, lane);
    }
  }
}

// Along x for rows of the source, or down for its columns. The results lie across, words of the second pass.
template <int channels>
ANIMDETAIL_HD void first_pass(const TileJob& job, const Tile& tile, uint8_t* shared, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool down = job.vertical_first;
  const Axis &axis = down ? job.y : job.x, &other = down ? job.x : job.y;
  const int start = down ? tile.source_y : tile.source_x, other_start = down ? tile.source_x : tile.source_y;
  const int stride = 4 * plan.second_stride, skipped = other_start + other.phase - 4 * word_of(other, other_start);
  const Lines lines{reinterpret_cast<const uint32_t*>(shared),
                    word_of(axis, start),
                    down ? tile.source_width : tile.source_height,
                    plan.first_lines,
                    plan.first_stride,
                    shared + plan.second_offset + skipped,
                    {stride, 1, plan.second_lines * stride}};
  pass<channels>(axis, down ? tile.y : tile.x, down ? tile.height : tile.width, lines, thread, threads);
}

template <int channels>
ANIMDETAIL_HD void second_pass(const TileJob& job, const Tile& tile, uint8_t* shared, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool across = job.vertical_first;
  const Axis& axis = across ? job.x : job.y;
  const int x_step = plan.interleaved ? channels : 1, c_step = plan.interleaved ? 1 : plan.height * plan.run_stride;
  const Lines lines{reinterpret_cast<const uint32_t*>(shared + plan.second_offset),
                    word_of(axis, across ? tile.source_x : tile.source_y),
                    across ? tile.height : tile.width,
                    plan.second_lines,
                    plan.second_stride,
                    shared,
                    {across ? x_step : plan.run_stride, across ? plan.run_stride : x_step, c_step}};
  pass<channels>(axis, across ? tile.x : tile.y, across ? tile.width : tile.height, lines, thread, threads);
}

// Where the tile begins in the target, and its alpha in the mask.
ANIMDETAIL_HD float* target_of(const TileJob& job, const Tile& tile) {
  return job.target.data + tile.frame * job.target.frame_stride + tile.y * job.target.row_stride +
         tile.x * job.target.pixel_stride;
}

ANIMDETAIL_HD const float* mask_of(const TileJob& job, const Tile& tile) {
  return job.mask.data + tile.frame * job.mask.frame_stride + tile.y * job.mask.row_stride +
         tile.x * job.mask.pixel_stride;
}

// Four elements of the target at once.
template <int channels, bool blends>
ANIMDETAIL_HD void store_words(const TileJob& job, const Tile& tile, const uint8_t* shared, int thread, int threads) {
  constexpr int kAtOnce = 2;
  const Plan& plan = job.plan;
  const Share mine = share(plan.by_run_words, thread, threads);
  const int per_pixel = plan.interleaved ? channels : 1, length = tile.width * per_pixel, first = 4 * mine.word;
  if (first >= length) return;
  float* plane = target_of(job, tile) + first;
  const float* mask = mask_of(job, tile);
  const auto pixel = [&](int i) {
    return (plan.interleaved ? (first + i) / channels : first + i) * job.mask.pixel_stride;
  };
  for (int c = 0; c < channels / per_pixel;
       ++c, plane += job.target.channel_stride, shared += plan.height * plan.run_stride) {
    for (int row = mine.row; row < tile.height; row += kAtOnce * mine.step) {
      Four result[kAtOnce], below[kAtOnce], alpha[kAtOnce];
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int y = row + k * mine.step;
        if (y >= tile.height) continue;
        const uint32_t word = *reinterpret_cast<const uint32_t*>(shared + y * plan.run_stride + first);
        float* to = plane + y * job.target.row_stride;
        const float* mask_row = mask + y * job.mask.row_stride;
        ANIMDETAIL_UNROLL
        for (int i = 0; i < 4; ++i) result[k].value[i] = to_float(uint8_t(word >> 8 * i), job.target_range);
        if (first + 4 > length) {
          for (int i = 0; i < length - first; ++i) {
            const float value = to_float(uint8_t(word >> 8 * i), job.target_range);
            to[i] = blends ? blend::alpha_over(to[i], value, mask_row[pixel(i)]) : value;
          }
        } else if (blends) {
          below[k] = load_four(to);
          ANIMDETAIL_UNROLL
          for (int i = 0; i < 4; ++i) alpha[k].value[i] = mask_row[pixel(i)];
        }
      }
      if (first + 4 > length) continue;
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int y = row + k * mine.step;
        if (y >= tile.height) continue;
        if (blends) {
          ANIMDETAIL_UNROLL
          for (int i = 0; i < 4; ++i) {
            result[k].value[i] = blend::alpha_over(below[k].value[i], result[k].value[i], alpha[k].value[i]);
          }
        }
        store_four(result[k], plane + y * job.target.row_stride);
      }
    }
  }
}

// One element at a time, for targets of any strides and alignment.
template <int channels, bool blends>
ANIMDETAIL_HD void store_elements(const TileJob& job, const Tile& tile, const uint8_t* shared, int thread,
                                  int threads) {
  constexpr int kAtOnce = 4;
  const Plan& plan = job.plan;
  const Share mine = share(plan.by_run_length, thread, threads);
  const int per_pixel = plan.interleaved ? channels : 1;
  if (mine.word >= tile.width * per_pixel) return;
  float* plane = target_of(job, tile) + mine.word * (plan.interleaved ? 1 : job.target.pixel_stride);
  const float* mask = mask_of(job, tile) + mine.word / per_pixel * job.mask.pixel_stride;
  shared += mine.word;
  for (int c = 0; c < channels / per_pixel;
       ++c, plane += job.target.channel_stride, shared += plan.height * plan.run_stride) {
    for (int row = mine.row; row < tile.height; row += kAtOnce * mine.step) {
      float result[kAtOnce], below[kAtOnce], alpha[kAtOnce];
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int y = row + k * mine.step;
        if (y >= tile.height) continue;
        result[k] = to_float(shared[y * plan.run_stride], job.target_range);
        if (blends) {
          below[k] = plane[y * job.target.row_stride];
          alpha[k] = mask[y * job.mask.row_stride];
        }
      }
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int y = row + k * mine.step;
        if (y >= tile.height) continue;
        plane[y * job.target.row_stride] = blends ? blend::alpha_over(below[k], result[k], alpha[k]) : result[k];
      }
    }
  }
}

template <int channels, bool blends>
ANIMDETAIL_HD void store(const TileJob& job, const Tile& tile, const uint8_t* shared, int thread, int threads) {
  if (job.plan.aligned_runs) {
    store_words<channels, blends>(job, tile, shared, thread, threads);
  } else {
    store_elements<channels, blends>(job, tile, shared, thread, threads);
  }
}

// For taps too many for a tile: one output at a time, straight from the source. Every source pixel is read some 36
// times then, whatever the sizes.

ANIMDETAIL_HD int32_t tap_at(const TapWord* words, int position) {
  const TapWord word = load_taps(words + position / 4);
  const int shift = position % 4 * 8;
  return static_cast<int8_t>(word.low >> shift) + 256 * static_cast<int8_t>(word.middle >> shift) +
         65536 * static_cast<int8_t>(word.high >> shift);
}

struct Output {
  int64_t frame;
  int x, y;
};

ANIMDETAIL_HD Output output_at(const TileJob& job, int64_t index) {
  const int64_t row = index / job.target.width, frame = row / job.target.height;
  return {frame, static_cast<int>(index - row * job.target.width), static_cast<int>(row - frame * job.target.height)};
}

// This thread's share of the second pass's sum, to which kHalf is still to be added.
template <int channels>
ANIMDETAIL_HD void direct_sums(const TileJob& job, const Output& output, int32_t (&sums)[channels], int thread,
                               int threads) {
  const bool down = job.vertical_first;
  const Axis &inner = down ? job.y : job.x, &outer = down ? job.x : job.y;
  const int inner_index = down ? output.y : output.x, outer_index = down ? output.x : output.y;
  const Span inner_span = inner.spans[inner_index], outer_span = outer.spans[outer_index];
  const TapWord* inner_taps = inner.taps + static_cast<int64_t>(inner_index) * inner.words;
  const TapWord* outer_taps = outer.taps + static_cast<int64_t>(outer_index) * outer.words;
  const int inner_offset = inner.phase - 4 * word_of(inner, inner_span.begin);
  const int outer_offset = outer.phase - 4 * word_of(outer, outer_span.begin);
  const int64_t inner_step = down ? job.source.row_stride : job.source.pixel_stride;
  const int64_t outer_step = down ? job.source.pixel_stride : job.source.row_stride;
  const float* frame = job.source.data + output.frame * job.source.frame_stride;
  uint32_t totals[channels] = {};
  for (int i = outer_span.begin + thread; i < outer_span.end; i += threads) {
    uint32_t line[channels] = {};
    for (int k = inner_span.begin; k < inner_span.end; ++k) {
      const uint32_t tap = tap_at(inner_taps, k + inner_offset);
      ANIMDETAIL_UNROLL
      for (int c = 0; c < channels; ++c) {
        const float value = frame[i * outer_step + k * inner_step + c * job.source.channel_stride];
        line[c] += tap * (job.source_range == Range::Vae ? quantise_vae(value) : quantise(value));
      }
    }
    const uint32_t tap = tap_at(outer_taps, i + outer_offset);
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) totals[c] += tap * round_and_clip(static_cast<int32_t>(line[c] + kHalf));
  }
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) sums[c] = static_cast<int32_t>(totals[c]);
}

template <int channels, bool blends>
ANIMDETAIL_HD void direct_store(const TileJob& job, const Output& output, const int32_t (&sums)[channels]) {
  float* to = job.target.data + output.frame * job.target.frame_stride + output.y * job.target.row_stride +
              output.x * job.target.pixel_stride;
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) {
    float& element = to[c * job.target.channel_stride];
    const uint8_t byte = round_and_clip(static_cast<int32_t>(uint32_t(sums[c]) + uint32_t(kHalf)));
    const float value = to_float(byte, job.target_range);
    element = blends
                  ? blend::alpha_over(element, value,
                                      job.mask.data[output.frame * job.mask.frame_stride +
                                                    output.y * job.mask.row_stride + output.x * job.mask.pixel_stride])
                  : value;
  }
}

}  // namespace animdetail::resample
