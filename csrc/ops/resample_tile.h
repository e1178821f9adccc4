#pragma once

// How a block of threads resamples one tile of a picture. The tile lies in memory that the block shares as bytes, four
// pixels to a word along the axis that is summed next:
//
//   load          elements of the source -> bytes
//   first_pass    weighted sums along the first axis, written so that the second axis lies along the words
//   second_pass   the same along the second axis, and from there to elements of the target, or blended into it
//
// Each step is a function of (thread, threads) without barriers inside. The kernel runs the steps with barriers between
// them; tests/harness runs them on a CPU, under sanitizers.
//
// A pass is a product of matrices: 16 outputs by the pixels that they need by 16 lines. Sums stay exact: a tap of 24
// bits is three signed bytes, and tensor cores sum products of bytes in 32 bits.

#include <cstdint>
#include <cstring>

#include "animdetail/math/blend.h"
#include "animdetail/math/resample.h"
#include "animdetail/ops.h"

namespace animdetail::resample {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 128;  // of a block; a row of a tile has no more words
inline constexpr int kGroup = 16;     // outputs, and lines, that a warp takes at once
inline constexpr int kStepWords = 8;  // of a line, that one instruction sums

// Source pixels [begin, end) that an output is summed of.
struct Span {
  int32_t begin, end;
};

// The taps of 16 outputs for 8 words of pixels: tap = low + 2^8 middle + 2^16 high, parts in this order. Lane 4 i + k
// of a warp holds those of outputs slot i and slot i + 8 for the words k and k + 4.
struct alignas(16) TapBlock {
  uint32_t parts[3][kWarp][4];
};

// The place of one of 16 outputs, or lines. A thread that sums the lines in four neighbouring places of two products
// then holds four neighbouring lines, a word.
ANIMDETAIL_HD int slot_of(int line) { return (line & ~14) | (line & 2) << 2 | (line >> 1 & 6); }

// One axis of the job. Pixel x lies in word (x + phase) / 4: where rows are read four elements at a time, words begin
// where memory is aligned. Likewise the first `lead` outputs are none: with them fours of outputs begin where the
// target's memory is aligned.
struct Axis {
  const Span* spans;       // of each output
  const TapBlock* blocks;  // `steps` of each 16 outputs, from the word on where the first one's pixels begin
  const int32_t* taps;     // or `longest` of each output
  int steps, longest, phase, lead;
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

// How pictures lie in memory, as far as reading and writing them fast goes.
enum class Access : uint8_t {
  Strided,  // anything
  Planar,   // rows of one channel, aligned to four elements at words, or at fours of outputs
  Packed,   // rows of interleaved RGB, likewise
};

// What is the same for every tile. A line is what one pass sums along; lengths are the largest of any tile.
struct Plan {
  int width, height;                  // outputs of a tile, whole groups
  int64_t across, down;               // tiles of a frame
  int first_stride, second_stride;    // words between lines; 4 times an odd number, for the banks of shared memory
  int first_channel, second_channel;  // words between channels
  int second_offset;                  // words to the second pass's lines
  int shared_bytes;
  Divisor by_words, by_positions, by_lines;  // of the first pass
  Access reading, writing;
};

struct TileJob {
  Pixels source, target;
  Mask mask;
  Axis x, y;
  Plan plan;
  Range source_range, target_range;
  bool vertical_first;
};

inline bool all_floats(const TileJob& job) {
  return job.source.element == Element::Float32 && job.target.element == Element::Float32;
}

// A rectangle of outputs and the source pixels that it needs.
struct Tile {
  int64_t frame;
  int x, y, width, height;
  int source_x, source_y, source_width, source_height;
};

ANIMDETAIL_HD Span load_span(const Span* from) {
#if defined(__CUDA_ARCH__)
  const int2 loaded = __ldg(reinterpret_cast<const int2*>(from));
  return {loaded.x, loaded.y};
#else
  return *from;
#endif
}

ANIMDETAIL_HD Tile tile_at(const TileJob& job, int64_t frame, int row, int column) {
  const Plan& plan = job.plan;
  Tile tile;
  tile.frame = frame;
  tile.x = column * plan.width;
  tile.y = row * plan.height;
  const int right = static_cast<int>(job.target.width) + job.x.lead - tile.x;
  const int bottom = static_cast<int>(job.target.height) + job.y.lead - tile.y;
  tile.width = right < plan.width ? right : plan.width;
  tile.height = bottom < plan.height ? bottom : plan.height;
  // Spans begin and end further on from output to output.
  tile.source_x = load_span(job.x.spans + tile.x).begin;
  tile.source_y = load_span(job.y.spans + tile.y).begin;
  tile.source_width = load_span(job.x.spans + tile.x + tile.width - 1).end - tile.source_x;
  tile.source_height = load_span(job.y.spans + tile.y + tile.height - 1).end - tile.source_y;
  return tile;
}

// Of what a picture's elements are: floats, as the compiler then knows, or (any) whatever it says.
template <bool any>
ANIMDETAIL_HD Element element_of(const Pixels& pixels) {
  return any ? pixels.element : Element::Float32;
}

// Volatile, as load_four.
ANIMDETAIL_HD float load_one(const float* from) {
#if defined(__CUDA_ARCH__)
  float loaded;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(loaded) : "l"(from));
  return loaded;
#else
  return *from;
#endif
}

// Bytes, lowest first.
ANIMDETAIL_HD uint32_t pack(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | (d & 0xff) << 24;
#endif
}

template <Range range>
ANIMDETAIL_HD uint32_t to_byte(float value) {
  return range == Range::Vae ? quantise_vae(value) : quantise(value);
}

ANIMDETAIL_HD float to_float(uint32_t word, int byte, Range range) {
  const float value = dequantise_byte(word, byte);
  return std::fma(value, range == Range::Vae ? 2.0f : 1.0f, range == Range::Vae ? -1.0f : 0.0f);
}

// The place of the first line: words of the second pass begin at whole fours.
ANIMDETAIL_HD int lines_skipped(const TileJob& job, const Tile& tile) {
  return job.vertical_first ? (tile.source_x + job.x.phase) & 3 : (tile.source_y + job.y.phase) & 3;
}

// A word of each of `step` interleaved channels of four pixels.
template <int step, Range range>
ANIMDETAIL_HD void put_words(const RawFour (&pixels)[step], Element element, uint32_t* to, int to_next_channel) {
  ANIMDETAIL_UNROLL
  for (int c = 0; c < step; ++c) {
    const auto byte = [&](int pixel) {
      const int i = pixel * step + c;
      return to_byte<range>(value_of(pixels[i / 4], i % 4, element));
    };
    to[c * to_next_channel] = pack(byte(0), byte(1), byte(2), byte(3));
  }
}

// Rows of the source whose pixels lie side by side, `step` channels interleaved: a word of each channel at a time.
template <int channels, int step, Range range, bool any>
ANIMDETAIL_HD void load_rows(const TileJob& job, const Tile& tile, uint32_t* lines, int thread, int threads) {
  constexpr int kAtOnce = 8 / step;  // that are on their way before the first is used
  constexpr int kPlanes = channels / step;
  const Plan& plan = job.plan;
  // Rows of threads; those that are left over have nothing to do.
  const int first_row = quotient(thread, plan.by_words), rows = quotient(threads, plan.by_words);
  const int word = thread - first_row * static_cast<int>(plan.by_words.divisor);
  const int first_word = word_of(job.x, tile.source_x);
  if (first_row >= rows || first_word + word > word_of(job.x, tile.source_x + tile.source_width - 1)) return;
  const int x = 4 * (first_word + word) - job.x.phase, width = static_cast<int>(job.source.width);
  const bool inside = x >= 0 && x + 4 <= width;
  const int height = tile.source_height, skipped = lines_skipped(job, tile);
  const Element element = element_of<any>(job.source);
  const int64_t source =
      tile.frame * job.source.frame_stride + tile.source_y * job.source.row_stride + static_cast<int64_t>(x) * step;
  lines += word;

  // The rows of all planes, one after the other.
  const auto plane_of = [&](int row) {
    int plane = 0;
    for (int p = 1; p < kPlanes; ++p) plane += row >= p * height;
    return plane;
  };
  const auto from = [&](int row) {
    const int plane = plane_of(row);
    return job.source.data +
           (source + plane * job.source.channel_stride + (row - plane * height) * job.source.row_stride) *
               bytes_of(element);
  };
  const auto to = [&](int row) {
    const int plane = plane_of(row);
    return lines + plane * plan.first_channel + slot_of(skipped + row - plane * height) * plan.first_stride;
  };
  const int count = kPlanes * height;
  if (!inside) {
    for (int row = first_row; row < count; row += rows) {
      uint32_t words[step] = {};
      ANIMDETAIL_UNROLL
      for (int i = 0; i < 4 * step; ++i) {
        const int pixel = x + i / step;
        if (pixel < 0 || pixel >= width) continue;
        words[i % step] |= to_byte<range>(read(from(row) + i * bytes_of(element), element)) << 8 * (i / step);
      }
      ANIMDETAIL_UNROLL
      for (int c = 0; c < step; ++c) to(row)[c * plan.first_channel] = words[c];
    }
    return;
  }
  for (int row = first_row; row < count; row += kAtOnce * rows) {
    RawFour pixels[kAtOnce][step];
    ANIMDETAIL_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      // The last row is read again instead of those past it, which costs less than to ask.
      const char* four = from(row + k * rows < count ? row + k * rows : count - 1);
      ANIMDETAIL_UNROLL
      for (int i = 0; i < step; ++i) pixels[k][i] = load_four(four + 4 * i * bytes_of(element), element);
    }
    ANIMDETAIL_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      if (row + k * rows < count) put_words<step, range>(pixels[k], element, to(row + k * rows), plan.first_channel);
    }
  }
}

// Pixels of any strides, one at a time; lines run down the picture where the first pass does.
template <int channels, Range range, bool any>
ANIMDETAIL_HD void load_pixels(const TileJob& job, const Tile& tile, uint8_t* lines, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool down = job.vertical_first;
  const Axis& along = down ? job.y : job.x;
  const int start = down ? tile.source_y : tile.source_x, length = down ? tile.source_height : tile.source_width;
  const int lines_used = down ? tile.source_width : tile.source_height;
  const int offset = start + along.phase - 4 * word_of(along, start), skipped = lines_skipped(job, tile);
  const int positions = plan.by_positions.divisor, room = plan.by_lines.divisor;
  const Element element = element_of<any>(job.source);
  const char* frame = job.source.data + tile.frame * job.source.frame_stride * bytes_of(element);
  // Neighbouring threads read neighbouring columns.
  for (int item = thread; item < room * positions; item += threads) {
    const int slow = quotient(item, down ? plan.by_lines : plan.by_positions);
    const int fast = item - slow * (down ? room : positions);
    const int line = down ? fast : slow, position = down ? slow : fast;
    if (line >= lines_used || position >= length) continue;
    const int x = tile.source_x + (down ? line : position), y = tile.source_y + (down ? position : line);
    const char* from = frame + (y * job.source.row_stride + x * job.source.pixel_stride) * bytes_of(element);
    uint8_t* to = lines + 4 * slot_of(skipped + line) * plan.first_stride + offset + position;
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      const float value = read(from + c * job.source.channel_stride * bytes_of(element), element);
      to[4 * c * plan.first_channel] = static_cast<uint8_t>(to_byte<range>(value));
    }
  }
}

template <int channels, Range range, bool any>
ANIMDETAIL_HD void load(const TileJob& job, const Tile& tile, uint32_t* shared, int thread, int threads) {
  if (job.plan.reading == Access::Planar) {
    load_rows<channels, 1, range, any>(job, tile, shared, thread, threads);
  } else if (channels == 3 && job.plan.reading == Access::Packed) {
    load_rows<3, 3, range, any>(job, tile, shared, thread, threads);
  } else {
    load_pixels<channels, range, any>(job, tile, reinterpret_cast<uint8_t*>(shared), thread, threads);
  }
}

#if defined(__CUDA_ARCH__)

// sums (16 outputs x 8 lines) += taps (16 x 32 pixels) * pixels (32 x 8).
__device__ __forceinline__ void multiply(int32_t (&sums)[4], const uint32_t (&taps)[4], const uint32_t (&pixels)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(taps[0]), "r"(taps[1]), "r"(taps[2]), "r"(taps[3]), "r"(pixels[0]), "r"(pixels[1]));
#else
  for (int i = 0; i < 4; ++i) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(sums[i % 2 * 2]), "+r"(sums[i % 2 * 2 + 1])
        : "r"(taps[i]), "r"(pixels[i / 2]));
  }
#endif
}

// Four sums to a word, rounded and clipped as round_and_clip does.
__device__ __forceinline__ uint32_t rounded(int32_t a, int32_t b, int32_t c, int32_t d) {
  uint32_t high, word;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(d >> kFractionBits), "r"(c >> kFractionBits));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;"
      : "=r"(word)
      : "r"(b >> kFractionBits), "r"(a >> kFractionBits), "r"(high));
  return word;
}

// The taps of 16 outputs, a lane's share of them.
template <int steps>
struct HeldTaps {
  uint32_t parts[steps][3][4];

  __device__ __forceinline__ HeldTaps(const TapBlock* blocks, int, int lane) {
    ANIMDETAIL_UNROLL
    for (int i = 0; i < steps * 3; ++i) {
      const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(blocks[i / 3].parts[i % 3][lane]));
      parts[i / 3][i % 3][0] = loaded.x;
      parts[i / 3][i % 3][1] = loaded.y;
      parts[i / 3][i % 3][2] = loaded.z;
      parts[i / 3][i % 3][3] = loaded.w;
    }
  }

  // Two words: of the outputs in the slots lane / 4 and lane / 4 + 8, from 16 lines those that begin with 4 (lane % 4).
  __device__ __forceinline__ void sum(const uint32_t* lines, int stride, int lane, uint32_t (&words)[2]) const {
    lines += lane / 4 * stride + lane % 4;
    int32_t sums[2][4] = {};
    uint32_t pixels[steps][2][2];
    ANIMDETAIL_UNROLL
    for (int s = 0; s < steps; ++s) {
      ANIMDETAIL_UNROLL
      for (int i = 0; i < 4; ++i) pixels[s][i / 2][i % 2] = lines[i / 2 * 8 * stride + s * kStepWords + i % 2 * 4];
    }
    ANIMDETAIL_UNROLL
    for (int part = 2; part >= 0; --part) {
      ANIMDETAIL_UNROLL
      for (int s = 0; s < steps; ++s) {
        multiply(sums[0], parts[s][part], pixels[s][0]);
        multiply(sums[1], parts[s][part], pixels[s][1]);
      }
      if (part == 0) break;
      ANIMDETAIL_UNROLL
      for (int i = 0; i < 8; ++i) {
        sums[i / 4][i % 4] = static_cast<int32_t>((uint32_t(sums[i / 4][i % 4]) << 8) + (part == 1 ? kHalf : 0));
      }
    }
    words[0] = rounded(sums[0][0], sums[0][1], sums[1][0], sums[1][1]);
    words[1] = rounded(sums[0][2], sums[0][3], sums[1][2], sums[1][3]);
  }
};

// Any number of steps, whose taps stay in memory.
template <>
struct HeldTaps<0> {
  const TapBlock* blocks;
  int steps;

  __device__ __forceinline__ HeldTaps(const TapBlock* blocks, int steps, int) : blocks(blocks), steps(steps) {}

  __device__ __forceinline__ void sum(const uint32_t* lines, int stride, int lane, uint32_t (&words)[2]) const {
    lines += lane / 4 * stride + lane % 4;
    int32_t sums[3][2][4] = {};
    for (int s = 0; s < steps; ++s, lines += kStepWords) {
      const HeldTaps<1> taps(blocks + s, 1, lane);
      uint32_t pixels[2][2];
      ANIMDETAIL_UNROLL
      for (int i = 0; i < 4; ++i) pixels[i / 2][i % 2] = lines[i / 2 * 8 * stride + i % 2 * 4];
      ANIMDETAIL_UNROLL
      for (int i = 0; i < 6; ++i) multiply(sums[i / 2][i % 2], taps.parts[0][i / 2], pixels[i % 2]);
    }
    int32_t total[8];
    ANIMDETAIL_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t upper = (uint32_t(sums[2][i / 4][i % 4]) << 8) + uint32_t(sums[1][i / 4][i % 4]);
      total[i] = static_cast<int32_t>((upper << 8) + uint32_t(sums[0][i / 4][i % 4]) + uint32_t(kHalf));
    }
    words[0] = rounded(total[0], total[1], total[4], total[5]);
    words[1] = rounded(total[2], total[3], total[6], total[7]);
  }
};

#else

// The same on a CPU, where no lane sees what the others hold.
template <int>
struct HeldTaps {
  const TapBlock* blocks;
  int steps;

  HeldTaps(const TapBlock* blocks, int steps, int) : blocks(blocks), steps(steps) {}

  void sum(const uint32_t* lines, int stride, int lane, uint32_t (&words)[2]) const {
    for (int half = 0; half < 2; ++half) {
      words[half] = 0;
      for (int i = 0; i < 4; ++i) {
        const uint32_t* line = lines + (i / 2 * 8 + lane % 4 * 2 + i % 2) * stride;
        uint32_t sum = kHalf;
        for (int word = 0; word < steps * kStepWords; ++word) {
          const int holder = lane / 4 * 4 + word % 4, k = half + word / 4 % 2 * 2;
          for (int byte = 0; byte < 4; ++byte) {
            int32_t tap = 0;
            for (int part = 2; part >= 0; --part) {
              tap =
                  256 * tap + static_cast<int8_t>(blocks[word / kStepWords].parts[part][holder][k] >> 8 * byte & 0xff);
            }
            sum += uint32_t(tap) * (line[word] >> 8 * byte & 0xff);
          }
        }
        words[half] |= uint32_t{round_and_clip(static_cast<int32_t>(sum))} << 8 * i;
      }
    }
  }
};

#endif

// What a thread of a pass is asked for: [begin, end) of its warp's 16 x 16 sums.
struct Share {
  int begin, end;
};

ANIMDETAIL_HD Share share(int items, int thread, int threads) {
  const int warp = thread / kWarp, warps = threads / kWarp;
  return {items * warp / warps, items * (warp + 1) / warps};
}

ANIMDETAIL_HD int groups(int count) { return (count + kGroup - 1) / kGroup; }

// The outputs of 16, and the words where their pixels begin.
struct Groups {
  const Axis& axis;
  int first, origin;  // group of the tile; word of its lines

  template <int steps>
  ANIMDETAIL_HD HeldTaps<steps> taps(int group, int lane) const {
    return HeldTaps<steps>(axis.blocks + static_cast<int64_t>(first + group) * axis.steps, axis.steps, lane);
  }
  ANIMDETAIL_HD int word(int group) const {
    return word_of(axis, load_span(axis.spans + (first + group) * kGroup).begin) - origin;
  }
};

// Along x for rows of the source, or down for its columns. The results lie across, words of the second pass.
template <int channels, int steps>
ANIMDETAIL_HD void first_pass(const TileJob& job, const Tile& tile, uint32_t* shared, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool down = job.vertical_first;
  const Axis& axis = down ? job.y : job.x;
  const Groups outputs{axis, (down ? tile.y : tile.x) / kGroup, word_of(axis, down ? tile.source_y : tile.source_x)};
  const int blocks = groups((down ? tile.source_width : tile.source_height) + lines_skipped(job, tile));
  const int each = channels * blocks, lane = thread % kWarp;
  const Share mine = share(groups(down ? tile.height : tile.width) * each, thread, threads);
  uint32_t* results = shared + plan.second_offset + lane / 4 * plan.second_stride + lane % 4;
  for (int item = mine.begin; item < mine.end;) {
    const int group = item / each, last = (group + 1) * each < mine.end ? (group + 1) * each : mine.end;
    const HeldTaps<steps> taps = outputs.taps<steps>(group, lane);
    int channel = (item - group * each) / blocks, block = item - group * each - channel * blocks;
    const uint32_t* from = shared + outputs.word(group);
    for (; item < last; ++item) {
      uint32_t words[2];
      taps.sum(from + channel * plan.first_channel + block * kGroup * plan.first_stride, plan.first_stride, lane,
               words);
      uint32_t* to =
          results + channel * plan.second_channel + group * kGroup * plan.second_stride + block * (kGroup / 4);
      to[0] = words[0];
      to[8 * plan.second_stride] = words[1];
      if (++block == blocks) {
        block = 0;
        ++channel;
      }
    }
  }
}

template <int channels, int steps>
ANIMDETAIL_HD void sum_channels(const HeldTaps<steps>& taps, const uint32_t* from, int to_next_channel, int stride,
                                int lane, uint32_t (&words)[2][channels]) {
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) {
    uint32_t pair[2];
    taps.sum(from + c * to_next_channel, stride, lane, pair);
    words[0][c] = pair[0];
    words[1][c] = pair[1];
  }
}

// Four outputs of the target, side by side, or one above the other where they were summed along x last.
struct Run {
  char* to;
  const float* mask;
  int x, y;
  bool some, whole;  // of it in the target; four elements of each channel, or of the pixels, at a time
};

template <int channels, bool blends, bool any>
ANIMDETAIL_HD Run run_at(const TileJob& job, int64_t frame, int x, int y) {
  const Pixels& target = job.target;
  Run run;
  run.x = x;
  run.y = y;
  const int width = static_cast<int>(target.width), height = static_cast<int>(target.height);
  run.some = job.vertical_first ? x < width && y < height : x + 4 > 0 && x < width && y < height;
  run.whole = job.plan.writing != Access::Strided && run.some && x >= 0 && x + 4 <= width;
  run.to = target.data + (frame * target.frame_stride + y * target.row_stride + x * target.pixel_stride) *
                             bytes_of(element_of<any>(target));
  run.mask = blends
                 ? job.mask.data + frame * job.mask.frame_stride + y * job.mask.row_stride + x * job.mask.pixel_stride
                 : nullptr;
  return run;
}

// What a run is blended with.
template <int channels>
struct Below {
  RawFour values[channels];
  float alpha[4];
};

template <int channels, bool any>
ANIMDETAIL_HD void load_below(const TileJob& job, const Run& run, Below<channels>& below) {
  const Element element = element_of<any>(job.target);
  const int64_t step = job.plan.writing == Access::Packed ? 4 : job.target.channel_stride;
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) below.values[c] = load_four(run.to + c * step * bytes_of(element), element);
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) below.alpha[i] = load_one(run.mask + i * job.mask.pixel_stride);
}

template <int channels, bool blends, bool any>
ANIMDETAIL_HD void store_whole(const TileJob& job, const Run& run, const uint32_t (&words)[channels],
                               const Below<channels>& below) {
  const Element element = element_of<any>(job.target);
  const auto put = [&](int c, const auto& channel_of, const auto& pixel_of, int64_t to) {
    float result[4];
    ANIMDETAIL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float value = to_float(words[channel_of(i)], pixel_of(i), job.target_range);
      result[i] =
          blends ? blend::alpha_over(value_of(below.values[c], i, element), value, below.alpha[pixel_of(i)]) : value;
    }
    store_four(result, run.to + to * bytes_of(element), element);
  };
  if (channels == 3 && job.plan.writing == Access::Packed) {
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      put(c, [=](int i) { return (4 * c + i) % 3; }, [=](int i) { return (4 * c + i) / 3; }, 4 * c);
    }
  } else {
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      put(c, [=](int) { return c; }, [=](int i) { return i; }, c * job.target.channel_stride);
    }
  }
}

// One element at a time, for targets of any strides and the edges of the others.
template <int channels, bool blends, bool any>
ANIMDETAIL_HD void store_elements(const TileJob& job, const Run& run, const uint32_t (&words)[channels]) {
  const Pixels& target = job.target;
  const Element element = element_of<any>(target);
  const bool down = job.vertical_first;
  const int64_t step = down ? target.row_stride : target.pixel_stride;
  const int64_t mask_step = down ? job.mask.row_stride : job.mask.pixel_stride;
  const int first = down ? run.y : run.x, end = static_cast<int>(down ? target.height : target.width);
  ANIMDETAIL_UNROLL_BY(1)
  for (int i = 0; i < 4; ++i) {
    if (first + i < 0 || first + i >= end) continue;
    const float alpha = blends ? run.mask[i * mask_step] : 0.0f;
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      char* to = run.to + (i * step + c * target.channel_stride) * bytes_of(element);
      const float value = to_float(words[c], i, job.target_range);
      write(blends ? blend::alpha_over(read(to, element), value, alpha) : value, to, element);
    }
  }
}

template <int channels, int steps, bool blends, bool any>
ANIMDETAIL_HD void second_pass(const TileJob& job, const Tile& tile, const uint32_t* shared, int thread, int threads) {
  const Plan& plan = job.plan;
  const bool across = job.vertical_first;
  const Axis& axis = across ? job.x : job.y;
  const Groups outputs{axis, (across ? tile.x : tile.y) / kGroup,
                       word_of(axis, across ? tile.source_x : tile.source_y)};
  const int blocks = groups(across ? tile.height : tile.width), lane = thread % kWarp;
  const Share mine = share(groups(across ? tile.width : tile.height) * blocks, thread, threads);
  // The output in slot lane / 4; the one in slot lane / 4 + 8 lies halfway to the next four.
  constexpr int kHalfway = 2;
  const int output = lane / 8 * 4 + lane / 4 % 2, line = lane % 4 * 4;
  for (int item = mine.begin; item < mine.end; ++item) {
    const int group = item / blocks, block = item - group * blocks;
    const uint32_t* from = shared + plan.second_offset + outputs.word(group) + block * kGroup * plan.second_stride;
    uint32_t words[2][channels];
    sum_channels<channels>(outputs.taps<steps>(group, lane), from, plan.second_channel, plan.second_stride, lane,
                           words);
    const int along = group * kGroup + output, aside = block * kGroup + line;
    Run runs[2];
    Below<channels> below[2];
    ANIMDETAIL_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int o = along + half * kHalfway;
      runs[half] = run_at<channels, blends, any>(job, tile.frame, tile.x + (across ? o : aside) - job.x.lead,
                                                 tile.y + (across ? aside : o) - job.y.lead);
      if (blends && runs[half].whole) load_below<channels, any>(job, runs[half], below[half]);
    }
    ANIMDETAIL_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (runs[half].whole) {
        store_whole<channels, blends, any>(job, runs[half], words[half], below[half]);
      } else if (runs[half].some) {
        store_elements<channels, blends, any>(job, runs[half], words[half]);
      }
    }
  }
}

// For taps too many for a tile: one output at a time, straight from the source. Every source pixel is read some 36
// times then, whatever the sizes.

struct Output {
  int64_t frame;
  int x, y;
};

ANIMDETAIL_HD Output output_at(const TileJob& job, int64_t index) {
  const int64_t row = index / job.target.width, frame = row / job.target.height;
  return {frame, static_cast<int>(index - row * job.target.width), static_cast<int>(row - frame * job.target.height)};
}

// This thread's share of the second pass's sum, to which kHalf is still to be added.
template <int channels, bool any>
ANIMDETAIL_HD void direct_sums(const TileJob& job, const Output& output, int32_t (&sums)[channels], int thread,
                               int threads) {
  const bool down = job.vertical_first;
  const Axis &inner = down ? job.y : job.x, &outer = down ? job.x : job.y;
  const int inner_index = down ? output.y : output.x, outer_index = down ? output.x : output.y;
  const Span inner_span = inner.spans[inner_index], outer_span = outer.spans[outer_index];
  const int32_t* inner_taps = inner.taps + static_cast<int64_t>(inner_index) * inner.longest - inner_span.begin;
  const int32_t* outer_taps = outer.taps + static_cast<int64_t>(outer_index) * outer.longest - outer_span.begin;
  const int64_t inner_step = down ? job.source.row_stride : job.source.pixel_stride;
  const int64_t outer_step = down ? job.source.pixel_stride : job.source.row_stride;
  const Element element = element_of<any>(job.source);
  const char* frame = job.source.data + output.frame * job.source.frame_stride * bytes_of(element);
  uint32_t totals[channels] = {};
  for (int i = outer_span.begin + thread; i < outer_span.end; i += threads) {
    uint32_t line[channels] = {};
    for (int k = inner_span.begin; k < inner_span.end; ++k) {
      const uint32_t tap = inner_taps[k];
      ANIMDETAIL_UNROLL
      for (int c = 0; c < channels; ++c) {
        const int64_t from = i * outer_step + k * inner_step + c * job.source.channel_stride;
        const float value = read(frame + from * bytes_of(element), element);
        line[c] += tap * (job.source_range == Range::Vae ? quantise_vae(value) : quantise(value));
      }
    }
    const uint32_t tap = outer_taps[i];
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) totals[c] += tap * round_and_clip(static_cast<int32_t>(line[c] + kHalf));
  }
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) sums[c] = static_cast<int32_t>(totals[c]);
}

template <int channels, bool blends, bool any>
ANIMDETAIL_HD void direct_store(const TileJob& job, const Output& output, const int32_t (&sums)[channels]) {
  const Element element = element_of<any>(job.target);
  const int64_t first =
      output.frame * job.target.frame_stride + output.y * job.target.row_stride + output.x * job.target.pixel_stride;
  const Mask& mask = job.mask;
  ANIMDETAIL_UNROLL
  for (int c = 0; c < channels; ++c) {
    char* to = job.target.data + (first + c * job.target.channel_stride) * bytes_of(element);
    const uint8_t byte = round_and_clip(static_cast<int32_t>(uint32_t(sums[c]) + uint32_t(kHalf)));
    float value = to_float(byte, 0, job.target_range);
    if (blends) {
      const float alpha =
          mask.data[output.frame * mask.frame_stride + output.y * mask.row_stride + output.x * mask.pixel_stride];
      value = blend::alpha_over(read(to, element), value, alpha);
    }
    write(value, to, element);
  }
}

}  // namespace animdetail::resample
