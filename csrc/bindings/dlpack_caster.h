#pragma once

// Lets bound functions take a TensorView and be called with anything that speaks DLPack. The view borrows the memory
// for the length of the call, and the capsule lives as long.

#include <pybind11/pybind11.h>

#include <string>

#include "animdetail/check.h"
#include "animdetail/tensor_view.h"

namespace animdetail::dlpack {

// The parts of the DLPack 1.0 ABI that are read here.
struct Tensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  struct {
    uint32_t major, minor;
  } version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

inline constexpr uint64_t kReadOnly = 1;

enum Type : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

inline Device device_of(const Tensor& tensor) {
  switch (tensor.device.type) {
    case kCpu:
    case kCudaHost: return {DeviceKind::Cpu, 0};
    case kCuda:
    case kCudaManaged: return {DeviceKind::Cuda, tensor.device.id};
    default: return {DeviceKind::Other, tensor.device.id};
  }
}

inline void check_rank(int64_t rank) {
  check(rank <= kMaxRank, "tensors have up to ", kMaxRank, " axes here, got one with ", rank);
}

inline TensorView view_of(const Tensor& tensor, bool read_only) {
  check(tensor.dtype.lanes == 1, "tensors of vector types are not known here");
  check_rank(tensor.ndim);
  TensorView view;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.dtype = {tensor.dtype.code, tensor.dtype.bits};
  view.device = device_of(tensor);
  view.read_only = read_only;
  view.rank = tensor.ndim;
  int64_t packed_stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    view.shape[axis] = tensor.shape[axis];
    view.strides[axis] = tensor.strides ? tensor.strides[axis] : packed_stride;
    packed_stride *= view.shape[axis];
  }
  return view;
}

inline bool on_gpu(pybind11::handle producer) {
  if (!pybind11::hasattr(producer, "__dlpack_device__")) return false;
  const pybind11::tuple device = producer.attr("__dlpack_device__")();
  const int type = pybind11::int_(device[0]);
  return type == kCuda || type == kCudaManaged;
}

// Asks for DLPack 1.0, which can say that memory is read-only; producers that predate it know no max_version. Of a
// GPU's memory it says that no stream shall wait (-1): the op runs in the stream that it is given, the caller's own.
inline pybind11::object export_capsule(pybind11::handle producer) {
  const pybind11::object method = producer.attr("__dlpack__");
  pybind11::dict arguments;
  if (on_gpu(producer)) arguments["stream"] = -1;
  try {
    return method(**arguments, pybind11::arg("max_version") = pybind11::make_tuple(1, 0));
  } catch (pybind11::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**arguments);
}

// The struct module's codes of the types that images come in; others are refused without their name.
inline DType dtype_of(const std::string& format) {
  if (format == "f") return kFloat32;
  if (format == "d") return {DType::Float, 64};
  if (format == "e") return {DType::Float, 16};
  if (format == "B") return {DType::UInt, 8};
  if (format == "?") return {DType::Bool, 8};
  return {0xff, 0};
}

// NumPy before 2.1 exports no read-only array through DLPack, but does so as a buffer.
inline TensorView view_of_buffer(const pybind11::buffer_info& buffer) {
  check_rank(buffer.ndim);
  TensorView view;
  view.data = buffer.ptr;
  view.dtype = dtype_of(buffer.format);
  view.read_only = buffer.readonly;
  view.rank = static_cast<int>(buffer.ndim);
  for (int axis = 0; axis < view.rank; ++axis) {
    check(buffer.strides[axis] % buffer.itemsize == 0, "strides must be whole elements. Pass a copy of the array");
    view.shape[axis] = buffer.shape[axis];
    view.strides[axis] = buffer.strides[axis] / buffer.itemsize;
  }
  return view;
}

}  // namespace animdetail::dlpack

namespace pybind11::detail {

template <>
struct type_caster<animdetail::TensorView> {
  PYBIND11_TYPE_CASTER(animdetail::TensorView, const_name("SupportsDLPack"));

  bool load(handle source, bool) {
    namespace dlpack = animdetail::dlpack;
    if (!hasattr(source, "__dlpack__")) return false;
    try {
      owner_ = dlpack::export_capsule(source);
    } catch (error_already_set& error) {
      if (!error.matches(PyExc_BufferError) || !isinstance<buffer>(source)) throw;
      buffer_ = reinterpret_borrow<buffer>(source).request();
      value = dlpack::view_of_buffer(buffer_);
      return true;
    }
    if (PyCapsule_IsValid(owner_.ptr(), "dltensor_versioned")) {
      const auto* managed =
          static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(owner_.ptr(), "dltensor_versioned"));
      animdetail::check(managed->version.major == 1, "DLPack ", managed->version.major, " is not known here");
      value = dlpack::view_of(managed->tensor, managed->flags & dlpack::kReadOnly);
    } else if (PyCapsule_IsValid(owner_.ptr(), "dltensor")) {
      const auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(owner_.ptr(), "dltensor"));
      value = dlpack::view_of(managed->tensor, false);
    } else {
      return false;
    }
    return true;
  }

 private:
  // Not consumed, so its own destructor hands the memory back.
  object owner_;
  buffer_info buffer_;
};

}  // namespace pybind11::detail
