// Stands in for plugins/kernels/numbers.cuh in tests that run device code on the CPU: what the mask
// headers use of it, without its PTX. The tests copy it beside those headers.
#pragma once

#include <cmath>

namespace stof {

constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

inline float to_float(float value) { return value; }

inline float to_float(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  float magnitude = 0.0f;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? kInfinity : kInfinity - kInfinity;
  } else {
    const int significand = exponent == 0 ? mantissa : mantissa + 1024;
    magnitude = std::ldexp(static_cast<float>(significand), (exponent == 0 ? 1 : exponent) - 25);
  }
  return value.bits >> 15 ? -magnitude : magnitude;
}

inline float to_float(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<unsigned>(value.bits) << 16);
}

template <class Element>
inline Element load_readonly(const Element* address) {
  return *address;
}

}  // namespace stof
