#include <algorithm>

#include "cuda_support.h"
#include "feather_tile.h"

namespace animdetail {
namespace {

using namespace feather;

__global__ __launch_bounds__(kThreads) void blur_tiles(const __grid_constant__ TileJob tiles, int64_t count) {
  extern __shared__ __align__(16) float shared[];
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile tile = tile_at(tiles, index);
    load(tiles, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
    blur(tiles, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
  }
}

__global__ __launch_bounds__(kThreads) void blur_pixels(const __grid_constant__ TileJob tiles, int64_t count) {
  const int64_t all = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < count; index += all) {
    blur_pixel(tiles, index);
  }
}

// The outer product of the weights, each rounded to float, in rows of whole 16 bytes.
std::vector<char> kernel_bytes(const FeatherJob& job) {
  const int64_t size = 2 * job.radius + 1, stride = kernel_stride(job.radius);
  std::vector<float> kernel(size * stride);
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = 0; column < size; ++column) {
      kernel[row * stride + column] = job.weights[row] * job.weights[column];
    }
  }
  std::vector<char> bytes;
  cuda::append(bytes, kernel);
  return bytes;
}

void launch(const TileJob& tiles, cudaStream_t stream) {
  const FeatherJob& job = tiles.job;
  const int radius = static_cast<int>(std::min<int64_t>(job.radius, kMaxRadius));
  if (job.radius <= kMaxRadius) {
    const int64_t count = tiles.across * tiles.down * job.count;
    const size_t bytes = sizeof(float) * shared_floats(radius, tiles.kernel_stride);
    blur_tiles<<<cuda::blocks(count), kThreads, bytes, stream>>>(tiles, count);
  } else {
    const int64_t count = job.count * job.height * job.width;
    blur_pixels<<<cuda::blocks((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(tiles, count);
  }
}

}  // namespace

void feather_cuda(const FeatherJob& job, CudaStream stream) {
  const char* op = "feather_mask";
  const cuda::DeviceGuard guard(op, stream.device);
  cuda::Tables tables(op, stream);
  const std::string key = "blur" + std::string(reinterpret_cast<const char*>(job.weights),
                                               sizeof(float) * static_cast<size_t>(2 * job.radius + 1));
  const void* kernel = tables.get(key, [&] { return kernel_bytes(job); });
  const TileJob tiles{job, static_cast<const float*>(kernel), kernel_stride(job.radius),
                      (job.width + kTileWidth - 1) / kTileWidth, (job.height + kTileHeight - 1) / kTileHeight};
  launch(tiles, cuda::handle(stream));
  cuda::check(op, cudaGetLastError());
}

}  // namespace animdetail
