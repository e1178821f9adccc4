#include <algorithm>
#include <map>
#include <memory>

#include "cuda_support.h"
#include "resample_plan.h"

namespace animdetail {
namespace {

using namespace resample;

constexpr int kDirectThreads = 128;
// What a block shares, at most 48 without asking: several blocks fit on a multiprocessor, so one loads while another
// sums. A build option, to measure others.
#if !defined(ANIMDETAIL_TILE_KIB)
#define ANIMDETAIL_TILE_KIB 32
#endif
constexpr int kSharedBytes = ANIMDETAIL_TILE_KIB << 10;

template <int channels, Range range, bool blends>
__global__ __launch_bounds__(kThreads, 4) void resample_tiles(const __grid_constant__ TileJob job, int64_t tiles) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ Tile tile;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    if (threadIdx.x == 0) tile = tile_at(job, index);
    __syncthreads();
    load<channels, range>(job, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
    first_pass<channels>(job, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
    second_pass<channels>(job, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
    store<channels, blends>(job, tile, shared, threadIdx.x, kThreads);
    __syncthreads();
  }
}

template <int channels, bool blends>
__global__ __launch_bounds__(kDirectThreads) void resample_direct(const __grid_constant__ TileJob job,
                                                                  int64_t outputs) {
  __shared__ int32_t parts[kDirectThreads / kWarp][channels];
  for (int64_t index = blockIdx.x; index < outputs; index += gridDim.x) {
    const Output output = output_at(job, index);
    int32_t sums[channels];
    direct_sums(job, output, sums, threadIdx.x, kDirectThreads);
    ANIMDETAIL_UNROLL
    for (int c = 0; c < channels; ++c) {
      for (int lanes = kWarp / 2; lanes; lanes /= 2) sums[c] += __shfl_xor_sync(0xffffffff, sums[c], lanes);
      if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp][c] = sums[c];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      ANIMDETAIL_UNROLL
      for (int c = 0; c < channels; ++c) {
        for (int warp = 1; warp < kDirectThreads / kWarp; ++warp) sums[c] += parts[warp][c];
      }
      direct_store<channels, blends>(job, output, sums);
    }
    __syncthreads();
  }
}

// The tables of an axis, on the host and on the current device.
struct PlacedAxis {
  std::shared_ptr<const AxisTable> table;
  Axis axis;
};

PlacedAxis place(cuda::Tables& tables, const AxisKey& key) {
  // Kept, since to make one takes the sine of every tap; found anew on each device by the same name. Guarded by Tables.
  static std::map<std::string, std::shared_ptr<const AxisTable>> made;
  constexpr size_t kMaxMade = 256;

  const std::string name = "axis" + std::string(reinterpret_cast<const char*>(&key), sizeof key);
  std::shared_ptr<const AxisTable> table = made[name];
  if (!table) {
    if (made.size() > kMaxMade) made.clear();
    table = made[name] = std::make_shared<const AxisTable>(key);
  }
  const void* placed = tables.get(name, [&] {
    std::vector<char> bytes;
    cuda::append(bytes, table->taps);
    cuda::append(bytes, table->spans);
    return bytes;
  });
  const char* spans = static_cast<const char*>(placed) + table->taps.size() * sizeof(TapWord);
  return {table, table->axis(spans, placed)};
}

template <int channels, Range range, bool blends>
void launch(const TileJob& job, bool tiled, cudaStream_t stream) {
  if (tiled) {
    const int64_t tiles = job.plan.across * job.plan.down * job.target.frames;
    resample_tiles<channels, range, blends>
        <<<cuda::blocks(tiles), kThreads, job.plan.shared_bytes, stream>>>(job, tiles);
  } else {
    const int64_t outputs = job.target.frames * job.target.height * job.target.width;
    resample_direct<channels, blends><<<cuda::blocks(outputs), kDirectThreads, 0, stream>>>(job, outputs);
  }
}

void launch(const TileJob& job, bool tiled, cudaStream_t stream) {
  if (job.source_range == Range::Vae) {
    return job.mask.data ? launch<3, Range::Vae, true>(job, tiled, stream)
                         : launch<3, Range::Vae, false>(job, tiled, stream);
  }
  switch (job.target.channels) {
    case 1: return launch<1, Range::Unit, false>(job, tiled, stream);
    case 2: return launch<2, Range::Unit, false>(job, tiled, stream);
    case 3: return launch<3, Range::Unit, false>(job, tiled, stream);
    default: return launch<4, Range::Unit, false>(job, tiled, stream);
  }
}

}  // namespace

void resample_cuda(const ResampleJob& job, CudaStream stream) {
  const char* op = job.mask.data                    ? "paste_from_vae"
                   : job.source_range == Range::Vae ? "resize_from_vae"
                                                    : "crop_resize";
  const cuda::DeviceGuard guard(op, stream.device);
  cuda::Tables tables(op, stream);

  const auto key = [](int64_t in, int64_t out, int64_t first, int64_t count, int phase) {
    return AxisKey{static_cast<int>(in), static_cast<int>(out), static_cast<int>(first), static_cast<int>(count),
                   phase};
  };
  const Layout layout = layout_of(job.source, job.vertical_first);
  const PlacedAxis x = place(tables, key(job.source.width, job.width, job.left, job.target.width, layout.phase));
  const PlacedAxis y = place(tables, key(job.source.height, job.height, job.top, job.target.height, 0));
  const std::optional<Plan> plan = plan_tiles(job, *x.table, *y.table, layout.reading, kSharedBytes);
  const TileJob tile_job{job.source,       job.target,       job.mask,          x.axis, y.axis, plan.value_or(Plan{}),
                         job.source_range, job.target_range, job.vertical_first};
  launch(tile_job, plan.has_value(), cuda::handle(stream));
  cuda::check(op, cudaGetLastError());
}

}  // namespace animdetail
