#pragma once

// The hot loops over contiguous rows. Each is compiled several times and the widest version that the processor runs is
// chosen at load time; all give the same bits, since the integer sums are exact and floats are fused only where
// std::fma says so.

#include <cstddef>
#include <cstdint>

#include "animdetail/math/element.h"

namespace animdetail::rows {

// Elements that one step of weighted_sum and of blur fills.
inline constexpr ptrdiff_t kLanes = 64;

constexpr ptrdiff_t padded(ptrdiff_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// to[i] = the float that element i stands for; not for Float32.
void widen(const char* from, Element element, float* to, ptrdiff_t count);

void quantise(const float* from, uint8_t* to, ptrdiff_t count);
void quantise_vae(const float* from, uint8_t* to, ptrdiff_t count);
void dequantise(const uint8_t* from, float* to, ptrdiff_t count);
void dequantise_vae(const uint8_t* from, float* to, ptrdiff_t count);

// to[i] = round(sum over k of taps[k] * from[k * stride + i]) for i in 0 .. padded(count) - 1.
void weighted_sum(const uint8_t* from, ptrdiff_t stride, const int32_t* taps, int tap_count, uint8_t* to,
                  ptrdiff_t count);

// to[column * to_stride + row] = from[row * from_stride + column]
void transpose(const uint8_t* from, ptrdiff_t from_stride, ptrdiff_t rows, ptrdiff_t columns, uint8_t* to,
               ptrdiff_t to_stride);

// to[i] = sum over row, column of kernel[row * size + column] * from[row * stride + column + i], in that order, for i
// in 0 .. padded(count) - 1.
void blur(const float* from, ptrdiff_t stride, const float* kernel, ptrdiff_t size, float* to, ptrdiff_t count);

// canvas = (1 - mask) canvas + mask patch over `pixels` pixels of 3 interleaved channels.
void paste_rgb(float* canvas, const float* patch, const float* mask, ptrdiff_t pixels);

}  // namespace animdetail::rows
