#include "plan_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "plan/crc32.h"

namespace stof {
namespace tests {
namespace {

class Writer {
 public:
  Bytes bytes;

  void u8(std::uint8_t value) { bytes.push_back(value); }
  void u32(std::uint32_t value) { little_endian(value, 4); }
  void i64(std::int64_t value) { little_endian(static_cast<std::uint64_t>(value), 8); }

  void f32(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    u32(bits);
  }

  void string(const std::string& text) {
    u32(static_cast<std::uint32_t>(text.size()));
    bytes.insert(bytes.end(), text.begin(), text.end());
  }

  template <typename T, typename Write>
  void list(const std::vector<T>& elements, Write write) {
    u32(static_cast<std::uint32_t>(elements.size()));
    for (const T& element : elements) write(element);
  }

  void quantity(const Quantity& quantity) {
    list(quantity.terms, [this](const Term& term) {
      i64(term.factor);
      list(term.parts, [this](const Ceil& part) {
        u32(part.symbol);
        i64(part.divisor);
      });
    });
  }

  void little_endian(std::uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
};

void write_argument(Writer& out, const Argument& argument) {
  out.u8(static_cast<std::uint8_t>(argument.kind));
  switch (argument.kind) {
    case ArgumentKind::kInput:
    case ArgumentKind::kOutput:
      out.u32(argument.tensor);
      out.i64(argument.offset);
      out.u32(argument.alignment);
      break;
    case ArgumentKind::kWorkspace:
      out.quantity(argument.quantity);
      out.u32(argument.alignment);
      break;
    case ArgumentKind::kInt32:
    case ArgumentKind::kInt64:
      out.quantity(argument.quantity);
      break;
    case ArgumentKind::kFloat32:
      out.f32(argument.value);
      break;
  }
}

void write_bucket(Writer& out, const Bucket& bucket) {
  out.list(bucket.ranges, [&out](const Range& range) {
    out.u32(range.symbol);
    out.i64(range.min);
    out.i64(range.max);
  });
  out.string(bucket.tactic);
  out.quantity(bucket.workspace);
  out.list(bucket.launches, [&out](const Launch& launch) {
    out.u32(launch.kernel);
    for (const Quantity& size : launch.grid) out.quantity(size);
    for (const std::uint32_t size : launch.block) out.u32(size);
    out.quantity(launch.shared);
    out.list(launch.arguments, [&out](const Argument& argument) { write_argument(out, argument); });
  });
}

void write_variant(Writer& out, const Variant& variant) {
  out.string(variant.target);
  out.u32(variant.major);
  out.u32(variant.minor);
  out.u8(static_cast<std::uint8_t>(variant.match));
  out.list(variant.kernels, [&out](const Kernel& kernel) {
    out.string(kernel.template_name);
    out.string(kernel.entry);
    out.u8(static_cast<std::uint8_t>(kernel.kind));
    out.u32(kernel.image);
    out.u32(kernel.registers);
    out.u32(kernel.static_shared);
    out.u32(kernel.max_dynamic_shared);
  });
  out.list(variant.buckets, [&out](const Bucket& bucket) { write_bucket(out, bucket); });
}

Argument pointer(ArgumentKind kind, std::uint32_t tensor, std::int64_t offset,
                 std::uint32_t alignment) {
  return Argument{kind, tensor, offset, alignment, {}, 0.0F};
}

Argument computed(ArgumentKind kind, Quantity quantity, std::uint32_t alignment = 1) {
  return Argument{kind, 0, 0, alignment, std::move(quantity), 0.0F};
}

Argument real(float value) { return Argument{ArgumentKind::kFloat32, 0, 0, 1, {}, value}; }

Variant portable_variant() {
  Variant variant{"sm_80", 8, 0, Match::kNewer, {}, {}};
  variant.kernels = {Kernel{"attention_simt", "attention_ptx", ImageKind::kPtx, 1, 0, 0, 1024}};
  Launch launch{0, {constant(1), scaled(1, 1, 128), constant(1)}, {128, 1, 1}, constant(0), {}};
  launch.arguments = {pointer(ArgumentKind::kInput, 0, 0, 4),
                      pointer(ArgumentKind::kOutput, 0, 0, 4)};
  variant.buckets = {Bucket{{}, "{\"tile\":128}", constant(0), {launch}}};
  return variant;
}

Variant hopper_variant() {
  Variant variant{"sm_90", 9, 0, Match::kExact, {}, {}};
  variant.kernels = {
      Kernel{"attention_mma", "attention", ImageKind::kCubin, 0, 128, 256, 65536},
      Kernel{"attention_reduce", "reduce", ImageKind::kCubin, 0, 32, 0, 0},
  };
  Launch small{0, {constant(1), scaled(1, 0), constant(1)}, {64, 1, 1}, constant(512), {}};
  small.arguments = {pointer(ArgumentKind::kInput, 0, 0, 16),
                     pointer(ArgumentKind::kOutput, 0, 0, 16)};
  Launch split{0,
               {scaled(1, 1, 64), scaled(2, 0), constant(1)},
               {128, 2, 1},
               Quantity{{Term{1024, {}}, Term{4, {Ceil{1, 8}}}}},
               {}};
  split.arguments = {
      pointer(ArgumentKind::kInput, 0, 32, 16),
      pointer(ArgumentKind::kInput, 1, 0, 4),
      computed(ArgumentKind::kWorkspace, scaled(256, 0), 256),
      computed(ArgumentKind::kInt32, scaled(-3, 1)),
      computed(ArgumentKind::kInt64, Quantity{{Term{std::int64_t{1} << 32, {Ceil{2, 1}}}}}),
      real(0.5F),
  };
  Launch reduce{1, {scaled(1, 2, 256), constant(1), constant(1)}, {256, 1, 1}, Quantity{}, {}};
  reduce.arguments = {computed(ArgumentKind::kWorkspace, constant(0), 256),
                      pointer(ArgumentKind::kOutput, 0, 0, 16)};
  variant.buckets = {
      Bucket{{Range{1, 0, 64}}, "{\"tile\":64}", constant(0), {small}},
      Bucket{{}, "{\"split\":2}", scaled(1024, 2, 2), {split, reduce}},
  };
  return variant;
}

}  // namespace

void append_u32(Bytes& bytes, std::uint32_t value) {
  Writer writer;
  writer.u32(value);
  bytes.insert(bytes.end(), writer.bytes.begin(), writer.bytes.end());
}

Bytes write_payload(const Plan& plan) {
  Writer out;
  out.string(plan.op);
  out.string(plan.producer);
  out.u32(plan.inputs);
  out.u32(plan.outputs);
  out.list(plan.types, [&out](std::uint32_t type) { out.u32(type); });
  out.list(plan.symbols, [&out](const Symbol& symbol) {
    out.string(symbol.name);
    out.u8(static_cast<std::uint8_t>(symbol.source));
    out.u32(symbol.tensor);
    out.list(symbol.axes, [&out](std::uint32_t axis) { out.u32(axis); });
  });
  out.list(plan.checks, [&out](const Check& check) {
    out.u32(check.symbol);
    out.i64(check.min);
    out.i64(check.max);
  });
  out.list(plan.covers, [&out](const Cover& cover) {
    out.u32(cover.symbol);
    out.quantity(cover.length);
  });
  out.list(plan.images, [&out](const Image& image) {
    out.string(std::string(image.data.begin(), image.data.end() - 1));
  });
  out.list(plan.variants, [&out](const Variant& variant) { write_variant(out, variant); });
  return out.bytes;
}

Bytes write_envelope(const Bytes& payload) {
  Writer out;
  out.bytes.assign({'S', 'T', 'O', 'F', 'P', 'L', 'A', 'N'});
  out.u32(1);
  out.u32(1);
  out.little_endian(payload.size(), 8);
  out.u32(crc32(payload.data(), payload.size()));
  out.u32(0);
  constexpr std::size_t kLargestBlock = 65535;
  std::size_t position = 0;
  do {
    const std::size_t size = std::min(payload.size() - position, kLargestBlock);
    out.u8(position + size == payload.size() ? 1 : 0);  // last block?, stored, padding
    out.little_endian(size, 2);
    out.little_endian(~size, 2);
    const auto begin = payload.begin() + static_cast<std::ptrdiff_t>(position);
    out.bytes.insert(out.bytes.end(), begin, begin + static_cast<std::ptrdiff_t>(size));
    position += size;
  } while (position < payload.size());
  return out.bytes;
}

Image make_image(const std::string& content) {
  Image image{Bytes(content.begin(), content.end()), 0};
  image.data.push_back(0);
  return image;
}

Quantity constant(std::int64_t value) { return Quantity{{Term{value, {}}}}; }

Quantity scaled(std::int64_t factor, std::uint32_t symbol, std::int64_t divisor) {
  return Quantity{{Term{factor, {Ceil{symbol, divisor}}}}};
}

Plan sample_plan() {
  Plan plan{"StofMaskedAttention", "tests 1", 2, 1, {1, 3, 1}, {}, {}, {}, {}, {}};
  plan.symbols = {Symbol{"B", TensorSource::kInput, 0, {0}},
                  Symbol{"S", TensorSource::kInput, 1, {1}},
                  Symbol{"tokens", TensorSource::kOutput, 0, {0, 1}},
                  Symbol{"rows", TensorSource::kInput, 1, {0}}};
  plan.checks = {Check{0, 0, 4096}};
  plan.covers = {Cover{3, scaled(1, 0)}};
  plan.images = {make_image("a cubin for sm_90"), make_image("PTX for 8.0")};
  plan.variants = {portable_variant(), hopper_variant()};
  return plan;
}

}  // namespace tests
}  // namespace stof
