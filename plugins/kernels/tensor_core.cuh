// Asynchronous copies to shared memory and tensor-core products for compute capability 8.0 and
// newer, as the warp-wide instructions that mma.sync kernels are made of.
//
// Fragment layouts are those of the PTX ISA, "Matrix fragments for mma". With lane = 4 g + t:
// accumulators of a 16x8 tile hold rows g (registers 0, 1) and g + 8 (2, 3), columns 2 t and 2 t+1.
#pragma once

#include "numbers.cuh"

namespace stof {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies kBytes (2, 4, 8 or 16) from device to shared memory, or writes zeros if not `valid`. The
// copy is asynchronous where the hardware can (4 bytes and up); addresses are multiples of kBytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const int size = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(size)
                 : "memory");
  } else if constexpr (kBytes >= 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(kBytes), "r"(size)
                 : "memory");
  } else {
    static_assert(kBytes == 2, "2, 4, 8 or 16 bytes");
    *static_cast<unsigned short*>(shared) =
        valid ? *static_cast<const unsigned short*>(global) : static_cast<unsigned short>(0);
  }
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the newest kPending groups of this thread's copies have arrived.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(unsigned (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&registers)[4],
                                                         const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b: 16x8 float accumulators, a 16x16 row-major, b 16x8.
template <class Element>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1);

template <>
__device__ __forceinline__ void multiply_add<Half>(float (&c)[4], const unsigned (&a)[4],
                                                   unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<BFloat16>(float (&c)[4], const unsigned (&a)[4],
                                                       unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A float as the sum of two TF32 numbers. What is left is below 2^-21 of it.
struct SplitFloat {
  unsigned high;
  unsigned low;

  __device__ __forceinline__ SplitFloat() {}
  __device__ __forceinline__ explicit SplitFloat(float value) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(value));
    const float rest = value - __uint_as_float(high);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(rest));
  }
};

__device__ __forceinline__ void multiply_add_tf32(float (&c)[4], unsigned a0, unsigned a1,
                                                  unsigned a2, unsigned a3, unsigned b0,
                                                  unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += a b for floats, as three TF32 products ("3xTF32"), with an error like that of float32
// arithmetic. Tensor cores truncate when they accumulate, which over a long sum is a bias beyond
// float32's own error; so they sum 8 products only, and c is added to by ordinary, rounded
// additions.
__device__ __forceinline__ void multiply_add(float (&c)[4], const SplitFloat (&a)[4],
                                             const SplitFloat& b0, const SplitFloat& b1) {
  float sum[4] = {};
  multiply_add_tf32(sum, a[0].low, a[1].low, a[2].low, a[3].low, b0.high, b1.high);
  multiply_add_tf32(sum, a[0].high, a[1].high, a[2].high, a[3].high, b0.low, b1.low);
  multiply_add_tf32(sum, a[0].high, a[1].high, a[2].high, a[3].high, b0.high, b1.high);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += sum[i];
}

// 2^x, to about 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// tanh(x), off by 2^-21 at most, which next to 0 is a large part of it.
__device__ __forceinline__ float tanh_approximate(float x) {
  constexpr float kTwoLog2E = 2.8853900817779268f;
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;"
      : "=f"(reciprocal)
      : "f"(exp2_approximate(x * kTwoLog2E) + 1.0f));
  return fmaf(-2.0f, reciprocal, 1.0f);
}

}  // namespace stof
