#include "contract.h"

namespace animdetail {

void alpha_paste(const TensorView& canvas, const TensorView& patch, const TensorView& mask, int64_t x, int64_t y) {
  const char* op = "alpha_paste";
  check_output(op, {"canvas", canvas});
  check_input(op, {"patch", patch});
  check_input(op, {"mask", mask});
  check_same_device(op, {"canvas", canvas}, {{"patch", patch}, {"mask", mask}});
  check(canvas.rank == 4, op, ": canvas must be (f, h, w, c), got shape ", canvas);
  check(patch.rank == 4 && patch.shape[0] == canvas.shape[0] && patch.shape[3] == canvas.shape[3], op,
        ": patch must be (f, h, w, c) with f and c of canvas ", canvas, ", got shape ", patch);
  const bool batched = mask.rank == 3;
  check(batched || mask.rank == 2, op, ": mask must be (h, w) or (f, h, w), got shape ", mask);
  check(mask.shape[mask.rank - 2] == patch.shape[1] && mask.shape[mask.rank - 1] == patch.shape[2], op,
        ": mask must be as high and wide as patch ", patch, ", got shape ", mask, ". Resize it first");
  check(!batched || mask.shape[0] == 1 || mask.shape[0] == canvas.shape[0], op,
        ": mask must be one, or one for each of the ", canvas.shape[0], " frames, got shape ", mask,
        ". Merge them first: ops.merge_masks");

  const int64_t left = std::max<int64_t>(0, x), right = std::min(canvas.shape[2], x + patch.shape[2]);
  const int64_t top = std::max<int64_t>(0, y), bottom = std::min(canvas.shape[1], y + patch.shape[1]);
  if (left >= right || top >= bottom || canvas.shape[0] == 0) return;

  PasteJob job{};
  job.canvas = window(pixels(canvas), left, top, right - left, bottom - top);
  job.patch = window(pixels(patch), left - x, top - y, right - left, bottom - top);
  job.mask_frame_stride = batched && mask.shape[0] > 1 ? mask.strides[0] : 0;
  job.mask_row_stride = mask.strides[mask.rank - 2];
  job.mask_pixel_stride = mask.strides[mask.rank - 1];
  job.mask =
      static_cast<const float*>(mask.data) + (top - y) * job.mask_row_stride + (left - x) * job.mask_pixel_stride;
  canvas.device.kind == DeviceKind::Cuda ? paste_cuda(job) : paste_cpu(job);
}

}  // namespace animdetail
