#include "contract.h"
#include "shared_memory.h"

namespace animdetail {

void feather_mask(const TensorView& out, const TensorView& mask, const TensorView& weights, double alpha,
                  void* stream) {
  const char* op = "feather_mask";
  check_input(op, {"mask", mask});
  check_input(op, {"weights", weights});
  check_output(op, {"out", out});
  check_same_device(op, {"out", out}, {{"mask", mask}});
  check(mask.rank == 2 || mask.rank == 3, op, ": mask must be (h, w) or (n, h, w), got shape ", mask);
  check(out.rank == mask.rank && std::equal(out.shape, out.shape + out.rank, mask.shape), op,
        ": out must have the shape of mask ", mask, ", got shape ", out);
  check(alpha >= 0 && alpha <= 255, op, ": alpha is ", alpha, ". It must be 0 to 255");
  check(weights.rank == 1 && weights.shape[0] % 2 == 1 && (weights.strides[0] == 1 || weights.shape[0] == 1) &&
            weights.device.kind == DeviceKind::Cpu,
        op, ": weights must be an odd number of packed floats on the CPU, got shape ", weights);

  const int rows = mask.rank - 2, columns = mask.rank - 1;
  const bool batched = mask.rank == 3;
  FeatherJob job{};
  job.mask = static_cast<const float*>(mask.data);
  job.out = static_cast<float*>(out.data);
  job.count = batched ? mask.shape[0] : 1;
  job.height = mask.shape[rows];
  job.width = mask.shape[columns];
  for (int axis = batched ? 0 : 1; axis < 3; ++axis) {
    job.mask_strides[axis] = mask.strides[axis - (batched ? 0 : 1)];
    job.out_strides[axis] = out.strides[axis - (batched ? 0 : 1)];
  }
  job.weights = static_cast<const float*>(weights.data);
  job.radius = weights.shape[0] / 2;
  job.factor = static_cast<float>(alpha / 255.0);
  if (job.count == 0 || job.height == 0 || job.width == 0) return;
  check(job.radius < std::min(job.height, job.width), op, ": a kernel of ", weights.shape[0],
        " does not fit a mask of shape ", mask);
  const auto memory_of = [&](const TensorView& view, const int64_t* strides) -> Footprint {
    return {static_cast<const char*>(view.data),
            sizeof(float),
            {job.count, job.height, job.width, 1},
            {strides[0] * 4, strides[1] * 4, strides[2] * 4, 0}};
  };
  check_apart(op, "out", memory_of(out, job.out_strides), "mask", memory_of(mask, job.mask_strides));
  out.device.kind == DeviceKind::Cuda ? feather_cuda(job, {out.device.index, stream}) : feather_cpu(job);
}

}  // namespace animdetail
