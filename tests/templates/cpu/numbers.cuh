// Stands in for plugins/kernels/numbers.cuh in tests that run device code on the CPU, without its
// PTX. The tests copy it beside the headers that include it.
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
  const unsigned magnitude = value.bits & 0x7fffu;
  // As the bits of a float it is 2^112 times too small, unless it is infinite or NaN.
  const float finite = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  const float special = magnitude == 0x7c00u ? kInfinity : kInfinity - kInfinity;
  const float result = magnitude < 0x7c00u ? finite : special;
  return value.bits >> 15 ? -result : result;
}

inline float to_float(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<unsigned>(value.bits) << 16);
}

template <class Element>
inline Element from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

// Rounds the bits of a number to a multiple of 2^kBits, ties to even.
template <unsigned kBits>
unsigned round_bits(unsigned bits) {
  return (bits + (1u << (kBits - 1)) - 1 + (bits >> kBits & 1)) >> kBits;
}

template <>
inline Half from_float<Half>(float value) {
  const unsigned sign = __builtin_bit_cast(unsigned, value) >> 31 << 15;
  const float magnitude = std::fabs(value);
  unsigned bits = 0x7fffu;  // NaN
  if (magnitude < 0x1p-14f) {
    bits = static_cast<unsigned>(std::nearbyint(magnitude * 0x1p24f));
  } else if (magnitude < 65520.0f) {
    bits = round_bits<13>(__builtin_bit_cast(unsigned, magnitude) - (112u << 23));
  } else if (magnitude >= 65520.0f) {
    bits = 0x7c00u;
  }
  return Half{static_cast<unsigned short>(sign | bits)};
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const unsigned bits = std::isnan(value) ? 0x7fffu << 16 : __builtin_bit_cast(unsigned, value);
  return BFloat16{static_cast<unsigned short>(round_bits<16>(bits))};
}

template <class Element>
inline unsigned pack(float low, float high) {
  return from_float<Element>(low).bits | static_cast<unsigned>(from_float<Element>(high).bits)
                                             << 16;
}

template <class Element>
inline Element load_readonly(const Element* address) {
  return *address;
}

}  // namespace stof
