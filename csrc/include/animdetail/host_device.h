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

// A pointer that is a multiple of so many bytes, which lets a host compiler copy from and to it in one instruction.
#if defined(__GNUC__)
#define ANIMDETAIL_ALIGNED(pointer, bytes) __builtin_assume_aligned(pointer, bytes)
#else
#define ANIMDETAIL_ALIGNED(pointer, bytes) (pointer)
#endif

// Loops that must be flat on a GPU, where an array is in registers only if every index into it is known.
#if defined(__CUDA_ARCH__)
#define ANIMDETAIL_UNROLL _Pragma("unroll")
#define ANIMDETAIL_PRAGMA(text) _Pragma(#text)
#define ANIMDETAIL_UNROLL_BY(count) ANIMDETAIL_PRAGMA(unroll count)
#else
#define ANIMDETAIL_UNROLL
#define ANIMDETAIL_UNROLL_BY(count)
#endif
