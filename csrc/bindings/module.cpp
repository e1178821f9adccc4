#include <pybind11/pybind11.h>

#include <string>

#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "dlpack_caster.h"

namespace py = pybind11;
using namespace animdetail;

namespace {

using Region = std::tuple<int64_t, int64_t, int64_t, int64_t>;

// A cudaStream_t as Python has it.
using Stream = uintptr_t;

void* handle_of(Stream stream) { return reinterpret_cast<void*>(stream); }

CropRegion region_of(const Region& region) {
  const auto [x1, y1, x2, y2] = region;
  return {x1, y1, x2, y2};
}

PassOrder pass_order_of(const std::string& name) {
  if (name == "pillow13") return PassOrder::Pillow13;
  if (name == "horizontal_first") return PassOrder::HorizontalFirst;
  throw std::invalid_argument("pass_order is '" + name + "'. It must be 'pillow13' or 'horizontal_first'");
}

}  // namespace

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  using release_gil = py::gil_scoped_release;

  module.def(
      "crop_resize",
      [](const TensorView& out, const TensorView& frames, const Region& region, const std::string& pass_order,
         Stream stream) { crop_resize(out, frames, region_of(region), pass_order_of(pass_order), handle_of(stream)); },
      py::arg("out"), py::arg("frames"), py::arg("crop_region"), py::arg("pass_order"), py::arg("stream") = 0,
      py::call_guard<release_gil>());
  module.def(
      "crop_resize_to_vae",
      [](const TensorView& out, const TensorView& frames, const Region& region, int64_t width, int64_t height,
         const std::string& pass_order, Stream stream) {
        crop_resize_to_vae(out, frames, region_of(region), width, height, pass_order_of(pass_order), handle_of(stream));
      },
      py::arg("out"), py::arg("frames"), py::arg("crop_region"), py::arg("width"), py::arg("height"),
      py::arg("pass_order"), py::arg("stream") = 0, py::call_guard<release_gil>());
  module.def(
      "resize_from_vae",
      [](const TensorView& out, const TensorView& decoded, const std::string& pass_order, Stream stream) {
        resize_from_vae(out, decoded, pass_order_of(pass_order), handle_of(stream));
      },
      py::arg("out"), py::arg("decoded"), py::arg("pass_order"), py::arg("stream") = 0, py::call_guard<release_gil>());
  module.def(
      "feather_mask",
      [](const TensorView& out, const TensorView& mask, const TensorView& weights, double alpha, Stream stream) {
        feather_mask(out, mask, weights, alpha, handle_of(stream));
      },
      py::arg("out"), py::arg("mask"), py::arg("weights"), py::arg("alpha"), py::arg("stream") = 0,
      py::call_guard<release_gil>());
  module.def(
      "alpha_paste",
      [](const TensorView& canvas, const TensorView& patch, const TensorView& mask, int64_t x, int64_t y,
         Stream stream) { alpha_paste(canvas, patch, mask, x, y, handle_of(stream)); },
      py::arg("canvas"), py::arg("patch"), py::arg("mask"), py::arg("x"), py::arg("y"), py::arg("stream") = 0,
      py::call_guard<release_gil>());
  module.def(
      "paste_from_vae",
      [](const TensorView& canvas, const TensorView& decoded, const TensorView& mask, int64_t x, int64_t y,
         int64_t width, int64_t height, const std::string& pass_order, Stream stream) {
        paste_from_vae(canvas, decoded, mask, x, y, width, height, pass_order_of(pass_order), handle_of(stream));
      },
      py::arg("canvas"), py::arg("decoded"), py::arg("mask"), py::arg("x"), py::arg("y"), py::arg("width"),
      py::arg("height"), py::arg("pass_order"), py::arg("stream") = 0, py::call_guard<release_gil>());
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("num_threads", &num_threads);
#if defined(ANIMDETAIL_HAS_CUDA)
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
}
