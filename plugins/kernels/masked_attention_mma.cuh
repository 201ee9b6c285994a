// Masked attention, forward, for compute capability 8.0 and newer (mma.sync, cp.async).
//
//   O[b, h, q, :] = sum_k softmax_k(scale * Q[b, h, q, :] . K[b, h / group, k, :] + bias, masked)
//                   * V[b, h / group, k, :]
//
// With a softcap c, c * tanh(scores / c) takes the place of the scaled scores; with sinks the
// softmax is over one more logit, sinks[h], which has a weight but no value.
//
// Tensors   Q [B, H, Sq, D], K [B, H / group, Sk, D], V [B, H / group, Sk, Dv], O [B, H, Sq, Dv],
//           each by strides of batch, row and head (elements; a row is contiguous). Half, BFloat16
//           or float; accumulation and softmax are float32 (float inputs: 3xTF32 products).
//           Sinks [H], float32.
// Sizes     any Sq, Sk >= 0, Sq and Sk independent. D and Dv up to 256, padded to a multiple of 16
//           in shared memory. Grid: x = ceil(Sq / kTileQ) * H * B, query tiles fastest.
// Mask      a generated struct (stof_onnx/templates/mask_source.py): keep() on elements and on
//           Ranges, bias(), again(). Tiles that keep() calls empty are never loaded; full ones
//           aren't masked.
// Rows      without any kept key yield NaN, 0, the mean of all values, or the softmax of
//           score + fill over all keys (docs/operators.md), by Config::kEmptyRow. 0 if Sk is 0.
//           Where again() says so the fill counts twice; over pairs of -inf alone the softmax is
//           NaN, or 0 with kNanToZero.
//           A sink takes part in that as in any row; as a rule it takes all, and the row is 0.
// Method    one block a tile of queries, one warp 16 rows of it. The block classifies its tiles of
//           keys, then walks those that aren't empty with an online softmax (FlashAttention-2).
// Shared    sizeof(SharedStorage<Config>), dynamic.
// Config    Element, ScoreElement, kHeadDim, kValueDim, kTileQ, kTileK, kGroup, kCopyBytes of
//           each tensor, kEmptyRow, kScale, kSoftcap (0: none), kHasSinks; for finite fills, where
//           they count, kFill, kFillIsAdded, kEmptyBelow: see stof_onnx/templates.
#pragma once

#include "mask_algebra.cuh"
#include "tile_products.cuh"

namespace stof {

enum class EmptyRow { kNan, kZero, kMean, kSoftmax };

constexpr float kLog2E = 1.4426950408889634f;

// A tensor's element (b, h, s, d) is at data[b * batch + h * head + s * row + d].
template <class Element>
struct Strided {
  Element* data;
  Int64 batch;
  Int64 head;
  Int64 row;

  __device__ __forceinline__ Element* at(int b, int h, int s) const {
    return data + b * batch + h * head + s * row;
  }
};

template <class Element>
struct AttentionTensors {
  Strided<const Element> query;
  Strided<const Element> key;
  Strided<const Element> value;
  Strided<Element> output;
  const float* sinks;  // null without Config::kHasSinks
  int batches;
  int heads;
  int queries;
  int keys;
};

constexpr int padded_to_16(int value) { return (value + 15) / 16 * 16; }

template <class Config, int kTables>
struct AttentionLayout {
  using Element = typename Config::Element;
  using Products = TileProducts<Element>;
  static constexpr int kHeadDim = padded_to_16(Config::kHeadDim);
  static constexpr int kValueDim = padded_to_16(Config::kValueDim);
  static constexpr int kKeyPitch = kHeadDim + Products::kKeyPadding;
  static constexpr int kValuePitch = kValueDim + Products::kValuePadding;
  static constexpr int kWarps = Config::kTileQ / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kQueryElements = Config::kTileQ * kKeyPitch;
  static constexpr int kOutputElements = Config::kTileQ * kValuePitch;

  struct Entry {
    int tile;  // 2 * key tile + whether elements have to be looked at
    int cursors[kTables == 0 ? 1 : kTables];
  };

  struct SharedStorage {
    // The output leaves through the queries' memory.
    alignas(
        16) Element queries[kQueryElements > kOutputElements ? kQueryElements : kOutputElements];
    alignas(16) Element keys[Config::kTileK * kKeyPitch];
    alignas(16) Element values[Config::kTileK * kValuePitch];
    Entry list[kThreads];
    int warp_counts[kWarps];
  };
};

// Starts copying rows [first, first + kRows) of a [rows, kDim] matrix to shared memory; rows beyond
// the matrix and columns from kDim to kPaddedDim become 0.
template <int kRows, int kDim, int kPaddedDim, int kPitch, int kCopyBytes, int kThreads,
          class Element>
__device__ __forceinline__ void copy_tile(Element* shared, const Element* global, Int64 row_stride,
                                          int first, int rows) {
  constexpr int kWidth = kCopyBytes / static_cast<int>(sizeof(Element));
  constexpr int kChunks = kPaddedDim / kWidth;
  static_assert(kDim % kWidth == 0 && kPaddedDim % kWidth == 0, "copies of whole chunks");
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kWidth;
    const bool valid = first + row < rows && column < kDim;
    const Element* source = valid ? global + (first + row) * row_stride + column : global;
    copy_async<kCopyBytes>(shared + row * kPitch + column, source, valid);
  }
}

// The running softmax and output of a thread's two rows (g and g + 8 of its warp's 16).
template <int kValueDim>
struct RowState {
  float output[kValueDim / 8][4];
  float maximum[2];  // of the scores so far, -inf before the first kept one
  float sum[2];      // this thread's part of the sum of weights

  __device__ __forceinline__ RowState() {
#pragma unroll
    for (int i = 0; i < kValueDim / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) output[i][j] = 0.0f;
    }
    maximum[0] = maximum[1] = -kInfinity;
    sum[0] = sum[1] = 0.0f;
  }
};

// Maximum over the four threads that share a row.
__device__ __forceinline__ float row_maximum(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// Turns scores into weights in place and brings the rows' state up to date. `factor` turns a
// difference of scores into a power of 2. kFused takes one instruction less, but overflows next to
// the largest floats, which a bias may hold.
template <int kTileK, bool kFused, int kValueDim>
__device__ __forceinline__ void online_softmax(float (&scores)[kTileK / 8][4],
                                               RowState<kValueDim>& rows, float factor) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = rows.maximum[r];
#pragma unroll
    for (int j = 0; j < kTileK / 8; ++j) {
      highest = fmaxf(highest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    }
    highest = row_maximum(highest);
    // A row without any key yet has nothing to rescale; -inf - -inf must not be computed.
    const float base = highest == -kInfinity ? 0.0f : highest;
    const float rescale = exp2_approximate((rows.maximum[r] - base) * factor);
    rows.maximum[r] = highest;
    rows.sum[r] *= rescale;
#pragma unroll
    for (int i = 0; i < kValueDim / 8; ++i) {
      rows.output[i][2 * r] *= rescale;
      rows.output[i][2 * r + 1] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < kTileK / 8; ++j) {
#pragma unroll
      for (int c = 2 * r; c < 2 * r + 2; ++c) {
        const float exponent =
            kFused ? fmaf(scores[j][c], factor, -base * factor) : (scores[j][c] - base) * factor;
        scores[j][c] = exp2_approximate(exponent);
        rows.sum[r] += scores[j][c];
      }
    }
  }
}

// Everything one block does. Members are what the steps share.
template <class Config, class Mask>
struct AttentionBlock {
  using Element = typename Config::Element;
  using Layout = AttentionLayout<Config, Mask::kTables>;
  using Storage = typename Layout::SharedStorage;
  using Entry = typename Layout::Entry;
  using Index = typename Mask::Index;
  using Products = TileProducts<Element>;
  using Rows = RowState<Layout::kValueDim>;
  static constexpr int kTileQ = Config::kTileQ;
  static constexpr int kTileK = Config::kTileK;
  using Scores = float[kTileK / 8][4];

  const AttentionTensors<Element>& tensors;
  const Mask& mask;
  Storage& shared;
  int b, h, first_query;

  // Row (within the tile of queries) of accumulator c of this thread, and column of (j, c).
  static __device__ __forceinline__ int row_of(int c) {
    return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + c / 2 * 8;
  }
  static __device__ __forceinline__ int column_of(int j, int c) {
    return j * 8 + threadIdx.x % 4 * 2 + c % 2;
  }

  __device__ __forceinline__ void run() {
    const Element* query = tensors.query.at(b, h, 0);
    copy_tile<kTileQ, Config::kHeadDim, Layout::kHeadDim, Layout::kKeyPitch,
              Config::kQueryCopyBytes, Layout::kThreads>(shared.queries, query, tensors.query.row,
                                                         first_query, tensors.queries);
    commit_copies();
    Rows rows;
    const int key_tiles = (tensors.keys + kTileK - 1) / kTileK;
    for (int first = 0; first < key_tiles; first += Layout::kThreads) {
      const int count = list_tiles(first, key_tiles);
      walk<false>(count, rows, 0);
    }
    const unsigned empty = empty_rows(rows);
    if constexpr (kFillsRows) {
      // Those rows once more, over all keys; the other rows see masked pairs only, which change
      // nothing.
      if constexpr (kMixed) forget(rows, empty);
      if (__syncthreads_or(empty)) walk<true>(key_tiles, rows, empty);
    }
    store(rows, empty);
  }

  // Back to the state before the first key.
  static __device__ __forceinline__ void forget(Rows& rows, unsigned which) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!(which >> r & 1)) continue;
      rows.maximum[r] = -kInfinity;
      rows.sum[r] = 0.0f;
#pragma unroll
      for (int i = 0; i < Layout::kValueDim / 8; ++i) {
        rows.output[i][2 * r] = rows.output[i][2 * r + 1] = 0.0f;
      }
    }
  }

  // Lists the tiles among the kThreads from `first` on that aren't empty, in ascending order.
  __device__ __forceinline__ int list_tiles(int first, int key_tiles) {
    const int tile = first + static_cast<int>(threadIdx.x);
    Entry entry{};
    const bool listed = tile < key_tiles && classify(tile, entry);
    const unsigned votes = __ballot_sync(0xffffffffu, listed);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();  // the previous list is done with
    if (lane == 0) shared.warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, total = 0;
#pragma unroll
    for (int w = 0; w < Layout::kWarps; ++w) {
      before += w < warp ? shared.warp_counts[w] : 0;
      total += shared.warp_counts[w];
    }
    if (listed) shared.list[before + __popc(votes & ((1u << lane) - 1))] = entry;
    __syncthreads();
    return total;
  }

  // Whether any pair of the tile is kept; fills its list entry.
  __device__ __forceinline__ bool classify(int tile, Entry& entry) {
    const int first_key = tile * kTileK;
    const int last_key = smaller(first_key + kTileK, tensors.keys) - 1;
    const int last_query = smaller(first_query + kTileQ, tensors.queries) - 1;
    const Maybe kept = mask.template keep<Range>(Range(b), Range(h), Range(first_query, last_query),
                                                 Range(first_key, last_key), entry.cursors);
    const bool at_edge = first_key + kTileK > tensors.keys;
    entry.tile = 2 * tile + (kept.can_be_false || at_edge);
    return kept.can_be_true;
  }

  // The tiles of the list, or, for rows that attend to everything, `everything` tiles from 0 on.
  template <bool kEverything>
  __device__ __forceinline__ void walk(int count, Rows& rows, unsigned empty) {
    if (count == 0) return;
    load_keys(tile_at<kEverything>(0) / 2);
    for (int i = 0; i < count; ++i) {
      const int tile = tile_at<kEverything>(i);
      wait_copies<0>();
      __syncthreads();  // keys are here; the previous values are done with
      load_values(tile / 2);
      Scores scores = {};
      Products::template scores<Layout::kHeadDim, kTileK, Layout::kKeyPitch>(
          scores, shared.queries + threadIdx.x / 32 * 16 * Layout::kKeyPitch, shared.keys);
      if constexpr (kEverything) {
        fill_scores(scores, tile / 2 * kTileK, empty);
      } else {
        mask_scores(scores, tile, shared.list[i].cursors);
      }
      online_softmax<kTileK, kScaleLate && !kEverything>(scores, rows,
                                                         kEverything ? kLog2E : factor());
      wait_copies<0>();
      __syncthreads();  // values are here; the keys are done with
      if (i + 1 < count) load_keys(tile_at<kEverything>(i + 1) / 2);
      Products::template accumulate<Layout::kValueDim, kTileK, Layout::kValuePitch>(
          rows.output, scores, shared.values);
    }
    // Nobody may write the list or the tiles before everybody is done with them.
    __syncthreads();
  }

  template <bool kEverything>
  __device__ __forceinline__ int tile_at(int i) const {
    return kEverything ? 2 * i + 1 : shared.list[i].tile;
  }

  __device__ __forceinline__ void load_keys(int tile) {
    copy_tile<kTileK, Config::kHeadDim, Layout::kHeadDim, Layout::kKeyPitch, Config::kKeyCopyBytes,
              Layout::kThreads>(shared.keys, tensors.key.at(b, h / Config::kGroup, 0),
                                tensors.key.row, tile * kTileK, tensors.keys);
    commit_copies();
  }

  __device__ __forceinline__ void load_values(int tile) {
    copy_tile<kTileK, Config::kValueDim, Layout::kValueDim, Layout::kValuePitch,
              Config::kValueCopyBytes, Layout::kThreads>(
        shared.values, tensors.value.at(b, h / Config::kGroup, 0), tensors.value.row, tile * kTileK,
        tensors.keys);
    commit_copies();
  }

  // The last factor of a score, which is kLastFactor * product or kLastFactor * tanh(...).
  static constexpr bool kHasSoftcap = Config::kSoftcap > 0.0f;
  static constexpr float kLastFactor = kHasSoftcap ? Config::kSoftcap : Config::kScale;

  // Without a bias it is left to the exponential, which saves a multiplication. A negative one
  // would turn the maximum into a minimum.
  static constexpr bool kScaleLate = !Mask::kHasBias && kLastFactor > 0.0f;

  static __device__ __forceinline__ float factor() {
    return kScaleLate ? kLastFactor * kLog2E : kLog2E;
  }

  // A product's score but for the last factor, the softcap. tanh_approximate makes scores wrong by
  // 2^-21 softcaps, and weights by that share: beside the rounding of weights to 16 bits it doesn't
  // count as long as the softcap is moderate.
  static __device__ __forceinline__ float capped(float product) {
    constexpr float kCoarse = sizeof(Element) == 2 ? 256.0f : 0.0f;
    const float argument = product * Config::kScale * (1.0f / Config::kSoftcap);
    if constexpr (Config::kSoftcap <= kCoarse) {
      return tanh_approximate(argument);
    } else {
      return tanhf(argument);
    }
  }

  // A score as the exported graph has it, with its bias, but for the factor that comes late.
  __device__ __forceinline__ float score(float product, int query, int key) const {
    float value = product;
    if constexpr (kHasSoftcap) value = capped(product);
    if constexpr (!kScaleLate) value *= kLastFactor;
    if constexpr (Mask::kHasBias) {
      const float bias = mask.bias(Index(b), Index(h), Index(query), Index(key));
      value += bias;
      // A bias that hides is large; next to it the graph's own rounding decides what a row yields
      // whose keys are all hidden. Scores of visible pairs keep their precision.
      if (bias < kRoundedBias) value = rounded(value);
    }
    return value;
  }

  static constexpr float kRoundedBias = -1000.0f;

  __device__ __forceinline__ void mask_scores(Scores& scores, int tile, int* cursors) {
    const int first_key = tile / 2 * kTileK;
    if constexpr (kHasSoftcap || !kScaleLate) {
#pragma unroll
      for (int j = 0; j < kTileK / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          scores[j][c] = score(scores[j][c], first_query + row_of(c), first_key + column_of(j, c));
        }
      }
    }
    if (tile % 2 == 0) return;
    const Pairs kept = pairs_of<false>(first_key, cursors);
#pragma unroll
    for (int j = 0; j < kTileK / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (!kept.has(j, c)) scores[j][c] = -kInfinity;
      }
    }
  }

  // Some of this thread's pairs of a tile: bit c of nibble j is accumulator (j, c).
  struct Pairs {
    unsigned words[(kTileK + 63) / 64];

    __device__ __forceinline__ bool has(int j, int c) const {
      return words[j / 8] >> (j % 8 * 4 + c) & 1;
    }
  };

  // The pairs that the mask keeps or, kAgain, gives the fill twice; keys beyond the last excepted.
  // A loop: what all pairs at once need wouldn't fit into the registers.
  template <bool kAgain>
  __device__ __forceinline__ Pairs pairs_of(int first_key, int* cursors) const {
    Pairs found = {};
    for (int j = 0; j < kTileK / 8; ++j) {
      unsigned nibble = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int query = first_query + row_of(c), key = first_key + column_of(j, c);
        bool holds = key < tensors.keys;
        if constexpr (kAgain) {
          holds = holds && mask.again(Index(b), Index(h), Index(query), Index(key));
        } else {
          holds = holds &&
                  mask.template keep<Index>(Index(b), Index(h), Index(query), Index(key), cursors);
        }
        nibble |= static_cast<unsigned>(holds) << c;
      }
#pragma unroll
      for (int word = 0; word < (kTileK + 63) / 64; ++word) {
        if (j / 8 == word) found.words[word] |= nibble << (j % 8 * 4);
      }
    }
    return found;
  }

  // Scores of empty rows, where the fill is a finite number, as the graph has them.
  __device__ __forceinline__ void fill_scores(Scores& scores, int first_key, unsigned empty) {
    Entry entry{};
    if constexpr (kMixed) classify(first_key / kTileK, entry);  // for the tables' cursors
    Pairs twice = {};
    if constexpr (kFillsTwice) {
      twice = pairs_of<true>(first_key, entry.cursors);
    }
#pragma unroll
    for (int j = 0; j < kTileK / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int query = first_query + row_of(c), key = first_key + column_of(j, c);
        // Alone, without bias and sink, a fill that swallows scores makes all equal.
        float value = 0.0f;
        if constexpr (kMixed || Config::kHasSinks || Config::kEmptyRow == EmptyRow::kSoftmax) {
          value = filled_score(scores[j][c], query, key, entry.cursors, twice.has(j, c));
        }
        const bool counts = (empty >> (c / 2) & 1) && key < tensors.keys;
        scores[j][c] = counts ? value : -kInfinity;
      }
    }
  }

  // The score of a pair in an empty row, rounded at every step as the graph rounds it.
  __device__ __forceinline__ float filled_score(float product, int query, int key, int* cursors,
                                                bool is_twice) {
    float value = rounded(product * Config::kScale);
    if constexpr (kHasSoftcap) {
      value = rounded(tanhf(rounded(value / Config::kSoftcap)));
      value = rounded(value * Config::kSoftcap);
    }
    bool keep = false;
    if constexpr (kMixed) {
      const Index q = Index(query), k = Index(key);
      value = rounded(value + mask.bias(Index(b), Index(h), q, k));
      keep = mask.template keep<Index>(Index(b), Index(h), q, k, cursors);
    }
    if (keep) return value;
    value = Config::kFillIsAdded ? rounded(value + Config::kFill) : rounded(Config::kFill);
    if constexpr (kFillsTwice) {
      if (is_twice) value = rounded(value + rounded(Config::kFill));
    }
    return value;
  }

  static __device__ __forceinline__ float rounded(float value) {
    return to_float(from_float<typename Config::ScoreElement>(value));
  }

  // Whether pairs that aren't kept have finite scores, which count in empty rows.
  static constexpr bool kFillsRows =
      Config::kEmptyRow == EmptyRow::kMean || Config::kEmptyRow == EmptyRow::kSoftmax;

  // Where a bias hides every pair that is kept, those that aren't may weigh as much beside them:
  // such a row is as good as empty. Without a bias only rows without a kept pair are.
  static constexpr bool kMixed = Mask::kHasBias && kFillsRows;

  // Whether some of them get the fill a second time.
  static constexpr bool kFillsTwice = Mask::kHasAgain;

  static __device__ __forceinline__ float empty_below() {
    if constexpr (kMixed) return Config::kEmptyBelow;
    return -kInfinity;
  }

  // Bit r: row r of this thread exists and is empty.
  __device__ __forceinline__ unsigned empty_rows(const Rows& rows) const {
    unsigned empty = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exists = first_query + row_of(2 * r) < tensors.queries;
      // A maximum leaves NaN out; a row of NaN has its sum to tell.
      const float total = row_sum(rows.sum[r]);
      bool found_none = rows.maximum[r] <= empty_below() && total == total;
      // Beside most sinks, too, a fill has no weight.
      if constexpr (kFillsRows && Config::kHasSinks) {
        found_none = found_none && sink() <= Config::kEmptyBelow;
      }
      empty |= static_cast<unsigned>(exists && found_none) << r;
    }
    return empty;
  }

  __device__ __forceinline__ float sink() const { return load_readonly(tensors.sinks + h); }

  // One more step of a row's online softmax, in which the sink alone is new: brings the sum up to
  // date and returns what to multiply the output by. `is_filled`: the maximum is that of filled
  // scores, which have all of their factors.
  __device__ __forceinline__ float add_sink(float& sum, float maximum, bool is_filled) const {
    const float highest = kScaleLate && !is_filled ? maximum * kLastFactor : maximum;
    // Where both are -inf, the difference is NaN: so is a softmax over nothing.
    const float logit = sink(), base = fmaxf(highest, logit);
    const float rescale = exp2_approximate((highest - base) * kLog2E);
    sum = sum * rescale + exp2_approximate((logit - base) * kLog2E);
    return rescale;
  }

  __device__ __forceinline__ void store(const Rows& rows, unsigned empty) {
    // The queries are done with, or never were needed and may still be on their way.
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = row_sum(rows.sum[r]), rescale = 1.0f;
      if constexpr (Config::kHasSinks) {
        rescale = add_sink(total, rows.maximum[r], kFillsRows && (empty >> r & 1));
      }
      // 0 / 0 is the NaN that a softmax over nothing yields.
      // Over no keys at all a matrix product is 0.
      const bool is_zero = (Config::kNanToZero || tensors.keys == 0) && !(total > 0.0f);
      const float factor = is_zero ? 0.0f : rescale / total;
      Element* row = shared.queries + row_of(2 * r) * Layout::kValuePitch + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < Layout::kValueDim / 8; ++i) {
        const float first = is_zero ? 0.0f : rows.output[i][2 * r] * factor;
        const float second = is_zero ? 0.0f : rows.output[i][2 * r + 1] * factor;
        row[i * 8] = from_float<Element>(first);
        row[i * 8 + 1] = from_float<Element>(second);
      }
    }
    __syncthreads();
    copy_out();
  }

  __device__ __forceinline__ void copy_out() {
    constexpr int kWidth = Config::kOutputCopyBytes / static_cast<int>(sizeof(Element));
    constexpr int kChunks = Config::kValueDim / kWidth;
    struct alignas(Config::kOutputCopyBytes) Chunk {
      Element elements[kWidth];
    };
    for (int i = threadIdx.x; i < kTileQ * kChunks; i += Layout::kThreads) {
      const int row = i / kChunks, column = i % kChunks * kWidth;
      if (first_query + row >= tensors.queries) break;  // later ones are further down
      *reinterpret_cast<Chunk*>(tensors.output.at(b, h, first_query + row) + column) =
          *reinterpret_cast<const Chunk*>(shared.queries + row * Layout::kValuePitch + column);
    }
  }
};

template <class Config, class Mask>
__device__ __forceinline__ void masked_attention(
    const AttentionTensors<typename Config::Element>& tensors, const Mask& mask) {
  using Block = AttentionBlock<Config, Mask>;
  extern __shared__ __align__(16) unsigned char memory[];
  const int query_tiles = (tensors.queries + Config::kTileQ - 1) / Config::kTileQ;
  const int block = static_cast<int>(blockIdx.x);
  const int head = block / query_tiles;
  Block{tensors,
        mask,
        *reinterpret_cast<typename Block::Storage*>(memory),
        head / tensors.heads,
        head % tensors.heads,
        block % query_tiles * Config::kTileQ}
      .run();
}

}  // namespace stof
