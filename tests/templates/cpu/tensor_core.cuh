// Stands in for plugins/kernels/tensor_core.cuh in tests that run kernels on the CPU
// (cuda_blocks.h): the same copies and products as exchanges between the lanes of a warp, by the
// PTX ISA's tables of fragments.
//
// Asynchronous copies take place when they are started or, if cpu::copies_are_late, when they are
// waited for: whatever lies between must work with either.
#pragma once

#include "numbers.cuh"

namespace cpu {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  int bytes;
};

// What a thread has started and not yet waited for.
struct Copies {
  std::vector<Copy> started;
  std::size_t committed = 0;
};

inline bool copies_are_late = false;
inline Copies copies[kMostThreads];

inline void perform(const Copy& copy) {
  const std::size_t size = static_cast<std::size_t>(copy.bytes);
  if (copy.global == nullptr) {
    std::memset(copy.shared, 0, size);
  } else {
    std::memcpy(copy.shared, copy.global, size);
  }
}

inline void require_multiple(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::size_t>(address) % bytes != 0) fail("a misaligned address");
}

// To be called when a kernel has ended.
inline void require_no_copies() {
  for (const Copies& some : copies) {
    if (!some.started.empty()) fail("copies that nobody waited for");
  }
}

}  // namespace cpu

namespace stof {

template <int kBytes>
inline void copy_async(void* shared, const void* global, bool valid) {
  cpu::require_multiple(shared, kBytes);
  if (valid) cpu::require_multiple(global, kBytes);
  const cpu::Copy copy{shared, valid ? global : nullptr, kBytes};
  if (kBytes >= 4 && cpu::copies_are_late) {
    cpu::copies[threadIdx.x].started.push_back(copy);
  } else {
    cpu::perform(copy);
  }
}

inline void commit_copies() {
  cpu::Copies& copies = cpu::copies[threadIdx.x];
  copies.committed = copies.started.size();
}

template <int kPending>
inline void wait_copies() {
  static_assert(kPending == 0, "groups of copies aren't told apart here");
  cpu::Copies& copies = cpu::copies[threadIdx.x];
  const auto first = copies.started.begin();
  const auto last = first + static_cast<std::ptrdiff_t>(copies.committed);
  for (auto copy = first; copy != last; ++copy) cpu::perform(*copy);
  copies.started.erase(first, last);
  copies.committed = 0;
}

// Element `column` of row `row` of 8x8 matrix i, of which lane 8 i + row gave the address.
inline unsigned matrix_element(const void* const* rows, unsigned i, unsigned row, unsigned column) {
  return static_cast<const unsigned short*>(rows[8 * i + row])[column];
}

template <bool kTransposed>
inline void load_any_matrices(unsigned (&registers)[4], const void* row) {
  cpu::require_multiple(row, 16);
  const void* const* const rows = cpu::exchange<cpu::Waits::kForMatrices>(row);
  const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned low =
        kTransposed ? matrix_element(rows, i, 2 * t, g) : matrix_element(rows, i, g, 2 * t);
    const unsigned high =
        kTransposed ? matrix_element(rows, i, 2 * t + 1, g) : matrix_element(rows, i, g, 2 * t + 1);
    registers[i] = low | high << 16;
  }
}

inline void load_matrices(unsigned (&registers)[4], const void* row) {
  load_any_matrices<false>(registers, row);
}

inline void load_matrices_transposed(unsigned (&registers)[4], const void* row) {
  load_any_matrices<true>(registers, row);
}

// What a lane holds of the 16 x kInner and kInner x 8 operands of a product.
template <int kInner>
struct Fragments {
  float a[kInner / 2];
  float b[kInner / 4];
};

// c += a b. kPacked: numbers that lie side by side in a register, 1 or 2.
template <int kInner, int kPacked>
inline void multiply_fragments(float (&c)[4], const Fragments<kInner>& mine) {
  const Fragments<kInner>* const lanes = cpu::exchange<cpu::Waits::kForProducts>(mine);
  const int g = static_cast<int>(threadIdx.x % 32 / 4), t = static_cast<int>(threadIdx.x % 4);
  constexpr int kHalf = kInner / 2;  // a register of b, or two of a, hold so many inner indices
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < kInner; ++k) {
      const int lane = k % kHalf / kPacked, half = k / kHalf, part = k % kPacked;
      sum += lanes[4 * g + lane].a[(2 * half + i / 2) * kPacked + part] *
             lanes[4 * column + lane].b[half * kPacked + part];
    }
    c[i] += sum;
  }
}

template <class Element>
inline void unpack(float* numbers, unsigned bits) {
  numbers[0] = to_float(Element{static_cast<unsigned short>(bits)});
  numbers[1] = to_float(Element{static_cast<unsigned short>(bits >> 16)});
}

template <class Element>
inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Fragments<16> mine;
  for (int i = 0; i < 4; ++i) unpack<Element>(mine.a + 2 * i, a[i]);
  unpack<Element>(mine.b, b0);
  unpack<Element>(mine.b + 2, b1);
  multiply_fragments<16, 2>(c, mine);
}

// A float in one piece: products are float32 here without a detour.
struct SplitFloat {
  float value;

  SplitFloat() = default;
  explicit SplitFloat(float given) : value(given) {}
};

inline void multiply_add(float (&c)[4], const SplitFloat (&a)[4], const SplitFloat& b0,
                         const SplitFloat& b1) {
  multiply_fragments<8, 1>(
      c, {{a[0].value, a[1].value, a[2].value, a[3].value}, {b0.value, b1.value}});
}

inline float exp2_approximate(float x) { return std::exp2(x); }

inline float tanh_approximate(float x) { return std::tanh(x); }

}  // namespace stof
