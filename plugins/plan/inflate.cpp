#include "plan/inflate.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "plan/plan.h"

namespace stof {
namespace {

constexpr unsigned kMaxCodeLength = 15;  // RFC 1951, 3.2.7
constexpr unsigned kFastBits = 9;
constexpr std::size_t kLiteralCodes = 288;  // 286 and 287 have a code but no meaning
constexpr std::size_t kDistanceCodes = 32;  // 30 and 31 have a code but no meaning
constexpr unsigned kEndOfBlock = 256;

[[noreturn]] void malformed(const std::string& what) {
  throw PlanError("the plan is damaged: its compressed data has " + what +
                  "; run `stof-onnx optimize` again");
}

// Takes bits from the least significant end of each byte, as section 3.1.1 packs them.
class BitReader {
 public:
  BitReader(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  // The next `count` bits (at most 32) without taking them; zeros beyond the end.
  std::uint32_t peek(unsigned count) {
    while (available_ < count && next_ != end_) {
      bits_ |= static_cast<std::uint64_t>(*next_++) << available_;
      available_ += 8;
    }
    return static_cast<std::uint32_t>(bits_ & ((std::uint64_t{1} << count) - 1));
  }

  // Takes `count` bits that were peeked at.
  void drop(unsigned count) {
    if (count > available_) malformed("no end");
    bits_ >>= count;
    available_ -= count;
  }

  std::uint32_t take(unsigned count) {
    const std::uint32_t bits = peek(count);
    drop(count);
    return bits;
  }

  void align_to_byte() { drop(available_ % 8); }

  // Copies whole bytes; the position must be aligned.
  void copy(std::uint8_t* to, std::size_t size) {
    for (; size > 0 && available_ > 0; --size) *to++ = static_cast<std::uint8_t>(take(8));
    if (size > static_cast<std::size_t>(end_ - next_)) malformed("no end");
    if (size > 0) std::memcpy(to, next_, size);
    next_ += size;
  }

  // True if nothing but the rest of the current byte is left.
  bool at_end() const { return next_ == end_ && available_ < 8; }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
  std::uint64_t bits_ = 0;
  unsigned available_ = 0;
};

// A canonical Huffman code (section 3.2.2). Codes of up to kFastBits bits are found by one look
// into a table; longer ones length by length.
class HuffmanCode {
 public:
  // `lengths[s]` is the number of bits of symbol s, 0 for a symbol that doesn't occur. A code that
  // leaves bit patterns unused is malformed, but for a single symbol of one bit or none at all
  // (`may_be_trivial`): 3.2.7 allows both for distances, and zlib a single literal too.
  void build(const std::uint8_t* lengths, std::size_t symbols, bool may_be_trivial,
             const char* name) {
    count_.fill(0);
    for (std::size_t symbol = 0; symbol < symbols; ++symbol) ++count_[lengths[symbol]];
    const std::size_t used = symbols - count_[0];
    count_[0] = 0;
    check_complete(used, may_be_trivial, name);

    std::array<std::uint16_t, kMaxCodeLength + 1> next_code{};
    std::array<std::uint16_t, kMaxCodeLength + 1> next_index{};
    for (unsigned length = 1; length <= kMaxCodeLength; ++length) {
      next_code[length] =
          static_cast<std::uint16_t>((next_code[length - 1] + count_[length - 1]) << 1);
      next_index[length] = static_cast<std::uint16_t>(next_index[length - 1] + count_[length - 1]);
    }
    first_code_ = next_code;
    first_index_ = next_index;
    fast_.fill(Entry{0, 0});
    for (std::size_t symbol = 0; symbol < symbols; ++symbol) {
      const unsigned length = lengths[symbol];
      if (length == 0) continue;
      symbols_[next_index[length]++] = static_cast<std::uint16_t>(symbol);
      const unsigned code = next_code[length]++;
      if (length <= kFastBits) fill_fast(code, length, symbol);
    }
  }

  unsigned decode(BitReader& bits) const {
    const std::uint32_t ahead = bits.peek(kMaxCodeLength);
    const Entry entry = fast_[ahead & ((1U << kFastBits) - 1)];
    if (entry.length != 0) {
      bits.drop(entry.length);
      return entry.symbol;
    }
    unsigned code = 0;
    for (unsigned length = 1; length <= kMaxCodeLength; ++length) {
      code = (code << 1) | ((ahead >> (length - 1)) & 1U);  // codes are packed top bit first
      // Codes of one length are consecutive, and a shorter code is a prefix of no longer one.
      const unsigned offset = code - first_code_[length];
      if (code >= first_code_[length] && offset < count_[length]) {
        bits.drop(length);
        return symbols_[first_index_[length] + offset];
      }
    }
    malformed("a bit pattern that is no code");
  }

 private:
  struct Entry {
    std::uint16_t symbol;
    std::uint8_t length;  // 0: a longer code, or none
  };

  void check_complete(std::size_t used, bool may_be_trivial, const char* name) const {
    std::int32_t unused = 1;  // bit patterns of the current length that no shorter code starts
    for (unsigned length = 1; length <= kMaxCodeLength; ++length) {
      unused = unused * 2 - count_[length];
      if (unused < 0) malformed(std::string("too many ") + name + " codes");
    }
    const bool trivial = used == 0 || (used == 1 && count_[1] == 1);
    if (unused > 0 && !(may_be_trivial && trivial)) {
      malformed(std::string("too few ") + name + " codes");
    }
  }

  void fill_fast(unsigned code, unsigned length, std::size_t symbol) {
    unsigned reversed = 0;
    for (unsigned bit = 0; bit < length; ++bit)
      reversed |= ((code >> bit) & 1U) << (length - 1 - bit);
    for (unsigned index = reversed; index < fast_.size(); index += 1U << length) {
      fast_[index] = Entry{static_cast<std::uint16_t>(symbol), static_cast<std::uint8_t>(length)};
    }
  }

  std::array<std::uint16_t, kMaxCodeLength + 1> count_{};
  std::array<std::uint16_t, kMaxCodeLength + 1> first_code_{};
  std::array<std::uint16_t, kMaxCodeLength + 1> first_index_{};
  std::array<std::uint16_t, kLiteralCodes> symbols_{};  // ordered by code
  std::array<Entry, 1U << kFastBits> fast_{};
};

struct Extra {
  std::uint16_t base;
  std::uint8_t bits;
};

// Lengths of matches by symbol - 257, and distances by symbol (section 3.2.5).
constexpr std::array<Extra, 29> kMatchLengths = {
    {{3, 0},  {4, 0},  {5, 0},  {6, 0},   {7, 0},   {8, 0},   {9, 0},   {10, 0},  {11, 1}, {13, 1},
     {15, 1}, {17, 1}, {19, 2}, {23, 2},  {27, 2},  {31, 2},  {35, 3},  {43, 3},  {51, 3}, {59, 3},
     {67, 4}, {83, 4}, {99, 4}, {115, 4}, {131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0}}};
constexpr std::array<Extra, 30> kDistances = {
    {{1, 0},     {2, 0},     {3, 0},     {4, 0},      {5, 1},      {7, 1},
     {9, 2},     {13, 2},    {17, 3},    {25, 3},     {33, 4},     {49, 4},
     {65, 5},    {97, 5},    {129, 6},   {193, 6},    {257, 7},    {385, 7},
     {513, 8},   {769, 8},   {1025, 9},  {1537, 9},   {2049, 10},  {3073, 10},
     {4097, 11}, {6145, 11}, {8193, 12}, {12289, 12}, {16385, 13}, {24577, 13}}};

class Inflater {
 public:
  Inflater(const std::uint8_t* input, std::size_t input_size, std::uint8_t* output,
           std::size_t output_size)
      : bits_(input, input_size), output_(output), size_(output_size) {}

  void run() {
    bool last = false;
    while (!last) {
      last = bits_.take(1) != 0;
      switch (bits_.take(2)) {
        case 0:
          stored_block();
          break;
        case 1:
          fixed_codes();
          compressed_block();
          break;
        case 2:
          dynamic_codes();
          compressed_block();
          break;
        default:
          malformed("a block of an unknown kind");
      }
    }
    if (position_ != size_) malformed("fewer bytes than its header says");
    if (!bits_.at_end()) malformed("bytes behind its last block");
  }

 private:
  void stored_block() {
    bits_.align_to_byte();
    const std::uint32_t length = bits_.take(16);
    if (bits_.take(16) != (length ^ 0xFFFFU)) malformed("a stored block of unclear length");
    if (length > size_ - position_) malformed("more bytes than its header says");
    if (length == 0) return;
    bits_.copy(output_ + position_, length);
    position_ += length;
  }

  void fixed_codes() {
    std::array<std::uint8_t, kLiteralCodes> lengths;  // section 3.2.6
    std::fill(lengths.begin(), lengths.begin() + 144, std::uint8_t{8});
    std::fill(lengths.begin() + 144, lengths.begin() + 256, std::uint8_t{9});
    std::fill(lengths.begin() + 256, lengths.begin() + 280, std::uint8_t{7});
    std::fill(lengths.begin() + 280, lengths.end(), std::uint8_t{8});
    literals_.build(lengths.data(), lengths.size(), false, "literal");
    std::array<std::uint8_t, kDistanceCodes> distances;
    distances.fill(5);
    distances_.build(distances.data(), distances.size(), false, "distance");
  }

  void dynamic_codes() {
    const std::size_t literals = bits_.take(5) + 257;
    const std::size_t distances = bits_.take(5) + 1;
    const std::size_t length_codes = bits_.take(4) + 4;
    if (literals > 286 || distances > 30) malformed("too many codes");

    static constexpr std::array<std::uint8_t, 19> kOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    std::array<std::uint8_t, 19> code_lengths{};
    for (std::size_t i = 0; i < length_codes; ++i) {
      code_lengths[kOrder[i]] = static_cast<std::uint8_t>(bits_.take(3));
    }
    literals_.build(code_lengths.data(), code_lengths.size(), false, "length");

    std::array<std::uint8_t, kLiteralCodes + kDistanceCodes> lengths{};
    read_code_lengths(lengths.data(), literals + distances);
    if (lengths[kEndOfBlock] == 0) malformed("a block that can't end");
    literals_.build(lengths.data(), literals, true, "literal");
    distances_.build(lengths.data() + literals, distances, true, "distance");
  }

  // Reads run-length coded code lengths (section 3.2.7) by the code in literals_. Runs may cross
  // from the literal to the distance codes.
  void read_code_lengths(std::uint8_t* lengths, std::size_t count) {
    std::size_t i = 0;
    while (i < count) {
      const unsigned symbol = literals_.decode(bits_);
      if (symbol < 16) {
        lengths[i++] = static_cast<std::uint8_t>(symbol);
        continue;
      }
      std::uint8_t repeated = 0;
      if (symbol == 16) {
        if (i == 0) malformed("a repetition of nothing");
        repeated = lengths[i - 1];
      }
      const std::size_t run = symbol == 16   ? 3 + bits_.take(2)
                              : symbol == 17 ? 3 + bits_.take(3)
                                             : 11 + bits_.take(7);
      if (run > count - i) malformed("too many code lengths");
      std::fill(lengths + i, lengths + i + run, repeated);
      i += run;
    }
  }

  void compressed_block() {
    for (;;) {
      const unsigned symbol = literals_.decode(bits_);
      if (symbol < kEndOfBlock) {
        if (position_ == size_) malformed("more bytes than its header says");
        output_[position_++] = static_cast<std::uint8_t>(symbol);
      } else if (symbol == kEndOfBlock) {
        return;
      } else {
        copy_match(symbol - kEndOfBlock - 1);
      }
    }
  }

  void copy_match(std::size_t length_symbol) {
    if (length_symbol >= kMatchLengths.size()) malformed("a match of unknown length");
    const Extra length_code = kMatchLengths[length_symbol];
    const std::size_t length = length_code.base + bits_.take(length_code.bits);
    const std::size_t distance_symbol = distances_.decode(bits_);
    if (distance_symbol >= kDistances.size()) malformed("a match of unknown distance");
    const Extra distance_code = kDistances[distance_symbol];
    const std::size_t distance = distance_code.base + bits_.take(distance_code.bits);
    if (distance > position_) malformed("a match before its first byte");
    if (length > size_ - position_) malformed("more bytes than its header says");
    // Byte by byte: a match may overlap with what it writes.
    const std::uint8_t* from = output_ + position_ - distance;
    for (std::size_t i = 0; i < length; ++i) output_[position_ + i] = from[i];
    position_ += length;
  }

  BitReader bits_;
  std::uint8_t* output_;
  std::size_t size_;
  std::size_t position_ = 0;
  HuffmanCode literals_;
  HuffmanCode distances_;
};

}  // namespace

void inflate(const std::uint8_t* input, std::size_t input_size, std::uint8_t* output,
             std::size_t output_size) {
  Inflater(input, input_size, output, output_size).run();
}

}  // namespace stof
