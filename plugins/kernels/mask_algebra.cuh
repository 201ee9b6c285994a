// The operations of mask expressions, on one element and on ranges of them.
//
// A mask program is generated once, as a template over its index type. Called with integers it says
// whether the pair (q, k) is kept; called with Ranges it says whether a whole tile is empty, full
// or neither. Ranges are conservative: an answer of "true" or "false" holds for every element,
// "maybe" may be either. That costs time at worst, never a wrong answer.
//
// Operations: those of stof_onnx/ir/expr/ops.py. Integers are 32 bits wide where the generator has
// shown that nothing overflows, else 64; Range bounds have 64 bits. No headers are needed: NVRTC
// compiles this without an include path.
#pragma once

namespace stof {

using Int64 = long long;

template <class T>
__device__ __forceinline__ T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
__device__ __forceinline__ T larger(T a, T b) {
  return a < b ? b : a;
}

// What is known of a boolean over a tile.
struct Maybe {
  bool can_be_false;
  bool can_be_true;
};

// Bounds of an integer over a tile, both inclusive; `known` is false where nothing is known.
struct Range {
  Int64 lo;
  Int64 hi;
  bool known;

  __device__ Range() : lo(0), hi(0), known(true) {}
  __device__ Range(Int64 value) : lo(value), hi(value), known(true) {}
  __device__ Range(Int64 low, Int64 high) : lo(low), hi(high), known(true) {}
  __device__ bool is_point() const { return known && lo == hi; }

  // Itself, or unknown where a bound is beyond 2^kBits: results must not overflow.
  __device__ Range bounded(int bits) const {
    const Int64 limit = (Int64(1) << bits) - 1;
    return known && lo >= -limit && hi <= limit ? *this : unknown();
  }

  static __device__ Range unknown() {
    Range result(0);
    result.known = false;
    return result;
  }
};

// ---- integers ---------------------------------------------------------------------------------

__device__ __forceinline__ Range operator+(Range a, Range b) {
  return a.known && b.known ? Range(a.lo + b.lo, a.hi + b.hi).bounded(62) : Range::unknown();
}

__device__ __forceinline__ Range operator*(Range a, Range b) {
  if (!a.bounded(31).known || !b.bounded(31).known) return Range::unknown();
  const Int64 p = a.lo * b.lo, q = a.lo * b.hi, r = a.hi * b.lo, s = a.hi * b.hi;
  return Range(smaller(smaller(p, q), smaller(r, s)), larger(larger(p, q), larger(r, s)));
}

// Rounds towards minus infinity, as ONNX index arithmetic that was exported from Python does.
template <class T>
__device__ __forceinline__ T floordiv(T a, T b) {
  const T quotient = a / b;
  return a % b != 0 && ((a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

__device__ __forceinline__ Range floordiv(Range a, Range b) {
  if (!a.known || !b.is_point() || b.lo == 0) return Range::unknown();
  const Int64 p = floordiv(a.lo, b.lo), q = floordiv(a.hi, b.lo);
  return Range(smaller(p, q), larger(p, q));
}

// Has the sign of the divisor.
template <class T>
__device__ __forceinline__ T modulo(T a, T b) {
  const T remainder = a % b;
  return remainder != 0 && ((remainder < 0) != (b < 0)) ? remainder + b : remainder;
}

__device__ __forceinline__ Range modulo(Range a, Range b) {
  if (!a.known || !b.is_point() || b.lo == 0) return Range::unknown();
  // Within one period the remainder is monotone; across periods it can be anything.
  if (floordiv(a.lo, b.lo) == floordiv(a.hi, b.lo)) {
    return Range(modulo(a.lo, b.lo), modulo(a.hi, b.lo));
  }
  return b.lo > 0 ? Range(0, b.lo - 1) : Range(b.lo + 1, 0);
}

template <class T>
__device__ __forceinline__ T absolute(T a) {
  return a < 0 ? -a : a;
}

__device__ __forceinline__ Range absolute(Range a) {
  if (!a.known) return a;
  if (a.lo >= 0) return a;
  if (a.hi <= 0) return Range(-a.hi, -a.lo);
  return Range(0, larger(-a.lo, a.hi));
}

template <class T>
__device__ __forceinline__ T minimum(T a, T b) {
  return smaller(a, b);
}

__device__ __forceinline__ Range minimum(Range a, Range b) {
  return a.known && b.known ? Range(smaller(a.lo, b.lo), smaller(a.hi, b.hi)) : Range::unknown();
}

template <class T>
__device__ __forceinline__ T maximum(T a, T b) {
  return larger(a, b);
}

__device__ __forceinline__ Range maximum(Range a, Range b) {
  return a.known && b.known ? Range(larger(a.lo, b.lo), larger(a.hi, b.hi)) : Range::unknown();
}

// ---- predicates -------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ bool ge0(T a) {
  return a >= 0;
}

__device__ __forceinline__ Maybe ge0(Range a) {
  return a.known ? Maybe{a.lo < 0, a.hi >= 0} : Maybe{true, true};
}

template <class T>
__device__ __forceinline__ bool eq0(T a) {
  return a == 0;
}

__device__ __forceinline__ Maybe eq0(Range a) {
  if (!a.known) return Maybe{true, true};
  return Maybe{a.lo != 0 || a.hi != 0, a.lo <= 0 && a.hi >= 0};
}

// ---- booleans ---------------------------------------------------------------------------------

__device__ __forceinline__ bool both(bool a, bool b) { return a && b; }
__device__ __forceinline__ Maybe both(Maybe a, Maybe b) {
  return Maybe{a.can_be_false || b.can_be_false, a.can_be_true && b.can_be_true};
}

__device__ __forceinline__ bool either(bool a, bool b) { return a || b; }
__device__ __forceinline__ Maybe either(Maybe a, Maybe b) {
  return Maybe{a.can_be_false && b.can_be_false, a.can_be_true || b.can_be_true};
}

__device__ __forceinline__ bool negated(bool a) { return !a; }
__device__ __forceinline__ Maybe negated(Maybe a) { return Maybe{a.can_be_true, a.can_be_false}; }

// ---- any kind ---------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T select(bool condition, T a, T b) {
  return condition ? a : b;
}

__device__ __forceinline__ Range select(Maybe condition, Range a, Range b) {
  if (!condition.can_be_false) return a;
  if (!condition.can_be_true) return b;
  if (!a.known || !b.known) return Range::unknown();
  return Range(smaller(a.lo, b.lo), larger(a.hi, b.hi));
}

__device__ __forceinline__ Maybe select(Maybe condition, Maybe a, Maybe b) {
  if (!condition.can_be_false) return a;
  if (!condition.can_be_true) return b;
  return Maybe{a.can_be_false || b.can_be_false, a.can_be_true || b.can_be_true};
}

// A literal "true" or "false" of a program whose index type is T.
template <class T>
struct Literal {
  static __device__ __forceinline__ bool of(bool value) { return value; }
};

template <>
struct Literal<Range> {
  static __device__ __forceinline__ Maybe of(bool value) { return Maybe{!value, value}; }
};

}  // namespace stof
