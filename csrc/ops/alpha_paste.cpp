#include "contract.h"
#include "shared_memory.h"

namespace animdetail {

void alpha_paste(const TensorView& canvas, const TensorView& patch, const TensorView& mask, int64_t x, int64_t y,
                 void* stream) {
  const char* op = "alpha_paste";
  check_target(op, {"canvas", canvas}, Values::Unit);
  check_pixels(op, {"patch", patch}, Values::Unit);
  check_same_device(op, {"canvas", canvas}, {{"patch", patch}, {"mask", mask}});
  check(canvas.rank == 4, op, ": canvas must be (f, h, w, c), got shape ", canvas);
  check(patch.rank == 4 && patch.shape[0] == canvas.shape[0] && patch.shape[3] == canvas.shape[3], op,
        ": patch must be (f, h, w, c) with f and c of canvas ", canvas, ", got shape ", patch);
  check_mask(op, mask, patch);
  check_rgb(op, {"canvas", canvas}, 3);
  check_rgb(op, {"patch", patch}, 3);

  const Overlap overlap(pixels(canvas), x, y, patch.shape[2], patch.shape[1]);
  if (overlap.empty() || is_empty(canvas)) return;
  const auto [left, top, width, height] = overlap;
  const PasteJob job{window(pixels(canvas), left, top, width, height),
                     window(pixels(patch), left - x, top - y, width, height), window(mask_of(mask), left - x, top - y)};
  check_apart(op, "canvas", footprint(job.canvas), "patch", footprint(job.patch));
  check_apart(op, "canvas", footprint(job.canvas), "mask", footprint(job.mask, job.canvas));
  canvas.device.kind == DeviceKind::Cuda ? paste_cuda(job, {canvas.device.index, stream}) : paste_cpu(job);
}

}  // namespace animdetail
