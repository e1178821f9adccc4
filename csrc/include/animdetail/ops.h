#pragma once

// The C++ signatures. Tensors are borrowed; results go into memory of the caller's, which must not overlap an input.
// Masks and weights are float32. Pictures are float32, float16, bfloat16 or, where they are in 0..1, uint8, of which
// 255 stands for 1; those that are not float32 have three channels. Sums are made in float32 and rounded to the
// nearest. A broken contract throws std::invalid_argument before anything is written. Tensors on a CUDA device are
// worked on in `stream`, a cudaStream_t of that device (null: its default stream), and nobody waits for it; what CUDA
// refuses throws std::runtime_error. Axes: f frames, h w size, c channels.

#include <cstdint>

#include "animdetail/math/element.h"
#include "animdetail/math/resample.h"
#include "animdetail/tensor_view.h"

namespace animdetail {

// Half open, in frame pixels. x2 and y2 past the frame are clipped to it.
struct CropRegion {
  int64_t x1, y1, x2, y2;
};

// Which axis Pillow resamples first: each pass rounds to 8 bits, so the order shows.
enum class PassOrder : uint8_t {
  HorizontalFirst,  // always, up to Pillow 12
  Pillow13,         // vertical first where that is cheaper, since Pillow 13.0
};

// out (f, h', w', c) in 0..1 = frames (f, h, w, c)[:, y1:y2, x1:x2] resampled. c is 1 to 4.
void crop_resize(const TensorView& out, const TensorView& frames, CropRegion region, PassOrder order,
                 void* stream = nullptr);

// out (f, 3, h8, w8) in -1..1 = the same at width x height, its centre cut to multiples of 8, in the VAE's layout.
void crop_resize_to_vae(const TensorView& out, const TensorView& frames, CropRegion region, int64_t width,
                        int64_t height, PassOrder order, void* stream = nullptr);

// out (f, h', w', 3) in 0..1 = decoded (f, 3, h, w), a VAE's raw output in about -1..1, resampled.
void resize_from_vae(const TensorView& out, const TensorView& decoded, PassOrder order, void* stream = nullptr);

// out (h, w) or (n, h, w) = mask of that shape, blurred by the outer product of weights (an odd number of them, on the
// host) with themselves over reflected edges, times alpha / 255.
void feather_mask(const TensorView& out, const TensorView& mask, const TensorView& weights, double alpha,
                  void* stream = nullptr);

// canvas (f, h, w, c) = (1 - mask) canvas + mask patch, where patch (f, h', w', c) put at (x, y) lies on the canvas.
// mask is (h', w') or (1 or f, h', w').
void alpha_paste(const TensorView& canvas, const TensorView& patch, const TensorView& mask, int64_t x, int64_t y,
                 void* stream = nullptr);

// alpha_paste of resize_from_vae(decoded) at width x height, which is never stored. Only for CUDA devices.
void paste_from_vae(const TensorView& canvas, const TensorView& decoded, const TensorView& mask, int64_t x, int64_t y,
                    int64_t width, int64_t height, PassOrder order, void* stream = nullptr);

// What the devices implement: a contract that has been checked, in plain numbers.

// Pixels with named axes, strides in elements.
struct Pixels {
  char* data;
  int64_t frames, height, width, channels;
  int64_t frame_stride, row_stride, pixel_stride, channel_stride;
  Element element = Element::Float32;
};

// Where the element lies that is so many further on than the first.
ANIMDETAIL_HD char* at(const Pixels& pixels, int64_t elements) {
  return pixels.data + elements * bytes_of(pixels.element);
}

// One for all frames where frame_stride is 0.
struct Mask {
  const float* data;
  int64_t frame_stride, row_stride, pixel_stride;
};

struct ResampleJob {
  Pixels source;          // the crop
  Pixels target;          // a window of the resized picture
  int64_t width, height;  // of the whole resized picture
  int64_t left, top;      // of the window in it
  resample::Range source_range, target_range;
  bool vertical_first;
  Mask mask{};  // with data, of the target's size: blends into the target instead of replacing it
};

struct FeatherJob {
  const float* mask;
  float* out;
  int64_t count, height, width;
  int64_t mask_strides[3], out_strides[3];
  const float* weights;  // 2 * radius + 1
  int64_t radius;
  float factor;
};

struct PasteJob {
  Pixels canvas, patch;  // cut to where they overlap: same sizes
  Mask mask;
};

struct CudaStream {
  int device;
  void* handle;
};

void resample_cpu(const ResampleJob& job);
void resample_cuda(const ResampleJob& job, CudaStream stream);
void feather_cpu(const FeatherJob& job);
void feather_cuda(const FeatherJob& job, CudaStream stream);
void paste_cpu(const PasteJob& job);
void paste_cuda(const PasteJob& job, CudaStream stream);

}  // namespace animdetail
