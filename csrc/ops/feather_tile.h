#pragma once

// How a block of threads blurs one tile of a mask: it copies the tile, extended over the mask's edges, and the kernel
// into shared memory, and each thread then sums four neighbouring pixels, all taps of each in the order that
// math/feather.h asks for. As in resample_tile.h, the steps are functions of (thread, threads) that run on a CPU too.

#include <cstdint>
#include <type_traits>

#include "animdetail/math/feather.h"
#include "animdetail/ops.h"

namespace animdetail::feather {

inline constexpr int kTileWidth = 64, kTileHeight = 16;
inline constexpr int kPixels = 4, kRows = 2;  // that a thread sums at once: the rows have pixels in common
inline constexpr int kThreads = kTileWidth / kPixels * (kTileHeight / kRows);
inline constexpr int kMaxRadius = 20;  // of a tile that fits into 48 KiB

struct TileJob {
  FeatherJob job;
  const float* kernel;  // (2 radius + 1) rows of kernel_stride
  int kernel_stride;    // a multiple of 4
  int64_t across, down;
};

inline int kernel_stride(int64_t radius) { return static_cast<int>(2 * radius + 1 + 3) / 4 * 4; }

ANIMDETAIL_HD int tile_stride(int radius) { return kTileWidth + (2 * radius + kPixels) / kPixels * kPixels; }

ANIMDETAIL_HD int shared_floats(int radius, int kernel_stride) {
  return (kTileHeight + 2 * radius) * tile_stride(radius) + (2 * radius + 1) * kernel_stride;
}

struct Tile {
  const float* mask;
  float* out;
  int64_t x, y;
};

ANIMDETAIL_HD Tile tile_at(const TileJob& tiles, int64_t index) {
  const int64_t row = index / tiles.across, mask = row / tiles.down;
  return {tiles.job.mask + mask * tiles.job.mask_strides[0], tiles.job.out + mask * tiles.job.out_strides[0],
          (index - row * tiles.across) * kTileWidth, (row - mask * tiles.down) * kTileHeight};
}

// Pixels further out than any that are read are those of the last row or column.
ANIMDETAIL_HD void load(const TileJob& tiles, const Tile& tile, float* shared, int thread, int threads) {
  constexpr int kAtOnce = 4, kLanes = 32;
  const FeatherJob& job = tiles.job;
  const int radius = static_cast<int>(job.radius), stride = tile_stride(radius);
  const int rows = kTileHeight + 2 * radius, columns = kTileWidth + 2 * radius, row_step = threads / kLanes;
  const auto within = [&](int64_t index, int64_t size) {
    return reflect(index < size + radius ? index : size + radius - 1, size);
  };
  for (int column = thread % kLanes; column < columns; column += kLanes) {
    const float* from = tile.mask + within(tile.x + column - radius, job.width) * job.mask_strides[2];
    for (int row = thread / kLanes; row < rows; row += kAtOnce * row_step) {
      float values[kAtOnce];
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        values[k] = from[within(tile.y + row + k * row_step - radius, job.height) * job.mask_strides[1]];
      }
      ANIMDETAIL_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        if (row + k * row_step < rows) shared[(row + k * row_step) * stride + column] = values[k];
      }
    }
  }
  float* kernel = shared + rows * stride;
  for (int i = thread; i < (2 * radius + 1) * tiles.kernel_stride; i += threads) kernel[i] = tiles.kernel[i];
}

struct alignas(16) FourFloats {
  float value[4];
};

// `taps` taps, up to 4, of the pixels left[0] .. right[3].
template <int taps>
ANIMDETAIL_HD void add_taps(float (&sums)[kPixels], const FourFloats& left, const FourFloats& right,
                            const float* kernel) {
  const FourFloats weights = *reinterpret_cast<const FourFloats*>(kernel);
  ANIMDETAIL_UNROLL
  for (int i = 0; i < taps; ++i) {
    ANIMDETAIL_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      const float pixel = p + i < 4 ? left.value[(p + i) % 4] : right.value[(p + i) % 4];
      sums[p] = add_tap(sums[p], pixel, weights.value[i]);
    }
  }
}

// One row of pixels, for each row of sums that it is a tap of: in row r as row i - r of the kernel.
ANIMDETAIL_HD void add_row(float (&sums)[kRows][kPixels], const float* row, const float* kernel, int kernel_stride,
                           int size, int i) {
  const FourFloats* pixels = reinterpret_cast<const FourFloats*>(row);
  FourFloats left = pixels[0];
  const auto add = [&](auto taps, int column, const FourFloats& right) {
    ANIMDETAIL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (i - r < 0 || i - r >= size) continue;
      add_taps<taps.value>(sums[r], left, right, kernel + (i - r) * kernel_stride + column);
    }
  };
  int column = 0;
  for (; column + 4 <= size; column += 4) {
    const FourFloats right = pixels[column / 4 + 1];
    add(std::integral_constant<int, 4>(), column, right);
    left = right;
  }
  // The size is odd.
  if (size % 4 == 3) {
    add(std::integral_constant<int, 3>(), column, pixels[column / 4 + 1]);
  } else {
    add(std::integral_constant<int, 1>(), column, left);
  }
}

ANIMDETAIL_HD void blur(const TileJob& tiles, const Tile& tile, const float* shared, int thread, int) {
  const FeatherJob& job = tiles.job;
  const int radius = static_cast<int>(job.radius), stride = tile_stride(radius), size = 2 * radius + 1;
  const float* kernel = shared + (kTileHeight + 2 * radius) * stride;
  constexpr int kAcross = kTileWidth / kPixels;
  const int column = thread % kAcross * kPixels, row = thread / kAcross * kRows;
  if (tile.y + row >= job.height || tile.x + column >= job.width) return;
  float sums[kRows][kPixels] = {};
  for (int i = 0; i < size + kRows - 1; ++i) {
    add_row(sums, shared + (row + i) * stride + column, kernel, tiles.kernel_stride, size, i);
  }
  ANIMDETAIL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (tile.y + row + r >= job.height) break;
    float* to = tile.out + (tile.y + row + r) * job.out_strides[1];
    ANIMDETAIL_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      if (tile.x + column + p < job.width) to[(tile.x + column + p) * job.out_strides[2]] = sums[r][p] * job.factor;
    }
  }
}

// One pixel straight from the mask, for kernels too large for a tile.
ANIMDETAIL_HD void blur_pixel(const TileJob& tiles, int64_t index) {
  const FeatherJob& job = tiles.job;
  const int64_t row = index / job.width, mask = row / job.height, x = index - row * job.width,
                y = row - mask * job.height;
  const float* from = job.mask + mask * job.mask_strides[0];
  float sum = 0;
  for (int64_t i = -job.radius; i <= job.radius; ++i) {
    const float* pixels = from + reflect(y + i, job.height) * job.mask_strides[1];
    const float* weights = tiles.kernel + (i + job.radius) * tiles.kernel_stride + job.radius;
    for (int64_t k = -job.radius; k <= job.radius; ++k) {
      sum = add_tap(sum, pixels[reflect(x + k, job.width) * job.mask_strides[2]], weights[k]);
    }
  }
  job.out[mask * job.out_strides[0] + y * job.out_strides[1] + x * job.out_strides[2]] = sum * job.factor;
}

}  // namespace animdetail::feather
