#pragma once

#include <cstdint>
#include <ostream>

namespace animdetail {

// An element type as DLPack codes it.
struct DType {
  enum Code : uint8_t { Int = 0, UInt = 1, Float = 2, BFloat = 4, Complex = 5, Bool = 6 };
  uint8_t code = Float, bits = 32;
};

inline constexpr DType kFloat32{DType::Float, 32};

enum class DeviceKind : uint8_t { Cpu, Cuda, Other };

struct Device {
  DeviceKind kind = DeviceKind::Cpu;
  int index = 0;
};

inline constexpr int kMaxRank = 4;

// Memory that belongs to the caller. Strides count elements, may be zero or negative, and are 64 bits wide, as every
// offset made from them is: a view may span more than 2^31 elements.
struct TensorView {
  void* data = nullptr;
  DType dtype = kFloat32;
  Device device;
  bool read_only = false;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};
};

inline bool is_empty(const TensorView& view) {
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 0) return true;
  }
  return false;
}

inline bool operator==(DType a, DType b) { return a.code == b.code && a.bits == b.bits; }

inline bool operator==(Device a, Device b) { return a.kind == b.kind && a.index == b.index; }

inline std::ostream& operator<<(std::ostream& stream, DType dtype) {
  const int bits = dtype.bits;
  switch (dtype.code) {
    case DType::Int: return stream << "int" << bits;
    case DType::UInt: return stream << "uint" << bits;
    case DType::Float: return stream << "float" << bits;
    case DType::BFloat: return stream << "bfloat" << bits;
    case DType::Complex: return stream << "complex" << bits;
    case DType::Bool: return stream << "bool";
    default: return stream << "an unknown type";
  }
}

inline std::ostream& operator<<(std::ostream& stream, Device device) {
  switch (device.kind) {
    case DeviceKind::Cpu: return stream << "cpu";
    case DeviceKind::Cuda: return stream << "cuda:" << device.index;
    case DeviceKind::Other: break;
  }
  return stream << "another device";
}

// Prints the shape, as Python does: "(2, 3)".
inline std::ostream& operator<<(std::ostream& stream, const TensorView& view) {
  stream << '(';
  for (int axis = 0; axis < view.rank; ++axis) stream << (axis ? ", " : "") << view.shape[axis];
  return stream << (view.rank == 1 ? ",)" : ")");
}

}  // namespace animdetail
