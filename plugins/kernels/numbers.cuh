// Number formats of tensors in device memory, and conversions to and from float.
//
// 16-bit floats are kept as bits; conversions are single PTX instructions, so that no CUDA header
// is needed. Conversions to 16 bits round to nearest, ties to even.
#pragma once

namespace stof {

constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <class Element>
__device__ __forceinline__ Element from_float(float value);

template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}

template <>
__device__ __forceinline__ Half from_float<Half>(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// Two floats as one register of 16-bit numbers, `low` in the low half.
template <class Element>
__device__ __forceinline__ unsigned pack(float low, float high);

template <>
__device__ __forceinline__ unsigned pack<Half>(float low, float high) {
  unsigned result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

template <>
__device__ __forceinline__ unsigned pack<BFloat16>(float low, float high) {
  unsigned result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// Loads through the read-only path; the memory must not change while the kernel runs.
template <class Element>
__device__ __forceinline__ Element load_readonly(const Element* address) {
  return __ldg(address);
}

template <>
__device__ __forceinline__ Half load_readonly(const Half* address) {
  return Half{__ldg(&address->bits)};
}

template <>
__device__ __forceinline__ BFloat16 load_readonly(const BFloat16* address) {
  return BFloat16{__ldg(&address->bits)};
}

}  // namespace stof
