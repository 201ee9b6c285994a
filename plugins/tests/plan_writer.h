// Writes plans as docs/plan.md says, sound or not: whatever the record holds.
#ifndef STOF_TESTS_PLAN_WRITER_H
#define STOF_TESTS_PLAN_WRITER_H

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace stof {
namespace tests {

using Bytes = std::vector<std::uint8_t>;

// The payload; of each image, the last byte (the NUL that read_plan appends) is left out.
Bytes write_payload(const Plan& plan);

// The envelope around a payload, which is stored as uncompressed DEFLATE blocks.
Bytes write_envelope(const Bytes& payload);

inline Bytes write_plan(const Plan& plan) { return write_envelope(write_payload(plan)); }

void append_u32(Bytes& bytes, std::uint32_t value);

// A sound plan with something of everything. Inputs: 0 of shape [B, S, D] and 1 of [B, S]; output 0
// of [B, S, D]. Symbols: 0 is B, 1 is S, 2 is B * S, 3 is B of input 1, which must cover that of
// input 0. Two variants: sm_80 (newer, PTX) and sm_90 (exact, cubin); sm_90 has a bucket for S <=
// 64 and one for all shapes, with two launches.
Plan sample_plan();

Image make_image(const std::string& content);
Quantity constant(std::int64_t value);
// factor * ceil(symbol / divisor)
Quantity scaled(std::int64_t factor, std::uint32_t symbol, std::int64_t divisor = 1);

}  // namespace tests
}  // namespace stof

#endif  // STOF_TESTS_PLAN_WRITER_H
