// Shapes as numbers: what onShapeChange compares before kernels rely on it. Throw AttributeError.
#ifndef STOF_TRT_SHAPES_H
#define STOF_TRT_SHAPES_H

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace stof {

// Throws unless the tensor has the shape that is wanted, with a message that has both.
void require_shape(const std::string& tensor, const Dimensions& came, const Dimensions& wanted);

// The product; throws where it doesn't fit 64 bits.
std::int64_t product(std::int64_t first, std::int64_t second);

// Shapes of a run-time mask's table (tile_counts, tile_columns, bitmaps; docs/operators.md).
std::vector<Dimensions> table_shapes(std::int64_t groups, std::int64_t queries, std::int64_t keys,
                                     std::int64_t tile_q, std::int64_t tile_k);

// Their names, in order.
extern const char* const kTableTensors[3];

}  // namespace stof

#endif  // STOF_TRT_SHAPES_H
