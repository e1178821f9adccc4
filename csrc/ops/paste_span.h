#pragma once

// How the threads of a warp paste a row: spans of four neighbouring floats of interleaved RGB, or pixels of any layout.

#include <cstdint>

#include "animdetail/math/blend.h"
#include "animdetail/ops.h"

namespace animdetail::blend {

struct SpanJob {
  PasteJob job;
  int shift;           // elements between the four that the first span begins at and the first pixel
  bool packed;         // RGB side by side, in canvas and patch, in canvas rows whose fours begin alike
  bool patch_aligned;  // as the canvas is
};

inline SpanJob span_job(const PasteJob& job) {
  const Pixels &canvas = job.canvas, &patch = job.patch;
  const auto rgb = [](const Pixels& pixels) {
    return pixels.channels == 3 && pixels.channel_stride == 1 && pixels.pixel_stride == 3;
  };
  const auto even = [](const Pixels& pixels) { return pixels.row_stride % 4 == 0 && pixels.frame_stride % 4 == 0; };
  const auto past = [](const Pixels& pixels) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(pixels.data) / bytes_of(pixels.element) % 4);
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

inline bool all_floats(const PasteJob& job) {
  return job.canvas.element == Element::Float32 && job.patch.element == Element::Float32;
}

// A row of the job, whose elements are floats, as the compiler then knows, or (any) what its pictures say.
template <bool any>
struct Row {
  char *canvas, *patch;
  const float* mask;
  Element below, above;

  ANIMDETAIL_HD char* canvas_at(int64_t element) const { return canvas + element * bytes_of(below); }
  ANIMDETAIL_HD const char* patch_at(int64_t element) const { return patch + element * bytes_of(above); }
};

template <bool any>
ANIMDETAIL_HD Row<any> row_at(const SpanJob& spans, int64_t frame, int64_t row) {
  const PasteJob& job = spans.job;
  Pixels canvas = job.canvas, patch = job.patch;
  if (!any) canvas.element = patch.element = Element::Float32;
  return {at(canvas, frame * canvas.frame_stride + row * canvas.row_stride),
          at(patch, frame * patch.frame_stride + row * patch.row_stride),
          job.mask.data + frame * job.mask.frame_stride + row * job.mask.row_stride, canvas.element, patch.element};
}

// What a span is blended of.
struct Operands {
  RawFour below, above;
  float alpha[4];
};

template <bool any>
ANIMDETAIL_HD Operands load(const SpanJob& spans, const Row<any>& row, int first) {
  Operands operands;
  operands.below = load_four(row.canvas_at(first), row.below);
  const char* patch = row.patch_at(first);
  operands.above = spans.patch_aligned ? load_four(patch, row.above) : gather_four(patch, row.above);
  // Four elements are of two pixels.
  const int pixel = first / 3, of_first = 3 * pixel + 3 - first;
  const float* mask = row.mask + pixel * spans.job.mask.pixel_stride;
  const float alpha = mask[0], next_alpha = mask[spans.job.mask.pixel_stride];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) operands.alpha[i] = i < of_first ? alpha : next_alpha;
  return operands;
}

template <bool any>
ANIMDETAIL_HD void store(const Operands& operands, const Row<any>& row, int first) {
  float result[4];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) {
    result[i] =
        alpha_over(value_of(operands.below, i, row.below), value_of(operands.above, i, row.above), operands.alpha[i]);
  }
  store_four(result, row.canvas_at(first), row.below);
}

template <bool any>
ANIMDETAIL_HD void paste_element(const Row<any>& row, int64_t canvas, int64_t patch, float alpha) {
  char* to = row.canvas_at(canvas);
  write(alpha_over(read(to, row.below), read(row.patch_at(patch), row.above), alpha), to, row.below);
}

// The ends of a row, which are no whole span.
template <bool any>
ANIMDETAIL_HD void paste_part(const SpanJob& spans, const Row<any>& row, int first, int length) {
  for (int element = first < 0 ? 0 : first; element < first + 4 && element < length; ++element) {
    paste_element(row, element, element, row.mask[element / 3 * spans.job.mask.pixel_stride]);
  }
}

// The spans thread, thread + threads, ... of a row, at_once of them read before the first is written.
template <int at_once, bool any>
ANIMDETAIL_HD void paste_spans(const SpanJob& spans, const Row<any>& row, int thread, int threads) {
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
        store(operands[k], row, at);
      } else {
        paste_part(spans, row, at, length);
      }
    }
  }
}

template <bool any>
ANIMDETAIL_HD void paste_pixels(const SpanJob& spans, const Row<any>& row, int thread, int threads) {
  const Pixels &canvas = spans.job.canvas, &patch = spans.job.patch;
  for (int64_t x = thread; x < canvas.width; x += threads) {
    const float alpha = row.mask[x * spans.job.mask.pixel_stride];
    for (int64_t c = 0; c < canvas.channels; ++c) {
      paste_element(row, x * canvas.pixel_stride + c * canvas.channel_stride,
                    x * patch.pixel_stride + c * patch.channel_stride, alpha);
    }
  }
}

template <int at_once, bool any>
ANIMDETAIL_HD void paste_row(const SpanJob& spans, const Row<any>& row, int thread, int threads) {
  if (spans.packed) {
    paste_spans<at_once>(spans, row, thread, threads);
  } else {
    paste_pixels(spans, row, thread, threads);
  }
}

}  // namespace animdetail::blend
