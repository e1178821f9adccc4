#pragma once

// Pillow's 8-bit LANCZOS: taps in double, normalised, rounded to 22-bit fixed point; sums in 32-bit integers.

#include <cmath>
#include <cstdint>

#include "animdetail/host_device.h"
#include "animdetail/math/bits.h"

namespace animdetail::resample {

inline constexpr int kFractionBits = 22;
inline constexpr int32_t kHalf = int32_t{1} << (kFractionBits - 1);
inline constexpr double kSupport = 3.0;

// What a float value means on its way to and from 8 bits.
enum class Range : uint8_t {
  Unit,  // 0..1, an IMAGE
  Vae,   // -1..1, what a VAE eats and gives
};

ANIMDETAIL_HD double sinc(double x) {
  if (x == 0.0) return 1.0;
  const double angle = x * 3.14159265358979323846;
  return std::sin(angle) / angle;
}

ANIMDETAIL_HD double lanczos3(double x) { return -kSupport <= x && x < kSupport ? sinc(x) * sinc(x / kSupport) : 0.0; }

ANIMDETAIL_HD int32_t fixed_point(double tap) {
  return static_cast<int32_t>((tap < 0 ? -0.5 : 0.5) + tap * (1 << kFractionBits));
}

// clip(x, 0, limit), with NaN as 0. The bits of floats >= 0 are in the order of the floats, and compilers make a vector
// minimum of integers where two float comparisons in a row stay branches.
ANIMDETAIL_HD float clip(float x, float limit) {
#if defined(__CUDA_ARCH__)
  return limit == 1.0f ? __saturatef(x) : fminf(fmaxf(x, 0.0f), limit);
#else
  const int32_t bits = static_cast<int32_t>(bits_of_float(x > 0.0f ? x : 0.0f));
  const int32_t limit_bits = static_cast<int32_t>(bits_of_float(limit));
  return float_of_bits(static_cast<uint32_t>(bits < limit_bits ? bits : limit_bits));
#endif
}

// 2^23, whose float has the ones in its lowest bit. On a GPU, sums with it turn bytes to floats and back at four times
// the speed of the conversions.
inline constexpr uint32_t kOnes = 0x4b000000;

ANIMDETAIL_HD uint8_t truncate(float x) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint8_t>(__float_as_uint(__fadd_rz(x, __uint_as_float(kOnes))));
#else
  return static_cast<uint8_t>(static_cast<int32_t>(x));
#endif
}

// 0..1 -> trunc(clip(255 x, 0, 255)). A GPU clips x, which costs it least: products with 255 are in the order of the x.
ANIMDETAIL_HD uint8_t quantise(float x) {
#if defined(__CUDA_ARCH__)
  return truncate(255.0f * clip(x, 1.0f));
#else
  return truncate(clip(255.0f * x, 255.0f));
#endif
}

// -1..1 -> the same of clip((x + 1) / 2, 0, 1), which needs no second clip.
ANIMDETAIL_HD uint8_t quantise_vae(float x) { return truncate(255.0f * clip((x + 1.0f) * 0.5f, 1.0f)); }

ANIMDETAIL_HD uint8_t round_and_clip(int32_t sum) {
  int32_t value = sum >> kFractionBits;
#if defined(__CUDA_ARCH__)
  return static_cast<uint8_t>(__vimin_s32_relu(value, 255));
#else
  value = value < 0 ? 0 : value;
  value = value > 255 ? 255 : value;
  return static_cast<uint8_t>(value);
#endif
}

// value / 255 of a whole number up to 255, to the bit: 1 / 255 in two parts, where a GPU divides in a dozen steps.
ANIMDETAIL_HD float over_255(float value) {
  constexpr float kInverse = static_cast<float>(1.0 / 255.0);
  constexpr float kRest = static_cast<float>(1.0 / 255.0 - kInverse);
  return std::fma(value, kInverse, value * kRest);
}

// A byte of `word`, the lowest of which is 0.
ANIMDETAIL_HD float dequantise_byte(uint32_t word, int byte) {
#if defined(__CUDA_ARCH__)
  return over_255(__uint_as_float(__byte_perm(word, kOnes, 0x7440 | byte)) - __uint_as_float(kOnes));
#else
  return static_cast<float>(word >> 8 * byte & 0xff) / 255.0f;
#endif
}

ANIMDETAIL_HD float dequantise(uint8_t value) { return dequantise_byte(value, 0); }

ANIMDETAIL_HD float dequantise_vae(uint8_t value) { return 2.0f * dequantise(value) - 1.0f; }

}  // namespace animdetail::resample
