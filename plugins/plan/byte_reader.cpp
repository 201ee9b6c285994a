#include "plan/byte_reader.h"

#include <cstring>

#include "plan/plan.h"

namespace stof {
void ByteReader::fail(const std::string& problem) const {
  throw PlanError("the plan is malformed: " + problem + " (before byte " +
                  std::to_string(position_) + " of " + std::to_string(size_) +
                  "); run `stof-onnx optimize` again");
}

std::uint64_t ByteReader::little_endian(std::size_t size, const char* what) {
  if (size > remaining()) fail(std::string("it ends within ") + what);
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= static_cast<std::uint64_t>(data_[position_ + i]) << (8 * i);
  }
  position_ += size;
  return value;
}

std::uint8_t ByteReader::u8(const char* what) {
  return static_cast<std::uint8_t>(little_endian(1, what));
}

std::uint32_t ByteReader::u32(const char* what) {
  return static_cast<std::uint32_t>(little_endian(4, what));
}

std::uint64_t ByteReader::u64(const char* what) { return little_endian(8, what); }

std::int64_t ByteReader::i64(const char* what) {
  return static_cast<std::int64_t>(little_endian(8, what));
}

float ByteReader::f32(const char* what) {
  const std::uint32_t bits = u32(what);
  float value = 0;
  static_assert(sizeof value == sizeof bits, "float is IEEE 754's binary32");
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::string ByteReader::string(const char* what) {
  const std::size_t length = count(1, what);
  const std::uint8_t* const text = data_ + position_;
  for (std::size_t i = 0; i < length; ++i) {
    if (text[i] < 0x20 || text[i] > 0x7E) fail(std::string(what) + " is not printable ASCII");
  }
  position_ += length;
  return std::string(text, text + length);
}

ByteSpan ByteReader::bytes(const char* what) {
  const std::size_t length = count(1, what);
  const std::uint8_t* const begin = data_ + position_;
  position_ += length;
  return ByteSpan{begin, length};
}

std::size_t ByteReader::count(std::size_t element_size, const char* what) {
  const std::size_t elements = u32(what);
  if (elements > remaining() / element_size) {
    fail(std::string(what) + " has length " + std::to_string(elements) + ", but only " +
         std::to_string(remaining()) + " bytes follow");
  }
  return elements;
}

}  // namespace stof
