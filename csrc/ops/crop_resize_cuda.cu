#include <algorithm>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "cuda_support.h"
#include "resample_plan.h"

namespace animdetail {
namespace {

using namespace resample;

constexpr int kDirectThreads = 128;

template <int channels>
__device__ __forceinline__ void sum_first(const TileJob& job, const Tile& tile, uint32_t* shared) {
  switch (channels == 3 ? job.vertical_first ? job.y.steps : job.x.steps : 0) {  // only RGB is worth the code
    case 1: return first_pass<channels, 1>(job, tile, shared, threadIdx.x, kThreads);
    case 2: return first_pass<channels, 2>(job, tile, shared, threadIdx.x, kThreads);
    default: return first_pass<channels, 0>(job, tile, shared, threadIdx.x, kThreads);
  }
}

template <int channels, bool blends, bool any>
__device__ __forceinline__ void sum_second(const TileJob& job, const Tile& tile, const uint32_t* shared) {
  switch (channels == 3 ? job.vertical_first ? job.x.steps : job.y.steps : 0) {
    case 1: return second_pass<channels, 1, blends, any>(job, tile, shared, threadIdx.x, kThreads);
    case 2: return second_pass<channels, 2, blends, any>(job, tile, shared, threadIdx.x, kThreads);
    default: return second_pass<channels, 0, blends, any>(job, tile, shared, threadIdx.x, kThreads);
  }
}

template <int channels, Range range, bool blends, bool any>
__global__ __launch_bounds__(kThreads, kBlocks) void resample_tiles(const __grid_constant__ TileJob job) {
  extern __shared__ __align__(16) uint32_t shared[];
  for (int64_t frame = blockIdx.z; frame < job.target.frames; frame += gridDim.z) {
    for (int row = blockIdx.y; row < job.plan.down; row += gridDim.y) {
      const Tile tile = tile_at(job, frame, row, blockIdx.x);
      load<channels, range, any>(job, tile, shared, threadIdx.x, kThreads);
      __syncthreads();  // which the second pass of the tile before has reached as well
      sum_first<channels>(job, tile, shared);
      __syncthreads();
      sum_second<channels, blends, any>(job, tile, shared);
    }
  }
}

template <int channels, bool blends, bool any>
__global__ __launch_bounds__(kDirectThreads) void resample_direct(const __grid_constant__ TileJob job,
                                                                  int64_t outputs) {
  __shared__ int32_t parts[kDirectThreads / kWarp][channels];
  for (int64_t index = blockIdx.x; index < outputs; index += gridDim.x) {
    const Output output = output_at(job, index);
    int32_t sums[channels];
    direct_sums<channels, any>(job, output, sums, threadIdx.x, kDirectThreads);
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
      direct_store<channels, blends, any>(job, output, sums);
    }
    __syncthreads();
  }
}

std::string name_of(const AxisKey& key) { return {reinterpret_cast<const char*>(&key), sizeof key}; }

// Kept, since to make one takes the sine of every tap. Guarded by Tables.
std::shared_ptr<const AxisTable> table_of(cuda::Tables&, const AxisKey& key) {
  static std::map<std::string, std::shared_ptr<const AxisTable>> made;
  constexpr size_t kMaxMade = 256;
  const std::string name = name_of(key);
  std::shared_ptr<const AxisTable> table = made[name];
  if (!table) {
    if (made.size() > kMaxMade) made.clear();
    table = made[name] = std::make_shared<const AxisTable>(key);
  }
  return table;
}

int attribute(const char* op, cudaDeviceAttr name, int device) {
  int value = 0;
  cuda::check(op, cudaDeviceGetAttribute(&value, name, device));
  return value;
}

Card card_of(const char* op, int device) {
  return {attribute(op, cudaDevAttrMultiProcessorCount, device),
          attribute(op, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
          attribute(op, cudaDevAttrReservedSharedMemoryPerBlock, device),
          attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

// The tables of an axis on the current device: what tiles read, or what is read without them.
Axis place(cuda::Tables& tables, const AxisTable& table, bool tiled) {
  const void* placed = tables.get((tiled ? "blocks" : "taps") + name_of(table.key), [&] {
    std::vector<char> bytes;
    cuda::append(bytes, table.spans);
    bytes.resize((bytes.size() + 15) / 16 * 16);
    tiled ? cuda::append(bytes, table.blocks()) : cuda::append(bytes, table.taps);
    return bytes;
  });
  const char* after = static_cast<const char*>(placed) + (table.spans.size() * sizeof(Span) + 15) / 16 * 16;
  Axis axis = table.axis();
  axis.spans = static_cast<const Span*>(placed);
  axis.blocks = reinterpret_cast<const TapBlock*>(after);
  axis.taps = reinterpret_cast<const int32_t*>(after);
  return axis;
}

// most_bytes: what a block may share on this card, or 0: without tiles. A kernel is allowed all of it at once, since a
// plan's own size would be less than a captured one before it needs.
template <int channels, Range range, bool blends, bool any>
void launch(const TileJob& job, int most_bytes, cudaStream_t stream) {
  if (most_bytes > 0) {
    const auto kernel = resample_tiles<channels, range, blends, any>;
    if (job.plan.shared_bytes > 48 << 10) {
      cuda::check("resample", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes));
    }
    const dim3 grid(static_cast<unsigned>(job.plan.across),
                    static_cast<unsigned>(std::min(job.plan.down, cuda::kMaxGridY)),
                    static_cast<unsigned>(std::min(job.target.frames, cuda::kMaxGridY)));
    kernel<<<grid, kThreads, job.plan.shared_bytes, stream>>>(job);
  } else {
    const int64_t outputs = job.target.frames * job.target.height * job.target.width;
    resample_direct<channels, blends, any><<<cuda::blocks(outputs), kDirectThreads, 0, stream>>>(job, outputs);
  }
}

template <bool any>
void launch_rgb(const TileJob& job, int most_bytes, cudaStream_t stream) {
  if (job.source_range == Range::Unit) return launch<3, Range::Unit, false, any>(job, most_bytes, stream);
  job.mask.data ? launch<3, Range::Vae, true, any>(job, most_bytes, stream)
                : launch<3, Range::Vae, false, any>(job, most_bytes, stream);
}

void launch(const TileJob& job, int most_bytes, cudaStream_t stream) {
  switch (job.target.channels) {
    case 1: return launch<1, Range::Unit, false, false>(job, most_bytes, stream);
    case 2: return launch<2, Range::Unit, false, false>(job, most_bytes, stream);
    case 3:
      return all_floats(job) ? launch_rgb<false>(job, most_bytes, stream) : launch_rgb<true>(job, most_bytes, stream);
    default: return launch<4, Range::Unit, false, false>(job, most_bytes, stream);
  }
}

}  // namespace

void resample_cuda(const ResampleJob& job, CudaStream stream) {
  const char* op = job.mask.data                    ? "paste_from_vae"
                   : job.source_range == Range::Vae ? "resize_from_vae"
                                                    : "crop_resize";
  const cuda::DeviceGuard guard(op, stream.device);
  cuda::Tables tables(op, stream);

  const Layout read = layout_of(job.source, job.vertical_first), written = layout_of(job.target, job.vertical_first);
  const auto table = [&](int64_t in, int64_t out, int64_t first, int64_t count, int phase, int lead) {
    return table_of(tables, {static_cast<int>(in), static_cast<int>(out), static_cast<int>(first),
                             static_cast<int>(count), phase, lead});
  };
  const auto tables_of = [&](int lead) {
    return std::pair(table(job.source.width, job.width, job.left, job.target.width, read.phase, lead),
                     table(job.source.height, job.height, job.top, job.target.height, 0, 0));
  };
  auto [x, y] = tables_of(written.phase);
  const Card card = card_of(op, stream.device);
  const auto plan = plan_tiles(job, *x, *y, read.access, written.access, card);
  if (!plan && written.phase) std::tie(x, y) = tables_of(0);
  const bool tiled = plan.has_value();
  const TileJob tile_job{job.source,
                         job.target,
                         job.mask,
                         place(tables, *x, tiled),
                         place(tables, *y, tiled),
                         plan.value_or(Plan{}),
                         job.source_range,
                         job.target_range,
                         job.vertical_first};
  launch(tile_job, tiled ? card.most_bytes : 0, cuda::handle(stream));
  cuda::check(op, cudaGetLastError());
}

}  // namespace animdetail
