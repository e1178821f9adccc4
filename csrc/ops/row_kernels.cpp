#include "row_kernels.h"

#include <algorithm>

#include "animdetail/host_device.h"
#include "animdetail/math/blend.h"
#include "animdetail/math/feather.h"
#include "animdetail/math/resample.h"

// GCC's function versions need ifunc, which glibc on x86-64 has. Elsewhere the one plain version is built.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define ANIMDETAIL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ANIMDETAIL_CLONES
#endif

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define ANIMDETAIL_SSE2
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define ANIMDETAIL_NEON
#endif

namespace animdetail::rows {
namespace {

// Sixteen bytes at once, for the transpose; every x86-64 and every aarch64 processor has them.
#if defined(ANIMDETAIL_SSE2)
using Bytes = __m128i;
Bytes load(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const Bytes*>(from)); }
void store(uint8_t* to, Bytes bytes) { _mm_storeu_si128(reinterpret_cast<Bytes*>(to), bytes); }
Bytes interleave_low(Bytes a, Bytes b) { return _mm_unpacklo_epi8(a, b); }
Bytes interleave_high(Bytes a, Bytes b) { return _mm_unpackhi_epi8(a, b); }
#elif defined(ANIMDETAIL_NEON)
using Bytes = uint8x16_t;
Bytes load(const uint8_t* from) { return vld1q_u8(from); }
void store(uint8_t* to, Bytes bytes) { vst1q_u8(to, bytes); }
Bytes interleave_low(Bytes a, Bytes b) { return vzip1q_u8(a, b); }
Bytes interleave_high(Bytes a, Bytes b) { return vzip2q_u8(a, b); }
#endif

constexpr int kTile = 16;

void transpose_bytes(const uint8_t* from, ptrdiff_t from_stride, ptrdiff_t rows, ptrdiff_t columns, uint8_t* to,
                     ptrdiff_t to_stride) {
  for (ptrdiff_t column = 0; column < columns; ++column) {
    for (ptrdiff_t row = 0; row < rows; ++row) to[column * to_stride + row] = from[row * from_stride + column];
  }
}

// Four rounds of interleaving the first eight registers with the last eight turn rows into columns.
void transpose_tile(const uint8_t* from, ptrdiff_t from_stride, uint8_t* to, ptrdiff_t to_stride) {
#if defined(ANIMDETAIL_SSE2) || defined(ANIMDETAIL_NEON)
  Bytes tile[kTile], shuffled[kTile];
  for (int i = 0; i < kTile; ++i) tile[i] = load(from + i * from_stride);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < kTile / 2; ++i) {
      shuffled[2 * i] = interleave_low(tile[i], tile[i + kTile / 2]);
      shuffled[2 * i + 1] = interleave_high(tile[i], tile[i + kTile / 2]);
    }
    std::copy(shuffled, shuffled + kTile, tile);
  }
  for (int i = 0; i < kTile; ++i) store(to + i * to_stride, tile[i]);
#else
  transpose_bytes(from, from_stride, kTile, kTile, to, to_stride);
#endif
}

}  // namespace

ANIMDETAIL_CLONES void widen(const char* __restrict from, Element element, float* __restrict to, ptrdiff_t count) {
  // One loop for each type: a switch inside it would keep it from being vectorised.
  if (element == Element::UInt8) {
    for (ptrdiff_t i = 0; i < count; ++i) to[i] = read(from + i, Element::UInt8);
  } else if (element == Element::BFloat16) {
    for (ptrdiff_t i = 0; i < count; ++i) to[i] = read(from + 2 * i, Element::BFloat16);
  } else {
    for (ptrdiff_t i = 0; i < count; ++i) to[i] = read(from + 2 * i, Element::Float16);
  }
}

ANIMDETAIL_CLONES void quantise(const float* __restrict from, uint8_t* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = resample::quantise(from[i]);
}

ANIMDETAIL_CLONES void quantise_vae(const float* __restrict from, uint8_t* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = resample::quantise_vae(from[i]);
}

ANIMDETAIL_CLONES void dequantise(const uint8_t* __restrict from, float* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = resample::dequantise(from[i]);
}

ANIMDETAIL_CLONES void dequantise_vae(const uint8_t* __restrict from, float* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = resample::dequantise_vae(from[i]);
}

ANIMDETAIL_CLONES void weighted_sum(const uint8_t* __restrict from, ptrdiff_t stride, const int32_t* __restrict taps,
                                    int tap_count, uint8_t* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t start = 0; start < count; start += kLanes) {
    int32_t sums[kLanes];
    for (ptrdiff_t i = 0; i < kLanes; ++i) sums[i] = resample::kHalf;
    for (int k = 0; k < tap_count; ++k) {
      const uint8_t* row = from + k * stride + start;
      const int32_t tap = taps[k];
      for (ptrdiff_t i = 0; i < kLanes; ++i) sums[i] += tap * row[i];
    }
    for (ptrdiff_t i = 0; i < kLanes; ++i) to[start + i] = resample::round_and_clip(sums[i]);
  }
}

void transpose(const uint8_t* from, ptrdiff_t from_stride, ptrdiff_t rows, ptrdiff_t columns, uint8_t* to,
               ptrdiff_t to_stride) {
  const ptrdiff_t tiled_rows = rows / kTile * kTile, tiled_columns = columns / kTile * kTile;
  for (ptrdiff_t column = 0; column < tiled_columns; column += kTile) {
    for (ptrdiff_t row = 0; row < tiled_rows; row += kTile) {
      transpose_tile(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
    }
  }
  transpose_bytes(from + tiled_columns, from_stride, rows, columns - tiled_columns, to + tiled_columns * to_stride,
                  to_stride);
  transpose_bytes(from + tiled_rows * from_stride, from_stride, rows - tiled_rows, tiled_columns, to + tiled_rows,
                  to_stride);
}

ANIMDETAIL_CLONES void blur(const float* __restrict from, ptrdiff_t stride, const float* __restrict kernel,
                            ptrdiff_t size, float* __restrict to, ptrdiff_t count) {
  for (ptrdiff_t start = 0; start < count; start += kLanes) {
    float sums[kLanes] = {};
    for (ptrdiff_t row = 0; row < size; ++row) {
      for (ptrdiff_t column = 0; column < size; ++column) {
        const float weight = kernel[row * size + column];
        const float* pixels = from + row * stride + column + start;
        for (ptrdiff_t i = 0; i < kLanes; ++i) sums[i] = feather::add_tap(sums[i], pixels[i], weight);
      }
    }
    std::copy(sums, sums + kLanes, to + start);
  }
}

ANIMDETAIL_CLONES void paste_rgb(float* __restrict canvas, const float* __restrict patch, const float* __restrict mask,
                                 ptrdiff_t pixels) {
  for (ptrdiff_t i = 0; i < pixels; ++i) {
    for (int c = 0; c < 3; ++c) {
      canvas[3 * i + c] = blend::alpha_over(canvas[3 * i + c], patch[3 * i + c], mask[i]);
    }
  }
}

}  // namespace animdetail::rows
