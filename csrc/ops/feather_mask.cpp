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
#include "animdetail/math/feather.h"
#include "contract.h"

namespace animdetail {

void feather_mask(const TensorView& out, const TensorView& mask, int64_t feather_px, double alpha) {
  const char* op = "feather_mask";
  check_input(op, {"mask", mask});
  check_output(op, {"out", out});
  check_same_device(op, {"out", out}, {{"mask", mask}});
  check(mask.rank == 2 || mask.rank == 3, op, ": mask must be (h, w) or (n, h, w), got shape ", mask);
  check(out.rank == mask.rank && std::equal(out.shape, out.shape + out.rank, mask.shape), op,
        ": out must have the shape of mask ", mask, ", got shape ", out);
  check(alpha >= 0 && alpha <= 255, op, ": alpha is ", alpha, ". It must be 0 to 255");

  const int rows = mask.rank - 2, columns = mask.rank - 1;
  const bool batched = mask.rank == 3;
  FeatherJob job{};
  job.mask = static_cast<const float*>(mask.data);
  job.out = static_cast<float*>(out.data);
  job.count = batched ? mask.shape[0] : 1;
  job.height = mask.shape[rows];
  job.width = mask.shape[columns];
  for (int axis = batched ? 0 : 1; axis < 3; ++axis) {
    job.mask_strides[axis] = mask.strides[axis - (batched ? 0 : 1)];
    job.out_strides[axis] = out.strides[axis - (batched ? 0 : 1)];
  }
  job.radius = feather::radius(std::min(job.height, job.width), feather_px);
  job.factor = static_cast<float>(alpha / 255.0);
  if (job.count == 0 || job.height == 0 || job.width == 0) return;
  out.device.kind == DeviceKind::Cuda ? feather_cuda(job) : feather_cpu(job);
}

}  // namespace animdetail
