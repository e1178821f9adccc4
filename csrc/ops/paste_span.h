#pragma once

// How a thread pastes four neighbouring floats of a row, of interleaved RGB, or one pixel of any layout.

#include <cstdint>

#include "animdetail/math/blend.h"
#include "animdetail/ops.h"

namespace animdetail::blend {

struct alignas(16) FourFloats {
  float value[4];
};

struct SpanJob {
  PasteJob job;
  int64_t spans;       // of a row
  int shift;           // floats between the 16 bytes that the first span begins at and the first pixel
  bool packed;         // RGB side by side, in canvas and patch, in rows whose 16-byte boundaries lie alike
  bool patch_aligned;  // as the canvas is
};

inline SpanJob span_job(const PasteJob& job) {
  const Pixels &canvas = job.canvas, &patch = job.patch;
  const auto rgb = [](const Pixels& pixels) {
    return pixels.channels == 3 && pixels.channel_stride == 1 && pixels.pixel_stride == 3;
  };
  const auto even = [](const Pixels& pixels) { return pixels.row_stride % 4 == 0 && pixels.frame_stride % 4 == 0; };
  const auto past = [](const Pixels& pixels) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(pixels.data) / sizeof(float) % 4);
  };
  SpanJob spans{job, canvas.width, 0, false, false};
  if (rgb(canvas) && rgb(patch) && even(canvas)) {
    spans.packed = true;
    spans.shift = past(canvas);
    spans.patch_aligned = even(patch) && past(patch) == past(canvas);
    spans.spans = (3 * canvas.width + spans.shift + 3) / 4;
  }
  return spans;
}

ANIMDETAIL_HD int64_t count(const SpanJob& spans) {
  return spans.job.canvas.frames * spans.job.canvas.height * spans.spans;
}

struct SpanAt {
  float* canvas;
  const float* patch;
  const float* mask;
  int64_t first;  // float of the row, or pixel
};

ANIMDETAIL_HD SpanAt span_at(const SpanJob& spans, int64_t index) {
  const PasteJob& job = spans.job;
  const int64_t row_index = index / spans.spans, frame = row_index / job.canvas.height,
                row = row_index - frame * job.canvas.height, i = index - row_index * spans.spans;
  return {job.canvas.data + frame * job.canvas.frame_stride + row * job.canvas.row_stride,
          job.patch.data + frame * job.patch.frame_stride + row * job.patch.row_stride,
          job.mask.data + frame * job.mask.frame_stride + row * job.mask.row_stride,
          spans.packed ? 4 * i - spans.shift : i};
}

// What a span is blended of.
struct Operands {
  FourFloats below, above, alpha;
};

ANIMDETAIL_HD bool whole(const SpanJob& spans, const SpanAt& at) {
  return at.first >= 0 && at.first + 4 <= 3 * spans.job.canvas.width;
}

ANIMDETAIL_HD Operands load(const SpanJob& spans, const SpanAt& at) {
  Operands operands;
  operands.below = *reinterpret_cast<const FourFloats*>(at.canvas + at.first);
  if (spans.patch_aligned) {
    operands.above = *reinterpret_cast<const FourFloats*>(at.patch + at.first);
  } else {
    ANIMDETAIL_UNROLL
    for (int i = 0; i < 4; ++i) operands.above.value[i] = at.patch[at.first + i];
  }
  // Four floats are of two pixels.
  const int64_t pixel = at.first / 3, stride = spans.job.mask.pixel_stride;
  const int of_first = static_cast<int>(3 * pixel + 3 - at.first);
  const float first = at.mask[pixel * stride], second = at.mask[(pixel + 1) * stride];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) operands.alpha.value[i] = i < of_first ? first : second;
  return operands;
}

ANIMDETAIL_HD void store(const Operands& operands, const SpanAt& at) {
  FourFloats result;
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) {
    result.value[i] = alpha_over(operands.below.value[i], operands.above.value[i], operands.alpha.value[i]);
  }
  *reinterpret_cast<FourFloats*>(at.canvas + at.first) = result;
}

// The ends of a row, which are no whole span.
ANIMDETAIL_HD void paste_part(const SpanJob& spans, const SpanAt& at) {
  for (int i = 0; i < 4; ++i) {
    const int64_t element = at.first + i;
    if (element < 0 || element >= 3 * spans.job.canvas.width) continue;
    at.canvas[element] =
        alpha_over(at.canvas[element], at.patch[element], at.mask[element / 3 * spans.job.mask.pixel_stride]);
  }
}

ANIMDETAIL_HD void paste_pixel(const SpanJob& spans, const SpanAt& at) {
  const Pixels &canvas = spans.job.canvas, &patch = spans.job.patch;
  const float alpha = at.mask[at.first * spans.job.mask.pixel_stride];
  for (int64_t c = 0; c < canvas.channels; ++c) {
    float& value = at.canvas[at.first * canvas.pixel_stride + c * canvas.channel_stride];
    value = alpha_over(value, at.patch[at.first * patch.pixel_stride + c * patch.channel_stride], alpha);
  }
}

// The spans index, index + step, ... (at_once of them): all are read before the first is written.
template <int at_once>
ANIMDETAIL_HD void paste_spans(const SpanJob& spans, int64_t index, int64_t step) {
  const int64_t spans_count = count(spans);
  SpanAt at[at_once];
  Operands operands[at_once];
  bool held[at_once];
  ANIMDETAIL_UNROLL
  for (int k = 0; k < at_once; ++k) {
    held[k] = false;
    if (index + k * step >= spans_count) continue;
    at[k] = span_at(spans, index + k * step);
    if (!spans.packed) {
      paste_pixel(spans, at[k]);
    } else if (whole(spans, at[k])) {
      operands[k] = load(spans, at[k]);
      held[k] = true;
    } else {
      paste_part(spans, at[k]);
    }
  }
  ANIMDETAIL_UNROLL
  for (int k = 0; k < at_once; ++k) {
    if (held[k]) store(operands[k], at[k]);
  }
}

}  // namespace animdetail::blend
