// What mask programs load: run-time tensors and block tables.
//
// Indices are clamped to the tensor, so that no index of a program, however wrong the data, reads
// other memory. Over a tile (indices are Ranges) a vector is scanned, which makes padding masks and
// document ids skip whole tiles; anything with more than one varying index is "maybe".
#pragma once

#include "mask_algebra.cuh"
#include "numbers.cuh"

namespace stof {

// Longest stretch of a vector that is scanned for the bounds of one tile.
constexpr int kLongestScan = 256;

// A dense row-major run-time tensor, at most 2^31 - 1 along each axis.
template <class Element, int kRank>
struct Tensor {
  const Element* data;
  int dims[kRank == 0 ? 1 : kRank];

  template <class... Index>
  __device__ __forceinline__ Element at(Index... index) const {
    static_assert(sizeof...(Index) == kRank, "one index an axis");
    if constexpr (kRank == 0) {
      return load_readonly(data);
    } else {
      const Int64 indices[kRank] = {Int64(index)...};
      Int64 offset = 0;
#pragma unroll
      for (int axis = 0; axis < kRank; ++axis) {
        if (dims[axis] == 0) return Element{};  // nothing to read
        const Int64 last = dims[axis] - 1;
        offset = offset * dims[axis] + larger(Int64(0), smaller(indices[axis], last));
      }
      return load_readonly(data + offset);
    }
  }
};

// Calls visit(element) for every element of a tile and returns true, or returns false where that
// would be too many.
template <class Element, int kRank, class Visit>
__device__ __forceinline__ bool scan(const Tensor<Element, kRank>& tensor, const Range* index,
                                     Visit visit) {
  if constexpr (kRank == 0) {
    visit(load_readonly(tensor.data));
    return true;
  } else {
    Int64 first = 0, step = 0, count = 1, stride = 1;
#pragma unroll
    for (int axis = kRank - 1; axis >= 0; --axis) {
      if (!index[axis].known) return false;
      if (tensor.dims[axis] == 0) {  // as at() has it
        visit(Element{});
        return true;
      }
      const Int64 last = tensor.dims[axis] - 1;
      const Int64 low = larger(Int64(0), smaller(index[axis].lo, last));
      const Int64 high = larger(Int64(0), smaller(index[axis].hi, last));
      if (high > low) {
        if (count > 1) return false;
        count = high - low + 1;
        step = stride;
      }
      first += low * stride;
      stride *= tensor.dims[axis];
    }
    if (count > kLongestScan) return false;
    for (Int64 i = 0; i < count; ++i) visit(load_readonly(tensor.data + first + i * step));
    return true;
  }
}

// The loads of a program: over elements (integer indices) and over tiles (Ranges).
template <class T>
struct Loads {
  template <class Element, int kRank, class... Index>
  static __device__ __forceinline__ bool boolean(const Tensor<Element, kRank>& tensor,
                                                 Index... index) {
    return tensor.at(index...) != 0;
  }

  template <class Element, int kRank, class... Index>
  static __device__ __forceinline__ T integer(const Tensor<Element, kRank>& tensor,
                                              Index... index) {
    return T(tensor.at(index...));
  }

  template <class Element, int kRank, class... Index>
  static __device__ __forceinline__ float real(const Tensor<Element, kRank>& tensor,
                                               Index... index) {
    return to_float(tensor.at(index...));
  }
};

template <>
struct Loads<Range> {
  template <class Element, int kRank, class... Index>
  static __device__ __forceinline__ Maybe boolean(const Tensor<Element, kRank>& tensor,
                                                  Index... index) {
    const Range indices[kRank == 0 ? 1 : kRank] = {index...};
    Maybe result{false, false};
    const bool scanned = scan(tensor, indices, [&](Element element) {
      result.can_be_true |= element != 0;
      result.can_be_false |= element == 0;
    });
    return scanned ? result : Maybe{true, true};
  }

  template <class Element, int kRank, class... Index>
  static __device__ __forceinline__ Range integer(const Tensor<Element, kRank>& tensor,
                                                  Index... index) {
    const Range indices[kRank == 0 ? 1 : kRank] = {index...};
    Range result(0x7fffffffffffffff, -0x7fffffffffffffff - 1);
    const bool scanned = scan(tensor, indices, [&](Element element) {
      result.lo = smaller(result.lo, Int64(element));
      result.hi = larger(result.hi, Int64(element));
    });
    // Sums of such bounds must not overflow; larger values can't be bounded.
    const Int64 limit = Int64(1) << 40;
    return scanned && result.lo >= -limit && result.hi <= limit ? result : Range::unknown();
  }
};

// ---- block tables -----------------------------------------------------------------------------

// State of a tile, beside the number of its bitmap (0 and up) where it is partial.
constexpr int kEmptyTile = -2;
constexpr int kFullTile = -1;

__device__ __forceinline__ Maybe maybe_of(int tile) {
  return Maybe{tile != kFullTile, tile != kEmptyTile};
}

// Where `column` is in the ascending columns[first, last), or -1.
__device__ __forceinline__ int find_column(const int* columns, int first, int last, int column) {
  const int end = last;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (load_readonly(columns + middle) < column) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first < end && load_readonly(columns + first) == column ? first : -1;
}

// The part that both kinds of table share. A bitmap is (kTileQ / 8) x (kTileK / 8) sub-tiles of 8x8
// pairs, each a 64-bit word stored low half first; bit 8 r + c is pair (r, c).
template <class Table, int kTileQ, int kTileK>
struct TableReader {
  static constexpr int kTileQueries = kTileQ;
  static constexpr int kTileKeys = kTileK;
  static constexpr int kHalfWords = kTileQ * kTileK / 32;

  // Whether pair (r, c) of a tile is kept.
  __device__ __forceinline__ bool bit(int tile, int r, int c) const {
    if (tile < 0) return tile == kFullTile;
    const Table& table = *static_cast<const Table*>(this);
    const Int64 word = (r / 8) * (kTileK / 8) + c / 8;
    const unsigned half =
        load_readonly(table.bitmaps + Int64(tile) * kHalfWords + 2 * word + (r % 8) / 4);
    return half >> (8 * (r % 4) + c % 8) & 1;
  }

  // Any pair, by looking its tile up.
  __device__ __forceinline__ bool element(Int64 group, Int64 query, Int64 key) const {
    const Table& table = *static_cast<const Table*>(this);
    const int q = int(larger(Int64(0), smaller(query, Int64(table.queries() - 1))));
    const int k = int(larger(Int64(0), smaller(key, Int64(table.keys() - 1))));
    const int g = int(larger(Int64(0), smaller(group, Int64(table.groups() - 1))));
    return bit(table.find(g, q / kTileQ, k / kTileK), q % kTileQ, k % kTileK);
  }

  // Any rectangle of pairs; "maybe" where it spans many tiles.
  __device__ __forceinline__ Maybe tiles(Range group, Range query, Range key) const {
    if (!group.is_point() || !query.known || !key.known) return Maybe{true, true};
    const Table& table = *static_cast<const Table*>(this);
    const int g = int(larger(Int64(0), smaller(group.lo, Int64(table.groups() - 1))));
    const Int64 q_last = table.queries() - 1, k_last = table.keys() - 1;
    const int q0 = int(larger(Int64(0), smaller(query.lo, q_last)) / kTileQ);
    const int q1 = int(larger(Int64(0), smaller(query.hi, q_last)) / kTileQ);
    const int k0 = int(larger(Int64(0), smaller(key.lo, k_last)) / kTileK);
    const int k1 = int(larger(Int64(0), smaller(key.hi, k_last)) / kTileK);
    if (Int64(q1 - q0 + 1) * (k1 - k0 + 1) > 4) return Maybe{true, true};
    Maybe result{false, false};
    for (int q = q0; q <= q1; ++q) {
      for (int k = k0; k <= k1; ++k) {
        const Maybe tile = maybe_of(table.find(g, q, k));
        result.can_be_false |= tile.can_be_false;
        result.can_be_true |= tile.can_be_true;
      }
    }
    return result;
  }
};

// A constant mask's table: the five arrays of docs/block-table.md.
template <int kGroups, int kQueries, int kKeys, int kTileQ, int kTileK>
struct BlockTable
    : TableReader<BlockTable<kGroups, kQueries, kKeys, kTileQ, kTileK>, kTileQ, kTileK> {
  const int* row_offsets;
  const int* full_counts;
  const int* tile_columns;
  const int* tile_bitmaps;
  const unsigned* bitmaps;

  static __device__ constexpr int groups() { return kGroups; }
  static __device__ constexpr int queries() { return kQueries; }
  static __device__ constexpr int keys() { return kKeys; }

  __device__ __forceinline__ int find(int group, int query_tile, int key_tile) const {
    const int row = group * ((kQueries + kTileQ - 1) / kTileQ) + query_tile;
    const int first = load_readonly(row_offsets + row);
    const int last = load_readonly(row_offsets + row + 1);
    const int partial = first + load_readonly(full_counts + row);
    if (find_column(tile_columns, first, partial, key_tile) >= 0) return kFullTile;
    const int found = find_column(tile_columns, partial, last, key_tile);
    return found < 0 ? kEmptyTile : load_readonly(tile_bitmaps + found);
  }
};

// A run-time mask's table: the three outputs of StofMaskTable (docs/operators.md).
template <int kTileQ, int kTileK>
struct RunTimeTable : TableReader<RunTimeTable<kTileQ, kTileK>, kTileQ, kTileK> {
  const int* tile_counts;
  const int* tile_columns;
  const unsigned* bitmaps;
  int sizes[3];  // groups, tiles of queries, tiles of keys

  __device__ __forceinline__ int groups() const { return sizes[0]; }
  // Rounded up to whole tiles: beyond the mask all bits are 0.
  __device__ __forceinline__ int queries() const { return sizes[1] * kTileQ; }
  __device__ __forceinline__ int keys() const { return sizes[2] * kTileK; }

  __device__ __forceinline__ int find(int group, int query_tile, int key_tile) const {
    const Int64 row = Int64(group) * sizes[1] + query_tile;
    const int full = load_readonly(tile_counts + 2 * row);
    const int listed = full + load_readonly(tile_counts + 2 * row + 1);
    const int* columns = tile_columns + row * sizes[2];
    if (find_column(columns, 0, full, key_tile) >= 0) return kFullTile;
    const bool found = find_column(columns, full, listed, key_tile) >= 0;
    return found ? int(row * sizes[2] + key_tile) : kEmptyTile;
  }
};

// Loads of a table at exactly (q, k), whose tile is the kernel's own: the tile was looked up when
// it was classified, and `cursor` remembers it.
template <class T>
struct TileLoads {
  template <class Table>
  static __device__ __forceinline__ bool of(const Table& table, int& cursor, T, T query, T key) {
    return table.bit(cursor, int(query) % Table::kTileQueries, int(key) % Table::kTileKeys);
  }
};

template <>
struct TileLoads<Range> {
  template <class Table>
  static __device__ __forceinline__ Maybe of(const Table& table, int& cursor, Range group,
                                             Range query, Range key) {
    const int g = int(larger(Int64(0), smaller(group.lo, Int64(table.groups() - 1))));
    const int q = int(smaller(query.lo, Int64(table.queries() - 1))) / Table::kTileQueries;
    const int k = int(smaller(key.lo, Int64(table.keys() - 1))) / Table::kTileKeys;
    cursor = table.find(g, q, k);
    return maybe_of(cursor);
  }
};

// Loads of a table at any other indices.
template <class T>
struct TableLoads {
  template <class Table>
  static __device__ __forceinline__ bool of(const Table& table, T group, T query, T key) {
    return table.element(group, query, key);
  }
};

template <>
struct TableLoads<Range> {
  template <class Table>
  static __device__ __forceinline__ Maybe of(const Table& table, Range group, Range query,
                                             Range key) {
    return table.tiles(group, query, key);
  }
};

}  // namespace stof
