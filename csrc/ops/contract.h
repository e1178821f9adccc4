#pragma once

// Checks that several ops share, and the switch on the device that follows them.

#include <algorithm>
#include <initializer_list>

#include "animdetail/check.h"
#include "animdetail/ops.h"

namespace animdetail {

struct Argument {
  const char* name;
  const TensorView& view;
};

inline void check_input(const char* op, Argument argument) {
  check(argument.view.dtype == kFloat32, op, ": ", argument.name, " must be float32, got ", argument.view.dtype,
        ". Convert it: .float() in torch, .astype(\"float32\") in NumPy");
  check(argument.view.device.kind != DeviceKind::Other, op, ": ", argument.name,
        " is on a device that this package does not know. Move it to the CPU");
}

inline void check_output(const char* op, Argument argument) {
  check_input(op, argument);
  check(!argument.view.read_only, op, ": ", argument.name, " is read-only. Pass a copy of it");
  if (is_empty(argument.view)) return;
  for (int axis = 0; axis < argument.view.rank; ++axis) {
    check(argument.view.strides[axis] != 0 || argument.view.shape[axis] <= 1, op, ": ", argument.name,
          " is an expanded view whose elements share memory, so it cannot be written. Pass a copy of it");
  }
}

inline void check_same_device(const char* op, Argument first, std::initializer_list<Argument> others) {
  for (const Argument& other : others) {
    check(first.view.device == other.view.device, op, ": ", first.name, " is on ", first.view.device, " and ",
          other.name, " on ", other.view.device, ". Move them to one device");
  }
}

// f h w c, or f c h w where channels_first.
inline Pixels pixels(const TensorView& view, bool channels_first = false) {
  const int c = channels_first ? 1 : 3, h = channels_first ? 2 : 1, w = channels_first ? 3 : 2;
  return {static_cast<float*>(view.data),
          view.shape[0],
          view.shape[h],
          view.shape[w],
          view.shape[c],
          view.strides[0],
          view.strides[h],
          view.strides[w],
          view.strides[c]};
}

inline Pixels window(Pixels from, int64_t left, int64_t top, int64_t width, int64_t height) {
  from.data += top * from.row_stride + left * from.pixel_stride;
  from.width = width;
  from.height = height;
  return from;
}

}  // namespace animdetail
