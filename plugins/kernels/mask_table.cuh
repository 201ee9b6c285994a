// Builds the block table of a run-time mask: the outputs of StofMaskTable (docs/operators.md).
//
// Outputs   tile_counts [G, Rq, 2], tile_columns [G, Rq, Rk], bitmaps [G, Rq, Rk, kWords] of 64-bit
//           words. G = batches * heads, Rq = ceil(queries / kTileQ), Rk = ceil(keys / kTileK),
//           kWords = kTileQ * kTileK / 64. Every element is written, whatever was there before.
// Sizes     any, 0 included; kTileQ and kTileK multiples of 8. Grid: x = G * Rq.
// Mask      a generated struct (stof_onnx/templates/mask_source.py) without tables: keep() on
//           elements and on Ranges. A tile that keep() decides as a whole isn't looked at further.
// Edges     bits outside the mask are 0; a tile is full if all its pairs inside are kept.
// Method    one block a row of tiles. Threads classify one tile each; warps compute the words of
//           those that stay open, a lane an 8x8 sub-tile at a time, neighbouring lanes neighbouring
//           columns; the first warp lists the tiles in order. No atomics: the result is the same
//           in every run.
// Shared    Rk bytes, dynamic: the state of each tile of the row.
// Config    kTileQ, kTileK, kThreads (a multiple of 32): see stof_onnx/templates/mask_table.py.
#pragma once

#include "mask_algebra.cuh"

namespace stof {

using Word = unsigned long long;  // of an 8x8 sub-tile: bit 8 r + c is pair (r, c)

// What is known of a tile; "open" is what Ranges couldn't decide.
enum class TileState : unsigned char { kEmpty, kPartial, kFull, kOpen };

struct TableOutputs {
  int* tile_counts;
  int* tile_columns;
  uint2* bitmaps;
  int heads;
  int queries;
  int keys;
};

// The mask of one batch and head.
template <class Mask>
struct MaskPlane {
  const Mask& mask;
  int b;
  int h;
  int queries;
  int keys;

  // What keep() says of all pairs of a tile that are inside the mask, of which there is at least
  // one.
  __device__ __forceinline__ TileState classify(int first_query, int first_key, int tile_q,
                                                int tile_k) const {
    const int last_query = smaller(first_query + tile_q, queries) - 1;
    const int last_key = smaller(first_key + tile_k, keys) - 1;
    int cursors[1];
    const Maybe kept = mask.template keep<Range>(Range(b), Range(h), Range(first_query, last_query),
                                                 Range(first_key, last_key), cursors);
    if (!kept.can_be_true) return TileState::kEmpty;
    return kept.can_be_false ? TileState::kOpen : TileState::kFull;
  }

  // The bits of a sub-tile that are inside the mask.
  __device__ __forceinline__ Word inside(int first_query, int first_key) const {
    if (queries <= first_query || keys <= first_key) return 0;
    const int rows = smaller(8, queries - first_query);
    const int columns = smaller(8, keys - first_key);
    // A row's bits in each of the eight bytes; then the bytes beyond the last row away. Shifts to
    // the right need no special case for 8 rows (and CUDA 13.0's ptxas for sm_90 got the one that
    // was here wrong, see docs/kernels.md).
    const Word row = 0xffu >> (8 - columns);
    return row * 0x0101010101010101ull & ~Word(0) >> (64 - 8 * rows);
  }

  // The bits of a sub-tile that are kept; 0 outside the mask.
  __device__ __forceinline__ Word kept(int first_query, int first_key) const {
    using Index = typename Mask::Index;
    const Word valid = inside(first_query, first_key);
    if (valid == 0) return 0;
    Word word = 0;
#pragma unroll 2
    for (int r = 0; r < 8; ++r) {
      unsigned row = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        // Pairs outside are computed at the edge and cut off: no branch keeps loads apart.
        const Index q = smaller(first_query + r, queries - 1);
        const Index k = smaller(first_key + c, keys - 1);
        int cursors[1];
        const bool keep = mask.template keep<Index>(Index(b), Index(h), q, k, cursors);
        row |= static_cast<unsigned>(keep) << c;
      }
      word |= Word(row) << (8 * r);
    }
    return word & valid;
  }
};

// Everything one block does: row `row` of tiles, counted over all groups.
template <class Config, class Mask>
struct TableRow {
  static constexpr int kTileQ = Config::kTileQ;
  static constexpr int kTileK = Config::kTileK;
  static constexpr int kColumns = kTileK / 8;
  static constexpr int kWords = kTileQ / 8 * kColumns;
  static constexpr int kWarps = Config::kThreads / 32;
  static constexpr unsigned kAllLanes = 0xffffffffu;
  static_assert(kTileQ % 8 == 0 && kTileK % 8 == 0 && Config::kThreads % 32 == 0);
  static_assert(Mask::kTables == 0 && !Mask::kHasBias && !Mask::kHasAgain,
                "a table is made from keep() alone");

  const TableOutputs& outputs;
  const MaskPlane<Mask> plane;
  TileState* states;  // [Rk], shared
  Int64 row;
  int first_query;
  int tiles;  // Rk

  __device__ __forceinline__ void run() const {
    for (int tile = threadIdx.x; tile < tiles; tile += Config::kThreads) {
      states[tile] = plane.classify(first_query, tile * kTileK, kTileQ, kTileK);
    }
    __syncthreads();
    const int warp = threadIdx.x / 32;
    for (int tile = warp; tile < tiles; tile += kWarps) write_bitmap(tile);
    __syncthreads();
    if (warp == 0) list_tiles();
  }

  // Writes the words of a tile and settles its state; by one warp.
  __device__ __forceinline__ void write_bitmap(int tile) const {
    const TileState known = states[tile];
    uint2* words = outputs.bitmaps + (row * tiles + tile) * kWords;
    bool any = false, all = true;
    for (int i = threadIdx.x % 32; i < kWords; i += 32) {
      const int query = first_query + i / kColumns * 8;
      const int key = tile * kTileK + i % kColumns * 8;
      const Word inside = plane.inside(query, key);
      Word word = 0;
      if (known == TileState::kOpen) word = plane.kept(query, key);
      if (known == TileState::kFull) word = inside;
      words[i] = uint2{static_cast<unsigned>(word), static_cast<unsigned>(word >> 32)};
      any |= word != 0;
      all &= word == inside;
    }
    if (known != TileState::kOpen) return;
    any = __any_sync(kAllLanes, any);
    all = __all_sync(kAllLanes, all);
    __syncwarp();  // every lane has read the state
    const TileState found = any ? TileState::kPartial : TileState::kEmpty;
    if (threadIdx.x % 32 == 0) states[tile] = all ? TileState::kFull : found;
  }

  // Writes counts and columns: the full tiles ascending, the partial ones ascending, -1; by one
  // warp.
  __device__ __forceinline__ void list_tiles() const {
    int* columns = outputs.tile_columns + row * tiles;
    const int full = list_state(TileState::kFull, columns, 0);
    const int listed = list_state(TileState::kPartial, columns, full);
    const int lane = threadIdx.x;
    for (int i = listed + lane; i < tiles; i += 32) columns[i] = -1;
    if (lane < 2) outputs.tile_counts[2 * row + lane] = lane == 0 ? full : listed - full;
  }

  // Appends the tiles of one state to the `count` that are there, and returns the new count.
  __device__ __forceinline__ int list_state(TileState state, int* columns, int count) const {
    const int lane = threadIdx.x;
    for (int first = 0; first < tiles; first += 32) {
      const int tile = first + lane;
      const bool listed = tile < tiles && states[tile] == state;
      const unsigned votes = __ballot_sync(kAllLanes, listed);
      if (listed) columns[count + __popc(votes & ((1u << lane) - 1))] = tile;
      count += __popc(votes);
    }
    return count;
  }
};

template <class Config, class Mask>
__device__ __forceinline__ void mask_table(const TableOutputs& outputs, const Mask& mask) {
  extern __shared__ TileState states[];
  const int rows = (outputs.queries + Config::kTileQ - 1) / Config::kTileQ;
  const int row = static_cast<int>(blockIdx.x);
  const int group = row / rows;
  const MaskPlane<Mask> plane{mask, group / outputs.heads, group % outputs.heads, outputs.queries,
                              outputs.keys};
  TableRow<Config, Mask>{outputs,
                         plane,
                         states,
                         row,
                         row % rows * Config::kTileQ,
                         (outputs.keys + Config::kTileK - 1) / Config::kTileK}
      .run();
}

}  // namespace stof
