#pragma once

#include <cstdint>

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

}  // namespace animdetail
