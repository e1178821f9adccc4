#pragma once

// Checks that several ops share, and the switch on the device that follows them.

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "animdetail/check.h"
#include "animdetail/ops.h"

namespace animdetail {

struct Argument {
  const char* name;
  const TensorView& view;
};

// What the values of a picture mean, and so which types it may have.
enum class Values { Any, Unit };

inline std::optional<Element> element_of(DType dtype) {
  if (dtype == kFloat32) return Element::Float32;
  if (dtype == DType{DType::Float, 16}) return Element::Float16;
  if (dtype == DType{DType::BFloat, 16}) return Element::BFloat16;
  if (dtype == DType{DType::UInt, 8}) return Element::UInt8;
  return std::nullopt;
}

inline void check_device(const char* op, Argument argument) {
  check(argument.view.device.kind != DeviceKind::Other, op, ": ", argument.name,
        " is on a device that this package does not know. Move it to the CPU");
}

inline void check_input(const char* op, Argument argument) {
  check(argument.view.dtype == kFloat32, op, ": ", argument.name, " must be float32, got ", argument.view.dtype,
        ". Convert it: .float() in torch, .astype(\"float32\") in NumPy");
  check_device(op, argument);
}

inline void check_pixels(const char* op, Argument argument, Values values) {
  const std::optional<Element> element = element_of(argument.view.dtype);
  check(element && (values == Values::Unit || element != Element::UInt8), op, ": ", argument.name,
        " must be float32, float16", values == Values::Unit ? ", bfloat16 or uint8" : " or bfloat16", ", got ",
        argument.view.dtype, ". Convert it: .float() in torch, .astype(\"float32\") in NumPy");
  check_device(op, argument);
}

inline void check_rgb(const char* op, Argument argument, int channel_axis) {
  check(argument.view.dtype == kFloat32 || argument.view.shape[channel_axis] == 3, op, ": ", argument.name, " is ",
        argument.view.dtype, " and has ", argument.view.shape[channel_axis],
        " channels. Convert it to float32, or give it three");
}

inline void check_written(const char* op, Argument argument) {
  check(!argument.view.read_only, op, ": ", argument.name, " is read-only. Pass a copy of it");
  if (is_empty(argument.view)) return;
  for (int axis = 0; axis < argument.view.rank; ++axis) {
    check(argument.view.strides[axis] != 0 || argument.view.shape[axis] <= 1, op, ": ", argument.name,
          " is an expanded view whose elements share memory, so it cannot be written. Pass a copy of it");
  }
}

inline void check_output(const char* op, Argument argument) {
  check_input(op, argument);
  check_written(op, argument);
}

inline void check_target(const char* op, Argument argument, Values values) {
  check_pixels(op, argument, values);
  check_written(op, argument);
}

inline void check_same_device(const char* op, Argument first, std::initializer_list<Argument> others) {
  for (const Argument& other : others) {
    check(first.view.device == other.view.device, op, ": ", first.name, " is on ", first.view.device, " and ",
          other.name, " on ", other.view.device, ". Move them to one device");
  }
}

// f h w c, or f c h w where channels_first. A single frame, or row, is followed by none: torch up to 2.9 gives it a
// stride of 1, by which it would seem to begin at no whole four elements.
inline Pixels pixels(const TensorView& view, bool channels_first = false) {
  const int c = channels_first ? 1 : 3, h = channels_first ? 2 : 1, w = channels_first ? 3 : 2;
  const auto to_next = [&](int axis) { return view.shape[axis] > 1 ? view.strides[axis] : 0; };
  return {static_cast<char*>(view.data),
          view.shape[0],
          view.shape[h],
          view.shape[w],
          view.shape[c],
          to_next(0),
          to_next(h),
          view.strides[w],
          view.strides[c],
          element_of(view.dtype).value_or(Element::Float32)};
}

// (h, w), or (1 or f, h, w).
inline Mask mask_of(const TensorView& view) {
  const bool per_frame = view.rank == 3 && view.shape[0] > 1;
  return {static_cast<const float*>(view.data), per_frame ? view.strides[0] : 0, view.strides[view.rank - 2],
          view.strides[view.rank - 1]};
}

inline Mask window(Mask from, int64_t left, int64_t top) {
  from.data += top * from.row_stride + left * from.pixel_stride;
  return from;
}

// Of `patch` (f, h, w, c) the shape is read, no more.
inline void check_mask(const char* op, const TensorView& mask, const TensorView& patch) {
  check_input(op, {"mask", mask});
  check(mask.rank == 2 || mask.rank == 3, op, ": mask must be (h, w) or (f, h, w), got shape ", mask);
  check(mask.shape[mask.rank - 2] == patch.shape[1] && mask.shape[mask.rank - 1] == patch.shape[2], op,
        ": mask must be as high and wide as patch ", patch, ", got shape ", mask, ". Resize it first");
  check(mask.rank == 2 || mask.shape[0] == 1 || mask.shape[0] == patch.shape[0], op,
        ": mask must be one, or one for each of the ", patch.shape[0], " frames, got shape ", mask,
        ". Merge them first: ops.merge_masks");
}

// Where a patch of width x height at (x, y) lies on `canvas`; empty where it lies beside it.
struct Overlap {
  Overlap(const Pixels& canvas, int64_t x, int64_t y, int64_t patch_width, int64_t patch_height)
      : left(std::max<int64_t>(0, x)),
        top(std::max<int64_t>(0, y)),
        width(clipped_end(x, patch_width, canvas.width) - left),
        height(clipped_end(y, patch_height, canvas.height) - top) {}

  bool empty() const { return width <= 0 || height <= 0; }

  int64_t left, top, width, height;

 private:
  // Of [first, first + size) within [0, limit), for a `first` of any value.
  static int64_t clipped_end(int64_t first, int64_t size, int64_t limit) {
    return first >= limit ? limit : std::min(limit, first + size);
  }
};

inline Pixels window(Pixels from, int64_t left, int64_t top, int64_t width, int64_t height) {
  from.data = at(from, top * from.row_stride + left * from.pixel_stride);
  from.width = width;
  from.height = height;
  return from;
}

}  // namespace animdetail
