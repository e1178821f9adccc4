#include "contract.h"
#include "shared_memory.h"

namespace animdetail {
namespace {

// Tap positions are 32-bit and Pillow's are floats: sides beyond this are refused rather than resampled wrongly.
constexpr int64_t kMaxSide = 1 << 24;

void check_side(const char* op, const char* name, int64_t side) {
  check(side >= 1 && side <= kMaxSide, op, ": ", name, " is ", side, ". It must be 1 to ", kMaxSide);
}

Pixels crop(const char* op, const Pixels& frames, CropRegion region) {
  const auto [x1, y1, x2, y2] = region;
  check(x1 >= 0 && y1 >= 0, op, ": crop_region (", x1, ", ", y1, ", ", x2, ", ", y2,
        ") starts at a negative coordinate. Clamp x1 and y1 to 0");
  const int64_t right = std::min(x2, frames.width), bottom = std::min(y2, frames.height);
  check(x1 < right && y1 < bottom, op, ": crop_region (", x1, ", ", y1, ", ", x2, ", ", y2, ") holds no pixel of the ",
        frames.width, "x", frames.height, " frames. Give x1 < x2 and y1 < y2 inside the frame");
  return window(frames, x1, y1, right - x1, bottom - y1);
}

bool vertical_first(const Pixels& source, int64_t width, int64_t height, PassOrder order) {
  return order == PassOrder::Pillow13 && height < source.height && source.height - height > 2 * (source.width - width);
}

void run(const char* op, const ResampleJob& job, Device device, void* stream) {
  check_side(op, "the crop's width", job.source.width);
  check_side(op, "the crop's height", job.source.height);
  check_side(op, "the new width", job.width);
  check_side(op, "the new height", job.height);
  if (job.target.frames == 0 || job.target.width == 0 || job.target.height == 0) return;
  const char* written = job.mask.data ? "canvas" : "out";
  const char* read = job.source_range == resample::Range::Vae ? "decoded" : "frames";
  check_apart(op, written, footprint(job.target), read, footprint(job.source));
  if (job.mask.data) check_apart(op, written, footprint(job.target), "mask", footprint(job.mask, job.target));
  device.kind == DeviceKind::Cuda ? resample_cuda(job, {device.index, stream}) : resample_cpu(job);
}

void check_frames(const char* op, const TensorView& frames) {
  check_pixels(op, {"frames", frames}, Values::Unit);
  check(frames.rank == 4 && frames.shape[3] >= 1 && frames.shape[3] <= 4, op,
        ": frames must be (f, h, w, c) with 1 to 4 channels, got shape ", frames);
}

}  // namespace

void crop_resize(const TensorView& out, const TensorView& frames, CropRegion region, PassOrder order, void* stream) {
  const char* op = "crop_resize";
  check_frames(op, frames);
  check_target(op, {"out", out}, Values::Unit);
  check_same_device(op, {"out", out}, {{"frames", frames}});
  check(out.rank == 4 && out.shape[0] == frames.shape[0] && out.shape[3] == frames.shape[3], op,
        ": out must be (f, height, width, c) with f and c of frames ", frames, ", got shape ", out);
  check_rgb(op, {"frames", frames}, 3);
  check_rgb(op, {"out", out}, 3);
  const Pixels source = crop(op, pixels(frames), region), target = pixels(out);
  run(op,
      {source, target, target.width, target.height, 0, 0, resample::Range::Unit, resample::Range::Unit,
       vertical_first(source, target.width, target.height, order)},
      out.device, stream);
}

void crop_resize_to_vae(const TensorView& out, const TensorView& frames, CropRegion region, int64_t width,
                        int64_t height, PassOrder order, void* stream) {
  const char* op = "crop_resize_to_vae";
  check_frames(op, frames);
  check_target(op, {"out", out}, Values::Any);
  check_same_device(op, {"out", out}, {{"frames", frames}});
  check(frames.shape[3] == 3, op, ": frames must have 3 channels, got shape ", frames);
  check(width >= 8 && height >= 8, op, ": size (", width, ", ", height,
        ") leaves nothing after the cut to multiples of 8. Both sides must be at least 8");
  const int64_t cut_width = width / 8 * 8, cut_height = height / 8 * 8;
  check(out.rank == 4 && out.shape[0] == frames.shape[0] && out.shape[1] == 3 && out.shape[2] == cut_height &&
            out.shape[3] == cut_width,
        op, ": out must be (", frames.shape[0], ", 3, ", cut_height, ", ", cut_width, "), got shape ", out);
  const Pixels source = crop(op, pixels(frames), region);
  run(op,
      {source, pixels(out, true), width, height, (width % 8) / 2, (height % 8) / 2, resample::Range::Unit,
       resample::Range::Vae, vertical_first(source, width, height, order)},
      out.device, stream);
}

void resize_from_vae(const TensorView& out, const TensorView& decoded, PassOrder order, void* stream) {
  const char* op = "resize_from_vae";
  check_pixels(op, {"decoded", decoded}, Values::Any);
  check_target(op, {"out", out}, Values::Unit);
  check_same_device(op, {"out", out}, {{"decoded", decoded}});
  check(decoded.rank == 4 && decoded.shape[1] == 3, op, ": decoded must be (f, 3, h, w), got shape ", decoded);
  check(out.rank == 4 && out.shape[0] == decoded.shape[0] && out.shape[3] == 3, op,
        ": out must be (f, height, width, 3) with f of decoded ", decoded, ", got shape ", out);
  const Pixels source = pixels(decoded, true), target = pixels(out);
  run(op,
      {source, target, target.width, target.height, 0, 0, resample::Range::Vae, resample::Range::Unit,
       vertical_first(source, target.width, target.height, order)},
      out.device, stream);
}

void paste_from_vae(const TensorView& canvas, const TensorView& decoded, const TensorView& mask, int64_t x, int64_t y,
                    int64_t width, int64_t height, PassOrder order, void* stream) {
  const char* op = "paste_from_vae";
  check_target(op, {"canvas", canvas}, Values::Unit);
  check_pixels(op, {"decoded", decoded}, Values::Any);
  check_same_device(op, {"canvas", canvas}, {{"decoded", decoded}, {"mask", mask}});
  check(canvas.device.kind == DeviceKind::Cuda, op, ": canvas is on ", canvas.device,
        ". Use resize_from_vae and alpha_paste there");
  check(decoded.rank == 4 && decoded.shape[1] == 3, op, ": decoded must be (f, 3, h, w), got shape ", decoded);
  check(canvas.rank == 4 && canvas.shape[0] == decoded.shape[0] && canvas.shape[3] == 3, op,
        ": canvas must be (f, h, w, 3) with f of decoded ", decoded, ", got shape ", canvas);
  TensorView patch = canvas;
  patch.shape[1] = height;
  patch.shape[2] = width;
  check_mask(op, mask, patch);

  const Overlap overlap(pixels(canvas), x, y, width, height);
  if (overlap.empty()) return;
  const auto [left, top, target_width, target_height] = overlap;
  const Pixels source = pixels(decoded, true);
  run(op,
      {source, window(pixels(canvas), left, top, target_width, target_height), width, height, left - x, top - y,
       resample::Range::Vae, resample::Range::Unit, vertical_first(source, width, height, order),
       window(mask_of(mask), left - x, top - y)},
      canvas.device, stream);
}

}  // namespace animdetail
