// Decoder of raw DEFLATE data (RFC 1951).
#ifndef STOF_PLAN_INFLATE_H
#define STOF_PLAN_INFLATE_H

#include <cstddef>
#include <cstdint>

namespace stof {

// Decodes `input` into exactly `output_size` bytes. Reads and writes nothing outside of the two
// buffers, whatever the input. Throws PlanError for a stream that is malformed, ends too early or
// too late, or holds more or less than `output_size` bytes.
void inflate(const std::uint8_t* input, std::size_t input_size, std::uint8_t* output,
             std::size_t output_size);

// No DEFLATE stream of this many bytes holds more: a match of 258 bytes takes at least 2 bits.
constexpr std::uint64_t largest_inflated_size(std::uint64_t input_size) {
  return input_size * (8 / 2) * 258;
}

}  // namespace stof

#endif  // STOF_PLAN_INFLATE_H
