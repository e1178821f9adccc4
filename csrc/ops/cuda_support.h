#pragma once

// What every CUDA op needs around its launch.

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "animdetail/ops.h"

namespace animdetail::cuda {

// Throws std::runtime_error with the op, CUDA's code and a remedy.
void check(const char* op, cudaError_t code);

// Makes a device the current one of this thread for as long as it lives.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

// Small constant tables on the current device, found by what they were made from. One is copied there when it is first
// asked for, in a stream of its own, so that the op's stream waits for nothing; a kernel may read it in any stream.
// While this object lives no table is freed: launch what reads them before it goes.
class Tables {
 public:
  Tables(const char* op, CudaStream stream);

  const void* get(const std::string& key, const std::function<std::vector<char>()>& make);

 private:
  const char* op_;
  int device_;
  bool capturing_;
  std::lock_guard<std::mutex> lock_;
};

inline cudaStream_t handle(CudaStream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Blocks of a launch over `count` pieces of work that loop over what is left.
inline unsigned blocks(int64_t count) { return static_cast<unsigned>(count < (int64_t{1} << 30) ? count : 1 << 30); }

inline constexpr int64_t kMaxGridY = 65535;  // and z

template <class T>
void append(std::vector<char>& bytes, const std::vector<T>& values) {
  const char* data = reinterpret_cast<const char*>(values.data());
  bytes.insert(bytes.end(), data, data + values.size() * sizeof(T));
}

}  // namespace animdetail::cuda
