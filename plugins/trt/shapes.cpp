#include "trt/shapes.h"

#include "trt/attributes.h"

namespace stof {

namespace {

std::string describe(const Dimensions& dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  }
  return text + "]";
}

// Without the sum that would overflow next to the largest number.
std::int64_t tiles_of(std::int64_t size, std::int64_t tile) {
  return size / tile + (size % tile > 0 ? 1 : 0);
}

}  // namespace

const char* const kTableTensors[3] = {"tile_counts", "tile_columns", "bitmaps"};

void require_shape(const std::string& tensor, const Dimensions& came, const Dimensions& wanted) {
  if (came == wanted) return;
  throw AttributeError(tensor + " has the shape " + describe(came) + ", wanted " +
                       describe(wanted) + " by the other tensors and the attributes");
}

std::int64_t product(std::int64_t first, std::int64_t second) {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(first, second, &result)) {
    throw AttributeError(std::to_string(first) + " times " + std::to_string(second) +
                         " doesn't fit 64 bits; use smaller shapes");
  }
  return result;
}

std::vector<Dimensions> table_shapes(std::int64_t groups, std::int64_t queries, std::int64_t keys,
                                     std::int64_t tile_q, std::int64_t tile_k) {
  const std::int64_t rows = tiles_of(queries, tile_q), columns = tiles_of(keys, tile_k);
  return {{groups, rows, 2},
          {groups, rows, columns},
          {groups, rows, columns, product(tile_q, tile_k) / 32}};
}

}  // namespace stof
