// CRC-32 as zlib computes it: ITU-T V.42, polynomial 0x04C11DB7, bits reflected.
#ifndef STOF_PLAN_CRC32_H
#define STOF_PLAN_CRC32_H

#include <cstddef>
#include <cstdint>

namespace stof {

std::uint32_t crc32(const std::uint8_t* data, std::size_t size) noexcept;

}  // namespace stof

#endif  // STOF_PLAN_CRC32_H
