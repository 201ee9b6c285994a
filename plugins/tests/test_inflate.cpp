// The DEFLATE decoder and the CRC: streams made by zlib, and malformed ones made by hand.
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "inflate_vectors.h"
#include "plan/crc32.h"
#include "plan/inflate.h"
#include "plan/plan.h"

namespace stof {
namespace tests {
namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes inflated(const Bytes& stream, std::size_t size) {
  Bytes output(size);
  inflate(stream.data(), stream.size(), output.data(), output.size());
  return output;
}

// Puts fields together as section 3.1.1 of RFC 1951 says.
class BitWriter {
 public:
  // A number, least significant bit first.
  BitWriter& number(unsigned value, unsigned bits) {
    for (unsigned i = 0; i < bits; ++i) bit((value >> i) & 1U);
    return *this;
  }

  // A Huffman code, written as in the RFC: "0110000".
  BitWriter& code(const std::string& bits) {
    for (const char c : bits) bit(c == '1' ? 1U : 0U);
    return *this;
  }

  // The start of a last block with dynamic codes, up to the code length codes.
  BitWriter& dynamic(unsigned literals, unsigned distances,
                     const std::vector<unsigned>& length_codes) {
    number(1, 1).number(2, 2).number(literals - 257, 5).number(distances - 1, 5);
    number(static_cast<unsigned>(length_codes.size()) - 4, 4);
    for (const unsigned length : length_codes) number(length, 3);
    return *this;
  }

  const Bytes& bytes() const { return bytes_; }

 private:
  void bit(unsigned value) {
    if (used_ % 8 == 0) bytes_.push_back(0);
    bytes_.back() = static_cast<std::uint8_t>(bytes_.back() | (value << (used_ % 8)));
    ++used_;
  }

  Bytes bytes_;
  unsigned used_ = 0;
};

BitWriter fixed_block() { return BitWriter().number(1, 1).number(1, 2); }

// Code lengths are sent in the order 16, 17, 18, 0, 8, 7, ..., 1, 15 (section 3.2.7).
const std::vector<unsigned> kZeroAndEight = {0, 0, 0, 1, 1};    // 0: "0", 8: "1"
const std::vector<unsigned> kZerosAndEight = {0, 0, 2, 2, 1};   // 8: "0", 0: "10", 18: "11"
const std::vector<unsigned> kRepeatAndEight = {1, 0, 0, 0, 1};  // 8: "0", 16: "1"
const std::vector<unsigned> kZerosAndOne = {0, 0, 1, 0, 0, 0, 0, 0, 0,
                                            0, 0, 0, 0, 0, 0, 0, 0, 1};  // 1: "0", 18: "1"

struct Malformed {
  const char* name;
  Bytes stream;
  std::size_t size;
  const char* message;
};

std::vector<Malformed> malformed_streams() {
  const std::string end_of_block = "0000000";
  const std::string letter = "10010001";  // literal 'a' of the fixed code
  // 256 literals of 8 bits are a complete code; one more doesn't fit.
  BitWriter full = BitWriter().dynamic(257, 1, kZeroAndEight);
  for (int i = 0; i < 257; ++i) full.code("1");
  full.code("0");
  BitWriter sparse = BitWriter().dynamic(257, 1, kZerosAndEight);
  for (int i = 0; i < 2; ++i) sparse.code("11").number(127, 7);  // 2 x 138 zeros: too many
  BitWriter few = BitWriter().dynamic(257, 1, kZerosAndEight);
  few.code("11").number(127, 7).code("11").number(107, 7).code("0").code("10");
  BitWriter endless = BitWriter().dynamic(257, 1, kZeroAndEight);
  for (int i = 0; i < 256; ++i) endless.code("1");
  endless.code("0").code("0");
  // The only literal is the end of the block, the only distance has one bit: sound; and the same
  // with two distances of one bit, then three.
  const auto distances_of_one_bit = [](unsigned count) {
    BitWriter writer = BitWriter().dynamic(257, count, kZerosAndOne);
    writer.code("1").number(127, 7).code("1").number(107, 7).code("0");
    for (unsigned i = 0; i < count; ++i) writer.code("0");
    return writer.code("0");
  };
  return {
      {"nothing", {}, 0, "no end"},
      {"block kind 3", BitWriter().number(1, 1).number(3, 2).bytes(), 0, "unknown kind"},
      {"stored, no length", {0x01, 0x01}, 1, "no end"},
      {"stored, wrong complement", {0x01, 0x01, 0x00, 0xFE, 0xFE, 0x61}, 1, "unclear length"},
      {"stored, too short", {0x01, 0x02, 0x00, 0xFD, 0xFF, 0x61}, 2, "no end"},
      {"stored, too long", {0x01, 0x02, 0x00, 0xFD, 0xFF, 0x61, 0x62}, 1, "more bytes"},
      {"no last block", {0x00, 0x00, 0x00, 0xFF, 0xFF}, 0, "no end"},
      {"bytes behind", fixed_block().code(end_of_block).number(0, 6).number(0, 8).bytes(), 0,
       "bytes behind"},
      {"fewer than wanted", fixed_block().code(letter).code(end_of_block).bytes(), 2,
       "fewer bytes"},
      {"more than wanted", fixed_block().code(letter + letter + end_of_block).bytes(), 1,
       "more bytes"},
      {"match beyond the end",
       fixed_block().code(letter + "0000001" + "00000" + end_of_block).bytes(), 3, "more bytes"},
      {"match before the start",
       fixed_block().code(letter + "0000001" + "00001" + end_of_block).bytes(), 4,
       "before its first byte"},
      {"match without anything", fixed_block().code("000000100000" + end_of_block).bytes(), 3,
       "before its first byte"},
      {"literal 286", fixed_block().code(letter + "11000110" + "00000" + end_of_block).bytes(), 4,
       "unknown length"},
      {"distance 30", fixed_block().code(letter + "0000001" + "11110" + end_of_block).bytes(), 4,
       "unknown distance"},
      {"287 literals", BitWriter().dynamic(287, 1, kZeroAndEight).bytes(), 0, "too many codes"},
      {"31 distances", BitWriter().dynamic(257, 31, kZeroAndEight).bytes(), 0, "too many codes"},
      {"no length codes", BitWriter().dynamic(257, 1, {0, 0, 0, 0}).bytes(), 0,
       "too few length codes"},
      {"one length code", BitWriter().dynamic(257, 1, {0, 0, 0, 1}).bytes(), 0,
       "too few length codes"},
      {"three length codes of one bit", BitWriter().dynamic(257, 1, {0, 0, 1, 1, 1}).bytes(), 0,
       "too many length codes"},
      {"repetition of nothing",
       BitWriter().dynamic(257, 1, kRepeatAndEight).code("1").number(0, 2).bytes(), 0,
       "repetition of nothing"},
      {"too many lengths", sparse.bytes(), 0, "too many code lengths"},
      {"257 literals of 8 bits", full.bytes(), 0, "too many literal codes"},
      {"one literal of 8 bits", few.bytes(), 0, "too few literal codes"},
      {"no end of block", endless.bytes(), 0, "can't end"},
      {"three distances of one bit", distances_of_one_bit(3).bytes(), 0, "too many distance codes"},
      // The sound neighbours of the last case, with a wrong size to get a message.
      {"two distances of one bit", distances_of_one_bit(2).bytes(), 1, "fewer bytes"},
      {"one distance of one bit", distances_of_one_bit(1).bytes(), 1, "fewer bytes"},
  };
}

void test_crc() {
  // The check value of CRC-32/ISO-HDLC.
  const std::string digits = "123456789";
  CHECK(crc32(reinterpret_cast<const std::uint8_t*>(digits.data()), 9) == 0xCBF43926U);
  CHECK(crc32(nullptr, 0) == 0);
}

void test_vectors() {
  for (const InflateVector& vector : inflate_vectors()) {
    const Bytes content = inflated(vector.stream, vector.size);
    check(crc32(content.data(), content.size()) == vector.crc, vector.name, __FILE__, __LINE__);
    check(vector.size <= largest_inflated_size(vector.stream.size()), vector.name, __FILE__,
          __LINE__);
    CHECK_THROWS(
        PlanError, [&] { inflated(vector.stream, vector.size + 1); }, "fewer bytes", vector.name);
    if (vector.size > 0) {
      CHECK_THROWS(
          PlanError, [&] { inflated(vector.stream, vector.size - 1); }, "more bytes", vector.name);
    }
  }
}

void test_malformed() {
  for (const Malformed& bad : malformed_streams()) {
    CHECK_THROWS(PlanError, [&] { inflated(bad.stream, bad.size); }, bad.message, bad.name);
  }
}

// Every stream that ends early is refused; the copy makes a read beyond the end visible to
// AddressSanitizer.
void test_truncated() {
  for (const InflateVector& vector : inflate_vectors()) {
    for (std::size_t size = 0; size < vector.stream.size(); ++size) {
      const auto end = vector.stream.begin() + static_cast<std::ptrdiff_t>(size);
      const Bytes cut(vector.stream.begin(), end);
      CHECK_THROWS(PlanError, [&] { inflated(cut, vector.size); }, "compressed data", vector.name);
    }
  }
}

// Damaged streams decode to something or are refused, and touch nothing else.
void test_damaged() {
  std::mt19937 random(1);
  int refused = 0;
  for (const InflateVector& vector : inflate_vectors()) {
    for (int round = 0; round < 400; ++round) {
      Bytes damaged = vector.stream;
      for (std::size_t flips = 1 + random() % 3; flips > 0; --flips) {
        const std::size_t at = random() % damaged.size();
        damaged[at] = static_cast<std::uint8_t>(damaged[at] ^ (1U << (random() % 8)));
      }
      try {
        inflated(damaged, vector.size);
      } catch (const PlanError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace tests
}  // namespace stof

int main() {
  stof::tests::test_crc();
  stof::tests::test_vectors();
  stof::tests::test_malformed();
  stof::tests::test_truncated();
  stof::tests::test_damaged();
  return stof::tests::failures() == 0 ? 0 : 1;
}
