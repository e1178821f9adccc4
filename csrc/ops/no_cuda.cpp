// Stands in for the CUDA kernels in a build without them.

#include <stdexcept>

#include "animdetail/ops.h"

namespace animdetail {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw std::invalid_argument(
      std::string(op) +
      ": the tensors are on a CUDA device and this build of animdetail-trt has no CUDA kernels. "
      "Move them to the CPU with .cpu()");
}

}  // namespace

void resample_cuda(const ResampleJob&, CudaStream) { refuse("crop_resize"); }
void feather_cuda(const FeatherJob&, CudaStream) { refuse("feather_mask"); }
void paste_cuda(const PasteJob&, CudaStream) { refuse("alpha_paste"); }

}  // namespace animdetail
