#include "cuda_support.h"
#include "paste_span.h"

namespace animdetail {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 2;

__global__ __launch_bounds__(kThreads, 4) void paste(const __grid_constant__ blend::SpanJob spans) {
  const int64_t count = blend::count(spans), block = kThreads * kAtOnce, all = block * gridDim.x;
  for (int64_t index = blockIdx.x * block + threadIdx.x; index < count; index += all) {
    blend::paste_spans<kAtOnce>(spans, index, kThreads);
  }
}

}  // namespace

void paste_cuda(const PasteJob& job, CudaStream stream) {
  const char* op = "alpha_paste";
  const cuda::DeviceGuard guard(op, stream.device);
  const blend::SpanJob spans = blend::span_job(job);
  constexpr int64_t kBlock = kThreads * kAtOnce;
  paste<<<cuda::blocks((blend::count(spans) + kBlock - 1) / kBlock), kThreads, 0, cuda::handle(stream)>>>(spans);
  cuda::check(op, cudaGetLastError());
}

}  // namespace animdetail
