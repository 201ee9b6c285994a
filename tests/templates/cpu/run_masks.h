// Runs generated masks (`struct Mask`) on the CPU as the kernels do: each tile is classified with
// Ranges, then its elements are looked at with the cursors that this left behind.
//
// Input and output are files of native numbers; tests/templates/mask_on_cpu.py is the other side.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "mask_operands.cuh"

struct Case {
  int B = 0, H = 0, Sq = 0, Sk = 0, tile_q = 0, tile_k = 0;
  // Look at rows beyond Sq as well, as a kernel does at the edge; nothing depends on the results.
  bool beyond = false;
  // Memory of exactly the tensors' sizes, so that a sanitizer sees every read outside.
  std::vector<std::unique_ptr<unsigned char[]>> tensors;
  std::vector<std::int64_t> numbers;

  template <class Element>
  const Element* tensor(std::size_t i) const {
    return reinterpret_cast<const Element*>(tensors.at(i).get());
  }
  int number(std::size_t i) const { return static_cast<int>(numbers.at(i)); }
};

inline void read(FILE* file, void* data, std::size_t size) {
  if (size != 0 && std::fread(data, size, 1, file) != 1) std::abort();
}

inline int read_int(FILE* file) {
  std::int64_t value = 0;
  read(file, &value, sizeof(value));
  return static_cast<int>(value);
}

inline Case read_case(FILE* file) {
  Case result;
  for (int* field :
       {&result.B, &result.H, &result.Sq, &result.Sk, &result.tile_q, &result.tile_k}) {
    *field = read_int(file);
  }
  result.beyond = read_int(file) != 0;
  result.tensors.resize(read_int(file));
  for (auto& tensor : result.tensors) {
    const std::size_t size = read_int(file);
    tensor.reset(new unsigned char[size]);
    read(file, tensor.get(), size);
  }
  result.numbers.resize(read_int(file));
  for (auto& number : result.numbers) read(file, &number, sizeof(number));
  return result;
}

template <class Mask>
void run_tile(const Mask& mask, const Case& c, int b, int h, int first_query, int first_key,
              unsigned char& state, std::vector<unsigned char>& kept) {
  using Index = typename Mask::Index;
  using stof::Range;
  int cursors[Mask::kTables == 0 ? 1 : Mask::kTables];
  const int last_query = stof::smaller(first_query + c.tile_q, c.Sq) - 1;
  const int last_key = stof::smaller(first_key + c.tile_k, c.Sk) - 1;
  const stof::Maybe maybe = mask.template keep<Range>(
      Range(b), Range(h), Range(first_query, last_query), Range(first_key, last_key), cursors);
  state = static_cast<unsigned char>(maybe.can_be_false + 2 * maybe.can_be_true);
  const int end_query = c.beyond ? first_query + c.tile_q : last_query + 1;
  for (int q = first_query; q < end_query; ++q) {
    for (int k = first_key; k <= last_key; ++k) {
      const bool keep = mask.template keep<Index>(Index(b), Index(h), Index(q), Index(k), cursors);
      if (q > last_query) continue;
      kept[((static_cast<std::size_t>(b) * c.H + h) * c.Sq + q) * c.Sk + k] = keep;
    }
  }
}

template <class Mask>
void run(const Mask& mask, const Case& c, FILE* output) {
  using Index = typename Mask::Index;
  const std::size_t pairs = static_cast<std::size_t>(c.B) * c.H * c.Sq * c.Sk;
  std::vector<unsigned char> states, kept(pairs);
  std::vector<float> bias;
  for (int b = 0; b < c.B; ++b) {
    for (int h = 0; h < c.H; ++h) {
      for (int q = 0; q < c.Sq; q += c.tile_q) {
        for (int k = 0; k < c.Sk; k += c.tile_k) {
          run_tile(mask, c, b, h, q, k, states.emplace_back(), kept);
        }
      }
      if constexpr (Mask::kHasBias) {
        for (int q = 0; q < c.Sq; ++q) {
          for (int k = 0; k < c.Sk; ++k) {
            bias.push_back(mask.bias(Index(b), Index(h), Index(q), Index(k)));
          }
        }
      }
    }
  }
  std::fwrite(states.data(), 1, states.size(), output);
  std::fwrite(kept.data(), 1, kept.size(), output);
  if (!bias.empty()) std::fwrite(bias.data(), sizeof(float), bias.size(), output);
}

// Reads (number of a program, case) until the input ends.
template <std::size_t kPrograms>
int run_all(const char* const* arguments,
            void (*const (&programs)[kPrograms])(const Case&, FILE*)) {
  FILE* const input = std::fopen(arguments[1], "rb");
  FILE* const output = std::fopen(arguments[2], "wb");
  if (input == nullptr || output == nullptr) return 1;
  for (int cases = read_int(input); cases > 0; --cases) {
    const int program = read_int(input);
    const Case c = read_case(input);
    programs[program](c, output);
  }
  std::fclose(input);
  return std::fclose(output);
}
