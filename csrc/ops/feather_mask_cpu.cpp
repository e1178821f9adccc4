// NOTE FROM LEAD (2026-11-22 13:00, act on this, then delete the note): feather_mask must give torch's own bits, not
// 2e-6. Why: whole-node golden cases with two segments, and differential noise masks (m >= 1.0 at the first step), turn
// on the last bit of the blurred mask's interior (golden holds 0.99999964 there, a separable blur 1.0): they failed
// until then. Found by trying (9 sizes, random and constant masks, all bits equal): F.conv2d here is, per output pixel,
// acc = 0; for row in kernel: for col in kernel: acc = fma(pixel, k2[row][col], acc), in float32, over the
// reflect-padded mask, with k2 = outer product of torchvision's 1-D kernel. So: 2-D kernel, not separable; 1-D weights
// computed by torch in native.py (torch.linspace/exp/sum bits: x = linspace(-half, half, k); pdf = exp(-0.5 * (x /
// 10).pow(2)); w = pdf / pdf.sum()) and handed to _C; k2[i][j] = w[i] * w[j] in float32; sequential explicit std::fma
// in (row, col) order, vectorised over output columns (function clones with fma: avx2,fma / avx512f; the same
// host-device formula, fmaf on a GPU), threads over rows and masks. Then times float32(alpha / 255). -ffp-contract
// stays off; only this op uses explicit fma. Tests: torch.equal against ops.reference.feather_mask (conv2d) for random
// masks, sizes, feathers (torch threads 1); the golden blur tolerance 2e-6 stays for the golden files. Speed: k=11 on
// 224x224 is 6 MFMA, k=41 on 512x512 is 440 MFMA (torch conv2d takes 76 ms there). Skip work where the mask is 1 or 0
// everywhere under the kernel only if the bits stay equal.
#include <algorithm>
#include <vector>

#include "animdetail/math/feather.h"
#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "row_kernels.h"

namespace animdetail {
namespace {

std::vector<float> kernel(int64_t radius) {
  std::vector<double> weights;
  double total = 0;
  for (int64_t offset = -radius; offset <= radius; ++offset) {
    weights.push_back(feather::weight(offset));
    total += weights.back();
  }
  std::vector<float> taps;
  for (const double weight : weights) taps.push_back(static_cast<float>(weight / total));
  return taps;
}

// One band of one mask at a time: rows are blurred along x into `across`, then along y into `down`.
class Blur {
 public:
  Blur(const FeatherJob& job, const std::vector<float>& taps, int64_t band)
      : job_(job),
        taps_(taps),
        across_((band + 2 * job.radius) * job.width),
        extended_(job.width + 2 * job.radius),
        down_(job.width) {}

  void run(int64_t index, int64_t first, int64_t last) {
    const float* mask = job_.mask + index * job_.mask_strides[0];
    float* out = job_.out + index * job_.out_strides[0];
    const int64_t radius = job_.radius, width = job_.width;
    for (int64_t y = first - radius; y < last + radius; ++y) {
      extend(mask + feather::reflect(y, job_.height) * job_.mask_strides[1]);
      rows::weighted_sum(extended_.data(), 1, taps_.data(), taps_.size(), &across_[(y - first + radius) * width],
                         width);
    }
    for (int64_t y = first; y < last; ++y) {
      rows::weighted_sum(&across_[(y - first) * width], width, taps_.data(), taps_.size(), down_.data(), width);
      float* row = out + y * job_.out_strides[1];
      for (int64_t x = 0; x < width; ++x) row[x * job_.out_strides[2]] = down_[x] * job_.factor;
    }
  }

 private:
  void extend(const float* row) {
    for (int64_t i = 0; i < static_cast<int64_t>(extended_.size()); ++i) {
      extended_[i] = row[feather::reflect(i - job_.radius, job_.width) * job_.mask_strides[2]];
    }
  }

  const FeatherJob& job_;
  const std::vector<float>& taps_;
  std::vector<float> across_, extended_, down_;
};

}  // namespace

void feather_cpu(const FeatherJob& job) {
  const std::vector<float> taps = kernel(job.radius);
  // A band blurs 2 * radius rows more than it writes, so bands are only cut where masks alone would not keep threads
  // busy.
  const int64_t shares = job.count >= num_threads() ? 1 : num_threads();
  const int64_t band = std::max<int64_t>(16, (job.height + shares - 1) / shares);
  const int64_t bands = (job.height + band - 1) / band;
  parallel_tasks(job.count * bands, [&](const NextTask& next) {
    Blur blur(job, taps, std::min(band, job.height));
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t first = task % bands * band;
      blur.run(task / bands, first, std::min(first + band, job.height));
    }
  });
}

}  // namespace animdetail
