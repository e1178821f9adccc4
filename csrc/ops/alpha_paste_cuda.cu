#include <algorithm>

#include "cuda_support.h"
#include "paste_span.h"

namespace animdetail {
namespace {

constexpr int kWarp = 32, kRows = 8;  // of a block: a warp takes one at a time
constexpr int kAtOnce = 2;

template <bool any>
__global__ __launch_bounds__(kWarp* kRows, 4) void paste(const __grid_constant__ blend::SpanJob spans) {
  const Pixels& canvas = spans.job.canvas;
  for (int64_t frame = blockIdx.y; frame < canvas.frames; frame += gridDim.y) {
    for (int64_t row = blockIdx.x * kRows + threadIdx.y; row < canvas.height; row += gridDim.x * kRows) {
      blend::paste_row<kAtOnce>(spans, blend::row_at<any>(spans, frame, row), threadIdx.x, kWarp);
    }
  }
}

}  // namespace

void paste_cuda(const PasteJob& job, CudaStream stream) {
  const char* op = "alpha_paste";
  const cuda::DeviceGuard guard(op, stream.device);
  const dim3 grid(cuda::blocks((job.canvas.height + kRows - 1) / kRows),
                  static_cast<unsigned>(std::min<int64_t>(job.canvas.frames, cuda::kMaxGridY)));
  const auto kernel = blend::all_floats(job) ? paste<false> : paste<true>;
  kernel<<<grid, dim3(kWarp, kRows), 0, cuda::handle(stream)>>>(blend::span_job(job));
  cuda::check(op, cudaGetLastError());
}

}  // namespace animdetail
