#pragma once

// What an element of a picture can be in memory, and the float that it stands for.

#include <cstdint>
#include <cstring>

#include "animdetail/host_device.h"
#include "animdetail/math/bits.h"
#include "animdetail/math/resample.h"

namespace animdetail {

enum class Element : uint8_t { Float32, Float16, BFloat16, UInt8 };

ANIMDETAIL_HD int bytes_of(Element element) {
  return element == Element::Float32 ? 4 : element == Element::UInt8 ? 1 : 2;
}

ANIMDETAIL_HD float float_of_half(uint32_t half) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(half)));
  return value;
#else
  const uint32_t sign = (half & 0x8000) << 16, exponent = half & 0x7c00, mantissa = half & 0x3ff;
  if (exponent == 0) return float_of_bits(sign | bits_of_float(static_cast<float>(mantissa) * 0x1p-24f));
  const uint32_t bias = exponent == 0x7c00 ? 0xff - 0x1f : 127 - 15;
  return float_of_bits(sign | (((exponent | mantissa) << 13) + (bias << 23)));
#endif
}

// To the nearest, ties to even, as torch and cvt.rn round.
ANIMDETAIL_HD uint32_t half_of_float(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // from 65520 on
  if (magnitude < 0x38800000) {  // below 2^-14: a float from 0.5 on counts in halves' smallest steps
    return sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f));
  }
  return sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
#endif
}

// Likewise.
ANIMDETAIL_HD uint32_t bfloat_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The float that an element stands for; 8 bits stand for 0..1.
ANIMDETAIL_HD float value_of(uint32_t bits, Element element) {
  switch (element) {
    case Element::Float32: return float_of_bits(bits);
    case Element::Float16: return float_of_half(bits);
    case Element::BFloat16: return float_of_bits(bits << 16);
    case Element::UInt8: break;
  }
  return resample::dequantise_byte(bits, 0);
}

// The element nearest to a float.
ANIMDETAIL_HD uint32_t bits_of(float value, Element element) {
  switch (element) {
    case Element::Float32: return bits_of_float(value);
    case Element::Float16: return half_of_float(value);
    case Element::BFloat16: return bfloat_of_float(value);
    case Element::UInt8: break;
  }
  return resample::truncate(255.0f * resample::clip(value, 1.0f) + 0.5f);
}

template <class T>
ANIMDETAIL_HD T load_as(const char* from) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const T*>(from);
#else
  T value;
  std::memcpy(&value, ANIMDETAIL_ALIGNED(from, sizeof value), sizeof value);
  return value;
#endif
}

template <class T>
ANIMDETAIL_HD void store_as(T value, char* to) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<T*>(to) = value;
#else
  std::memcpy(ANIMDETAIL_ALIGNED(to, sizeof value), &value, sizeof value);
#endif
}

// One element, as the float that it stands for.
ANIMDETAIL_HD float read(const char* from, Element element) {
  switch (element) {
    case Element::Float32: return value_of(load_as<uint32_t>(from), element);
    case Element::UInt8: return value_of(load_as<uint8_t>(from), element);
    default: return value_of(load_as<uint16_t>(from), element);
  }
}

ANIMDETAIL_HD void write(float value, char* to, Element element) {
  const uint32_t bits = bits_of(value, element);
  switch (element) {
    case Element::Float32: return store_as(bits, to);
    case Element::UInt8: return store_as(static_cast<uint8_t>(bits), to);
    default: return store_as(static_cast<uint16_t>(bits), to);
  }
}

// Four neighbouring elements, as they lie in memory that is aligned to all four.
struct RawFour {
  uint32_t words[4];
};

// Volatile: compilers move a load into the branch that uses it, and loads that should be on their way together then
// wait for one another.
ANIMDETAIL_HD RawFour load_four(const char* from, Element element) {
  RawFour raw{};
#if defined(__CUDA_ARCH__)
  switch (element) {
    case Element::Float32:
      asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(raw.words[0]), "=r"(raw.words[1]), "=r"(raw.words[2]), "=r"(raw.words[3])
                   : "l"(from));
      break;
    case Element::UInt8: asm volatile("ld.global.b32 %0, [%1];" : "=r"(raw.words[0]) : "l"(from)); break;
    default: asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(raw.words[0]), "=r"(raw.words[1]) : "l"(from));
  }
#else
  const int bytes = 4 * bytes_of(element);
  std::memcpy(&raw,
              bytes == 16  ? ANIMDETAIL_ALIGNED(from, 16)
              : bytes == 8 ? ANIMDETAIL_ALIGNED(from, 8)
                           : ANIMDETAIL_ALIGNED(from, 4),
              bytes);
#endif
  return raw;
}

// The same, one by one, from memory that is not so aligned.
ANIMDETAIL_HD RawFour gather_four(const char* from, Element element) {
  RawFour raw{};
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) {
    switch (element) {
      case Element::Float32: raw.words[i] = load_as<uint32_t>(from + 4 * i); break;
      case Element::UInt8: raw.words[0] |= uint32_t{load_as<uint8_t>(from + i)} << 8 * i; break;
      default: raw.words[i / 2] |= uint32_t{load_as<uint16_t>(from + 2 * i)} << 16 * (i % 2);
    }
  }
  return raw;
}

ANIMDETAIL_HD float value_of(const RawFour& raw, int i, Element element) {
  switch (element) {
    case Element::Float32: return value_of(raw.words[i], element);
    case Element::UInt8: return value_of(raw.words[0] >> 8 * i & 0xff, element);
    default: return value_of(raw.words[i / 2] >> 16 * (i % 2) & 0xffff, element);
  }
}

ANIMDETAIL_HD void store_four(const float (&values)[4], char* to, Element element) {
  uint32_t bits[4];
  ANIMDETAIL_UNROLL
  for (int i = 0; i < 4; ++i) bits[i] = bits_of(values[i], element);
  const int count = bytes_of(element);  // of words
  if (count == 2) {
    bits[0] |= bits[1] << 16;
    bits[1] = bits[2] | bits[3] << 16;
  } else if (count == 1) {
    bits[0] |= bits[1] << 8 | bits[2] << 16 | bits[3] << 24;
  }
#if defined(__CUDA_ARCH__)
  switch (count) {
    case 4:
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                   :
                   : "l"(to), "r"(bits[0]), "r"(bits[1]), "r"(bits[2]), "r"(bits[3])
                   : "memory");
      break;
    case 2: asm volatile("st.global.v2.b32 [%0], {%1, %2};" : : "l"(to), "r"(bits[0]), "r"(bits[1]) : "memory"); break;
    default: asm volatile("st.global.b32 [%0], %1;" : : "l"(to), "r"(bits[0]) : "memory");
  }
#else
  std::memcpy(count == 4   ? ANIMDETAIL_ALIGNED(to, 16)
              : count == 2 ? ANIMDETAIL_ALIGNED(to, 8)
                           : ANIMDETAIL_ALIGNED(to, 4),
              bits, 4 * count);
#endif
}

}  // namespace animdetail
