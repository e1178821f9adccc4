#include <algorithm>
#include <vector>

#include "animdetail/math/feather.h"
#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "row_kernels.h"

namespace animdetail {
namespace {

constexpr int64_t kBand = 16;  // rows that one task writes

// The two-dimensional kernel: torchvision multiplies the weights of both axes, rounded to float.
std::vector<float> outer_product(const float* weights, int64_t size) {
  std::vector<float> kernel;
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = 0; column < size; ++column) kernel.push_back(weights[row] * weights[column]);
  }
  return kernel;
}

// Blurs a band of one mask at a time, from a copy of it that reaches over the mask's edges.
class Blur {
 public:
  Blur(const FeatherJob& job, const std::vector<float>& kernel)
      : job_(job),
        kernel_(kernel),
        stride_(rows::padded(job.width) + 2 * job.radius),
        extended_((kBand + 2 * job.radius) * stride_),
        blurred_(rows::padded(job.width)) {}

  void run(int64_t index, int64_t first, int64_t last) {
    const float* mask = job_.mask + index * job_.mask_strides[0];
    float* out = job_.out + index * job_.out_strides[0];
    for (int64_t y = first - job_.radius; y < last + job_.radius; ++y) {
      extend(mask + feather::reflect(y, job_.height) * job_.mask_strides[1],
             &extended_[(y - first + job_.radius) * stride_]);
    }
    for (int64_t y = first; y < last; ++y) {
      rows::blur(&extended_[(y - first) * stride_], stride_, kernel_.data(), 2 * job_.radius + 1, blurred_.data(),
                 job_.width);
      float* row = out + y * job_.out_strides[1];
      for (int64_t x = 0; x < job_.width; ++x) row[x * job_.out_strides[2]] = blurred_[x] * job_.factor;
    }
  }

 private:
  void extend(const float* row, float* to) {
    for (int64_t i = 0; i < job_.width + 2 * job_.radius; ++i) {
      to[i] = row[feather::reflect(i - job_.radius, job_.width) * job_.mask_strides[2]];
    }
  }

  const FeatherJob& job_;
  const std::vector<float>& kernel_;
  const int64_t stride_;
  std::vector<float> extended_, blurred_;
};

}  // namespace

void feather_cpu(const FeatherJob& job) {
  const std::vector<float> kernel = outer_product(job.weights, 2 * job.radius + 1);
  const int64_t bands = (job.height + kBand - 1) / kBand;
  parallel_tasks(job.count * bands, [&](const NextTask& next) {
    Blur blur(job, kernel);
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t first = task % bands * kBand;
      blur.run(task / bands, first, std::min(first + kBand, job.height));
    }
  });
}

}  // namespace animdetail
