#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "animdetail/tensor_view.h"

namespace animdetail {

// Messages are built of strings alone. Streams use the process's locale, and where a compiler links its C++ library
// into the extension while torch brings another, the two mix up their facets: printing a number ends in a crash.
inline void append(std::string& message, const char* part) { message += part; }
inline void append(std::string& message, const std::string& part) { message += part; }

template <class Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
void append(std::string& message, Number number) {
  char digits[32];
  if constexpr (std::is_integral_v<Number>) {
    std::snprintf(digits, sizeof digits, "%lld", static_cast<long long>(number));
  } else {
    std::snprintf(digits, sizeof digits, "%g", static_cast<double>(number));
  }
  message += digits;
}

inline void append(std::string& message, DType dtype) {
  switch (dtype.code) {
    case DType::Int: message += "int"; break;
    case DType::UInt: message += "uint"; break;
    case DType::Float: message += "float"; break;
    case DType::BFloat: message += "bfloat"; break;
    case DType::Complex: message += "complex"; break;
    case DType::Bool: message += "bool"; return;
    default: message += "an unknown type"; return;
  }
  append(message, dtype.bits);
}

inline void append(std::string& message, Device device) {
  switch (device.kind) {
    case DeviceKind::Cpu: message += "cpu"; return;
    case DeviceKind::Cuda: message += "cuda:"; return append(message, device.index);
    case DeviceKind::Other: break;
  }
  message += "another device";
}

// The shape, as Python prints it: "(2, 3)".
inline void append(std::string& message, const TensorView& view) {
  message += '(';
  for (int axis = 0; axis < view.rank; ++axis) {
    if (axis) message += ", ";
    append(message, view.shape[axis]);
  }
  message += view.rank == 1 ? ",)" : ")";
}

// Throws std::invalid_argument with the parts joined; the message names the op, the value and the remedy.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::string message;
  (append(message, parts), ...);
  throw std::invalid_argument(message);
}

}  // namespace animdetail
