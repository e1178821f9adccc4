#pragma once

// How a block of threads blurs one tile of a mask: it copies the tile, extended over the mask's edges, and the kernel
// into shared memory, and each thread then sums four neighbouring pixels, all taps of each in the order that
// math/feather.h asks for. As in resample_tile.h, the steps are functions of (thread, threads) that run on a CPU too.

#include <cstdint>

#include "animdetail/math/feather.h"
#include "animdetail/ops.h"

namespace animdetail::feather {

inline constexpr int kTileWidth = 128, kTileHeight = 16;
inline constexpr int kPixels = 4;      // that a thread sums at once
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

// Pixels further out than any that are read from here are not written.
ANIMDETAIL_HD void load(const TileJob& tiles, const Tile& tile, float* shared, int thread, int threads) {
  const FeatherJob& job = tiles.job;
  const int radius = static_cast<int>(job.radius), stride = tile_stride(radius), rows = kTileHeight + 2 * radius;
  const int row_threads = threads / 32;
  for (int row = thread / 32; row < rows; row += row_threads) {
    const int64_t y = tile.y + row - radius;
    if (y >= job.height + radius) break;
    const float* from = tile.mask + reflect(y, job.height) * job.mask_strides[1];
    for (int column = thread % 32; column < kTileWidth + 2 * radius; column += 32) {
      const int64_t x = tile.x + column - radius;
      if (x >= job.width + radius) break;
      shared[row * stride + column] = from[reflect(x, job.width) * job.mask_strides[2]];
    }
  }
  float* kernel = shared + rows * stride;
  for (int i = thread; i < (2 * radius + 1) * tiles.kernel_stride; i += threads) kernel[i] = tiles.kernel[i];
}

struct alignas(16) FourFloats {
  float value[4];
};

template <bool fused>
ANIMDETAIL_HD void blur(const TileJob& tiles, const Tile& tile, const float* shared, int thread, int threads) {
  const FeatherJob& job = tiles.job;
  const int radius = static_cast<int>(job.radius), stride = tile_stride(radius), size = 2 * radius + 1;
  const float* kernel = shared + (kTileHeight + 2 * radius) * stride;
  const int column = thread % 32 * kPixels;
  for (int row = thread / 32; row < kTileHeight; row += threads / 32) {
    if (tile.y + row >= job.height || tile.x + column >= job.width) continue;
    float sums[kPixels] = {};
    for (int i = 0; i < size; ++i) {
      const FourFloats* pixels = reinterpret_cast<const FourFloats*>(shared + (row + i) * stride + column);
      const FourFloats* weights = reinterpret_cast<const FourFloats*>(kernel + i * tiles.kernel_stride);
      FourFloats left = pixels[0];
      for (int k = 0; k < size; k += 4) {
        const FourFloats right = pixels[k / 4 + 1], four = weights[k / 4];
        ANIMDETAIL_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (k + j >= size) break;
          ANIMDETAIL_UNROLL
          for (int p = 0; p < kPixels; ++p) {
            sums[p] =
                add_tap<fused>(sums[p], p + j < 4 ? left.value[(p + j) % 4] : right.value[(p + j) % 4], four.value[j]);
          }
        }
        left = right;
      }
    }
    float* to = tile.out + (tile.y + row) * job.out_strides[1];
    ANIMDETAIL_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      if (tile.x + column + p < job.width) to[(tile.x + column + p) * job.out_strides[2]] = sums[p] * job.factor;
    }
  }
}

// One pixel straight from the mask, for kernels too large for a tile.
template <bool fused>
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
      sum = add_tap<fused>(sum, pixels[reflect(x + k, job.width) * job.mask_strides[2]], weights[k]);
    }
  }
  job.out[mask * job.out_strides[0] + y * job.out_strides[1] + x * job.out_strides[2]] = sum * job.factor;
}

}  // namespace animdetail::feather
