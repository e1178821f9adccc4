#include <pybind11/pybind11.h>

#include <string>

#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "dlpack_caster.h"

namespace py = pybind11;
using namespace animdetail;

namespace {

using Region = std::tuple<int64_t, int64_t, int64_t, int64_t>;

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
      [](const TensorView& out, const TensorView& frames, const Region& region, const std::string& pass_order) {
        crop_resize(out, frames, region_of(region), pass_order_of(pass_order));
      },
      py::arg("out"), py::arg("frames"), py::arg("crop_region"), py::arg("pass_order"), py::call_guard<release_gil>());
  module.def(
      "crop_resize_to_vae",
      [](const TensorView& out, const TensorView& frames, const Region& region, int64_t width, int64_t height,
         const std::string& pass_order) {
        crop_resize_to_vae(out, frames, region_of(region), width, height, pass_order_of(pass_order));
      },
      py::arg("out"), py::arg("frames"), py::arg("crop_region"), py::arg("width"), py::arg("height"),
      py::arg("pass_order"), py::call_guard<release_gil>());
  module.def(
      "resize_from_vae",
      [](const TensorView& out, const TensorView& decoded, const std::string& pass_order) {
        resize_from_vae(out, decoded, pass_order_of(pass_order));
      },
      py::arg("out"), py::arg("decoded"), py::arg("pass_order"), py::call_guard<release_gil>());
  module.def("feather_mask", &feather_mask, py::arg("out"), py::arg("mask"), py::arg("weights"), py::arg("fused"),
             py::arg("alpha"), py::call_guard<release_gil>());
  module.def("alpha_paste", &alpha_paste, py::arg("canvas"), py::arg("patch"), py::arg("mask"), py::arg("x"),
             py::arg("y"), py::call_guard<release_gil>());
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("num_threads", &num_threads);
  module.attr("has_cuda") = false;
}
