#include "cuda_support.h"

#include <map>
#include <stdexcept>

namespace animdetail::cuda {
namespace {

// What tables that no CUDA graph may hold are freed beyond.
constexpr size_t kMaxTableBytes = size_t{64} << 20;

const char* remedy(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation: return "Free memory on the device, or work on fewer frames at a time";
    case cudaErrorNoKernelImageForDevice:
      return "This build has no kernels for this card. Rebuild with ANIMDETAIL_CUDA_ARCHITECTURES=native";
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice: return "Update the NVIDIA driver, or move the tensors to the CPU with .cpu()";
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidDevice: return "Pass a stream of the device that the tensors are on";
    default:
      return "If an earlier kernel failed, every call after it does: restart the process, with CUDA_LAUNCH_BLOCKING=1 "
             "to see which it was";
  }
}

struct Table {
  void* data;
  size_t bytes;
  bool captured;  // a CUDA graph may read it at any time from now on
};

struct DeviceTables {
  std::map<std::string, Table> tables;
  size_t loose_bytes = 0;  // of those that are not captured
};

std::mutex tables_lock;
// Its end frees nothing on the devices: it comes with the process's, when the driver may be gone already.
std::map<int, DeviceTables> tables_of_device;

// Lets this thread allocate and copy while some stream is being captured: neither is part of the capture.
class OutsideCapture {
 public:
  OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

void trim(const char* op, DeviceTables& held) {
  if (held.loose_bytes <= kMaxTableBytes) return;
  const OutsideCapture outside;
  for (auto it = held.tables.begin(); it != held.tables.end();) {
    if (it->second.captured) {
      ++it;
      continue;
    }
    check(op, cudaFree(it->second.data));  // waits for the kernels that read it
    held.loose_bytes -= it->second.bytes;
    it = held.tables.erase(it);
  }
}

void* upload(const char* op, const std::vector<char>& bytes) {
  const OutsideCapture outside;
  void* data = nullptr;
  cudaStream_t copying = nullptr;
  check(op, cudaMalloc(&data, bytes.size()));
  cudaError_t code = cudaStreamCreateWithFlags(&copying, cudaStreamNonBlocking);
  if (code == cudaSuccess) code = cudaMemcpyAsync(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, copying);
  if (code == cudaSuccess) code = cudaStreamSynchronize(copying);
  if (copying) cudaStreamDestroy(copying);
  if (code != cudaSuccess) cudaFree(data);
  check(op, code);
  return data;
}

}  // namespace

void check(const char* op, cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that it is not reported again by the next call
  throw std::runtime_error(std::string(op) + ": CUDA refused with " + cudaGetErrorName(code) + " (" +
                           cudaGetErrorString(code) + "). " + remedy(code));
}

DeviceGuard::DeviceGuard(const char* op, int device) {
  check(op, cudaGetDevice(&previous_));
  if (previous_ != device) {
    check(op, cudaSetDevice(device));
  } else {
    previous_ = -1;
  }
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

Tables::Tables(const char* op, CudaStream stream) : op_(op), device_(stream.device), lock_(tables_lock) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(op, cudaStreamIsCapturing(handle(stream), &status));
  capturing_ = status != cudaStreamCaptureStatusNone;
  if (!capturing_) trim(op, tables_of_device[device_]);
}

const void* Tables::get(const std::string& key, const std::function<std::vector<char>()>& make) {
  DeviceTables& held = tables_of_device[device_];
  auto it = held.tables.find(key);
  if (it == held.tables.end()) {
    const std::vector<char> bytes = make();
    it = held.tables.emplace(key, Table{nullptr, bytes.size(), false}).first;
    try {
      it->second.data = upload(op_, bytes);
    } catch (...) {
      held.tables.erase(it);
      throw;
    }
    held.loose_bytes += bytes.size();
  }
  Table& table = it->second;
  if (capturing_ && !table.captured) {
    table.captured = true;
    held.loose_bytes -= table.bytes;
  }
  return table.data;
}

}  // namespace animdetail::cuda
