#include "animdetail/math/blend.h"
#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "row_kernels.h"

namespace animdetail {
namespace {

bool packed_rgb(const Pixels& pixels) {
  return pixels.element == Element::Float32 && pixels.channels == 3 && pixels.channel_stride == 1 &&
         pixels.pixel_stride == 3;
}

void paste_row(const PasteJob& job, int64_t frame, int64_t row) {
  const Pixels &canvas = job.canvas, &patch = job.patch;
  const int64_t below = frame * canvas.frame_stride + row * canvas.row_stride;
  const int64_t above = frame * patch.frame_stride + row * patch.row_stride;
  const float* mask = job.mask.data + frame * job.mask.frame_stride + row * job.mask.row_stride;
  if (packed_rgb(canvas) && packed_rgb(patch) && job.mask.pixel_stride == 1) {
    rows::paste_rgb(reinterpret_cast<float*>(at(canvas, below)), reinterpret_cast<const float*>(at(patch, above)), mask,
                    canvas.width);
    return;
  }
  for (int64_t x = 0; x < canvas.width; ++x) {
    for (int64_t c = 0; c < canvas.channels; ++c) {
      char* to = at(canvas, below + x * canvas.pixel_stride + c * canvas.channel_stride);
      const char* from = at(patch, above + x * patch.pixel_stride + c * patch.channel_stride);
      const float blended =
          blend::alpha_over(read(to, canvas.element), read(from, patch.element), mask[x * job.mask.pixel_stride]);
      write(blended, to, canvas.element);
    }
  }
}

}  // namespace

void paste_cpu(const PasteJob& job) {
  constexpr int64_t kBand = 64;
  const int64_t bands = (job.canvas.height + kBand - 1) / kBand;
  parallel_tasks(job.canvas.frames * bands, [&](const NextTask& next) {
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t frame = task / bands, first = task % bands * kBand;
      for (int64_t row = first; row < std::min(first + kBand, job.canvas.height); ++row) paste_row(job, frame, row);
    }
  });
}

}  // namespace animdetail
