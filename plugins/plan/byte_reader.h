// Reads the primitive types of a plan's payload (docs/plan.md), never beyond its end.
#ifndef STOF_PLAN_BYTE_READER_H
#define STOF_PLAN_BYTE_READER_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace stof {

struct ByteSpan {
  const std::uint8_t* data;
  std::size_t size;
};

// Every function throws PlanError, naming `what` and the position, if the data ends before the
// value does. Strings must be printable ASCII: they end up in messages and C interfaces.
class ByteReader {
 public:
  ByteReader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t u8(const char* what);
  std::uint32_t u32(const char* what);
  std::uint64_t u64(const char* what);
  std::int64_t i64(const char* what);
  float f32(const char* what);
  std::string string(const char* what);
  // Points into the data.
  ByteSpan bytes(const char* what);

  // The length of a list whose elements take at least `element_size` bytes each; refused if they
  // can't fit into the rest, so that memory may be reserved for them.
  std::size_t count(std::size_t element_size, const char* what);

  std::size_t remaining() const { return size_ - position_; }

  // Throws PlanError: `problem`, with the position.
  [[noreturn]] void fail(const std::string& problem) const;

 private:
  std::uint64_t little_endian(std::size_t size, const char* what);

  const std::uint8_t* data_;
  std::size_t size_;
  std::size_t position_ = 0;
};

}  // namespace stof

#endif  // STOF_PLAN_BYTE_READER_H
