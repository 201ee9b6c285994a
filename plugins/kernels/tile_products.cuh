// The two matrix products of attention on tiles in shared memory, for one warp and 16 query rows.
//
//   scores[16, kTileK]  = queries[16, kHeadDim] * keys[kTileK, kHeadDim]^T
//   output[16, kValue] += weights[16, kTileK]   * values[kTileK, kValue]
//
// Accumulators are fragments of 16x8 tiles (tensor_core.cuh). Tiles are row-major with a pitch that
// keeps the warp's accesses in different banks; columns beyond the head dim hold zeros.
#pragma once

#include "tensor_core.cuh"

namespace stof {

// 16-bit elements: ldmatrix and m16n8k16.
template <class Element>
struct TileProducts {
  // A row is an odd number of 16-byte units, so that the 8 rows of a matrix differ in their banks.
  static constexpr int kKeyPadding = 8;
  static constexpr int kValuePadding = 8;

  template <int kHeadDim, int kTileK, int kPitch>
  static __device__ __forceinline__ void scores(float (&result)[kTileK / 8][4],
                                                const Element* queries, const Element* keys) {
    const int lane = threadIdx.x % 32;
    const Element* a_row = queries + (lane % 16) * kPitch + (lane / 16) * 8;
    const Element* b_row = keys + ((lane / 16) * 8 + lane % 8) * kPitch + (lane / 8 % 2) * 8;
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      unsigned a[4];
      load_matrices(a, a_row + d);
#pragma unroll
      for (int k = 0; k < kTileK; k += 16) {
        unsigned b[4];
        load_matrices(b, b_row + k * kPitch + d);
        multiply_add<Element>(result[k / 8], a, b[0], b[1]);
        multiply_add<Element>(result[k / 8 + 1], a, b[2], b[3]);
      }
    }
  }

  template <int kValueDim, int kTileK, int kPitch>
  static __device__ __forceinline__ void accumulate(float (&output)[kValueDim / 8][4],
                                                    const float (&weights)[kTileK / 8][4],
                                                    const Element* values) {
    const int lane = threadIdx.x % 32;
    const Element* b_row = values + (lane % 16) * kPitch + (lane / 16) * 8;
#pragma unroll
    for (int k = 0; k < kTileK; k += 16) {
      // Accumulators of two neighbouring 16x8 tiles are the operand of one 16x16 tile.
      const float (&w0)[4] = weights[k / 8];
      const float (&w1)[4] = weights[k / 8 + 1];
      const unsigned a[4] = {pack<Element>(w0[0], w0[1]), pack<Element>(w0[2], w0[3]),
                             pack<Element>(w1[0], w1[1]), pack<Element>(w1[2], w1[3])};
#pragma unroll
      for (int d = 0; d < kValueDim; d += 16) {
        unsigned b[4];
        load_matrices_transposed(b, b_row + k * kPitch + d);
        multiply_add<Element>(output[d / 8], a, b[0], b[1]);
        multiply_add<Element>(output[d / 8 + 1], a, b[2], b[3]);
      }
    }
  }
};

// float32: m16n8k8 on split numbers. A product sums over its inner index in any order, so operands
// are read with inner indices t and t + 4 of a step taken from 2 t and 2 t + 1: pairs that lie side
// by side in shared memory and, for weights, in the accumulators.
template <>
struct TileProducts<float> {
  static constexpr int kKeyPadding = 8;
  static constexpr int kValuePadding = 4;

  template <int kHeadDim, int kTileK, int kPitch>
  static __device__ __forceinline__ void scores(float (&result)[kTileK / 8][4],
                                                const float* queries, const float* keys) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    const float* a_row = queries + group * kPitch + 2 * member;
    const float* b_row = keys + group * kPitch + 2 * member;
#pragma unroll 4
    for (int d = 0; d < kHeadDim; d += 8) {
      const float2 upper = *reinterpret_cast<const float2*>(a_row + d);
      const float2 lower = *reinterpret_cast<const float2*>(a_row + 8 * kPitch + d);
      const SplitFloat a[4] = {SplitFloat(upper.x), SplitFloat(lower.x), SplitFloat(upper.y),
                               SplitFloat(lower.y)};
#pragma unroll
      for (int k = 0; k < kTileK; k += 8) {
        const float2 b = *reinterpret_cast<const float2*>(b_row + k * kPitch + d);
        multiply_add(result[k / 8], a, SplitFloat(b.x), SplitFloat(b.y));
      }
    }
  }

  template <int kValueDim, int kTileK, int kPitch>
  static __device__ __forceinline__ void accumulate(float (&output)[kValueDim / 8][4],
                                                    const float (&weights)[kTileK / 8][4],
                                                    const float* values) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    const float* b_row = values + 2 * member * kPitch + group;
#pragma unroll
    for (int k = 0; k < kTileK; k += 8) {
      const float (&w)[4] = weights[k / 8];
      const SplitFloat a[4] = {SplitFloat(w[0]), SplitFloat(w[2]), SplitFloat(w[1]),
                               SplitFloat(w[3])};
#pragma unroll
      for (int d = 0; d < kValueDim; d += 8) {
        const float* b = b_row + k * kPitch + d;
        multiply_add(output[d / 8], a, SplitFloat(b[0]), SplitFloat(b[kPitch]));
      }
    }
  }
};

}  // namespace stof
