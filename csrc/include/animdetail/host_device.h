#pragma once

// Marks a per-pixel formula that both the host compiler and nvcc translate.
#if defined(__CUDACC__)
#define ANIMDETAIL_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define ANIMDETAIL_HD inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define ANIMDETAIL_HD __forceinline
#else
#define ANIMDETAIL_HD inline
#endif
