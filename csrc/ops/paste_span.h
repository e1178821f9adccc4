#pragma once

// How the threads of a warp paste a row: spans of four neighbouring floats of interleaved RGB, or pixels of any layout.

#include <cstdint>

#include "animdetail/math/blend.h"
#include "animdetail/ops.h"

namespace animdetail::blend {

struct alignas(16) FourFloats {
  float value[4];
};

struct SpanJob {
  PasteJob job;
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
  SpanJob spans{job, 0, false, false};
  constexpr int64_t kLongest = 1 << 28;  // elements of a row are counted in 32 bits
  if (rgb(canvas) && rgb(patch) && even(canvas) && canvas.width <= kLongest) {
    spans.packed = true;
    spans.shift = past(canvas);
    spans.patch_aligned = even(patch) && past(patch) == past(canvas);
  }
  return spans;
}

struct Row {
  float* canvas;
  const float* patch;
  const float* mask;
};

ANIMDETAIL_HD Row row_at(const SpanJob& spans, int64_t frame, int64_t row) {
  const PasteJob& job = spans.job;
  return {job.canvas.data + frame * job.canvas.frame_stride + row * job.canvas.row_stride,
          job.patch.data + frame * job.patch.frame_stride + row * job.patch.row_stride,
          job.mask.data + frame * job.mask.frame_stride + row * job.mask.row_stride};
}

// What a span is blended of.
struct Operands {
  FourFloats below, above, alpha;
};

ANIMDETAIL_HD Operands load(const SpanJob& spans, const Row& row, int first) {
  Operands operands;
  operands.below = *reinterpret_cast<const FourFloats*>(row.canvas + first);
  if (spans.patch_aligned) {
    operands.above = *reinterpret_cast<const FourFloats*>(row.patch + first);
  } else {
    ANIMDETAIL_UNROLL
    for (int i = 0; i < 4; ++i) operands.above.value[i] = row.patch[first + i];
  }
  // Four floats are of two pixels.
  const int pixel = first / 3, of_first = 3 * pixel + 3 - first;
  const float* mask = row.mask + pixel * spans.job.mask.pixel_stride;
  const float alpha = mask[0], next_alpha = mask[spans.job.mask.pixel_stride];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) operands.alpha.value[i] = i < of_first ? alpha : next_alpha;
  return operands;
}

ANIMDETAIL_HD void store(const Operands& operands, float* to) {
  FourFloats result;
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) {
    result.value[i] = alpha_over(operands.below.value[i], operands.above.value[i], operands.alpha.value[i]);
  }
  *reinterpret_cast<FourFloats*>(to) = result;
}

// The ends of a row, which are no whole span.
ANIMDETAIL_HD void paste_part(const SpanJob& spans, const Row& row, int first, int length) {
  for (int element = first < 0 ? 0 : first; element < first + 4 && element < length; ++element) {
    row.canvas[element] =
        alpha_over(row.canvas[element], row.patch[element], row.mask[element / 3 * spans.job.mask.pixel_stride]);
  }
}

// The spans thread, thread + threads, ... of a row, at_once of them read before the first is written.
template <int at_once>
ANIMDETAIL_HD void paste_spans(const SpanJob& spans, const Row& row, int thread, int threads) {
  const int length = static_cast<int>(3 * spans.job.canvas.width);
  for (int first = 4 * thread - spans.shift; first < length; first += 4 * at_once * threads) {
    Operands operands[at_once];
    ANIMDETAIL_UNROLL
    for (int k = 0; k < at_once; ++k) {
      const int at = first + 4 * k * threads;
      if (at >= 0 && at + 4 <= length) operands[k] = load(spans, row, at);
    }
    ANIMDETAIL_UNROLL
    for (int k = 0; k < at_once; ++k) {
      const int at = first + 4 * k * threads;
      if (at >= 0 && at + 4 <= length) {
        store(operands[k], row.canvas + at);
      } else {
        paste_part(spans, row, at, length);
      }
    }
  }
}

ANIMDETAIL_HD void paste_pixels(const SpanJob& spans, const Row& row, int thread, int threads) {
  const Pixels &canvas = spans.job.canvas, &patch = spans.job.patch;
  for (int64_t x = thread; x < canvas.width; x += threads) {
    const float alpha = row.mask[x * spans.job.mask.pixel_stride];
    for (int64_t c = 0; c < canvas.channels; ++c) {
      float& value = row.canvas[x * canvas.pixel_stride + c * canvas.channel_stride];
      value = alpha_over(value, row.patch[x * patch.pixel_stride + c * patch.channel_stride], alpha);
    }
  }
}

template <int at_once>
ANIMDETAIL_HD void paste_row(const SpanJob& spans, const Row& row, int thread, int threads) {
  if (spans.packed) {
    paste_spans<at_once>(spans, row, thread, threads);
  } else {
    paste_pixels(spans, row, thread, threads);
  }
}

}  // namespace animdetail::blend
