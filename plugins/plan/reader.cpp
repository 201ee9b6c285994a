// read_plan: from the bytes of a `plan` attribute to checked records. The format is docs/plan.md.
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "plan/byte_reader.h"
#include "plan/crc32.h"
#include "plan/inflate.h"
#include "plan/plan.h"

namespace stof {
namespace {

constexpr char kMagic[] = "STOFPLAN";
constexpr std::size_t kEnvelopeSize = 32;
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kDeflate = 1;
constexpr std::uint64_t kMaxPayload = std::uint64_t{1} << 30;
constexpr std::uint64_t kMaxBlockThreads = 1024;  // of every GPU so far
constexpr std::uint32_t kMaxRank = 8;             // of TensorRT's tensors
constexpr std::uint32_t kMaxDataType = 8;         // nvinfer1::DataType::kINT64

// Smallest sizes in bytes of the elements of lists, for ByteReader::count.
constexpr std::size_t kU32Size = 4;
constexpr std::size_t kSymbolSize = 4 + 1 + 4 + 4;
constexpr std::size_t kCheckSize = 4 + 8 + 8;
constexpr std::size_t kImageSize = 4;
constexpr std::size_t kCeilSize = 4 + 8;
constexpr std::size_t kTermSize = 8 + 4;
constexpr std::size_t kQuantitySize = 4;
constexpr std::size_t kCoverSize = 4 + kQuantitySize;
constexpr std::size_t kKernelSize = 4 + 4 + 1 + 4 * 4;
constexpr std::size_t kRangeSize = 4 + 8 + 8;
constexpr std::size_t kArgumentSize = 1 + 4;
constexpr std::size_t kLaunchSize = 4 + 3 * kQuantitySize + 3 * 4 + kQuantitySize + 4;
constexpr std::size_t kBucketSize = 4 + 4 + kQuantitySize + 4;
constexpr std::size_t kVariantSize = 4 + 4 + 4 + 1 + 4 + 4;

// FNV-1a. Not against attackers: whoever looks up an image compares its bytes too.
std::uint64_t content_hash(ByteSpan bytes) {
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (std::size_t i = 0; i < bytes.size; ++i) hash = (hash ^ bytes.data[i]) * 0x100000001B3U;
  return hash;
}

std::string indexed(const char* what, std::uint64_t number, std::size_t size) {
  return std::string(what) + " " + std::to_string(number) + " doesn't exist, there are " +
         std::to_string(size);
}

class PlanReader {
 public:
  PlanReader(const std::uint8_t* payload, std::size_t size) : in_(payload, size) {}

  Plan read() {
    plan_.op = read_name("the operator's name");
    plan_.producer = read_name("the producer");
    read_tensors();
    plan_.symbols = list<Symbol>(kSymbolSize, "symbols", [this] { return read_symbol(); });
    check_distinct(plan_.symbols, &Symbol::name, "symbols");
    plan_.checks = list<Check>(kCheckSize, "checks", [this] { return read_check(); });
    plan_.covers = list<Cover>(kCoverSize, "covers", [this] { return read_cover(); });
    plan_.images = list<Image>(kImageSize, "images", [this] { return read_image(); });
    plan_.variants = list<Variant>(kVariantSize, "variants", [this] { return read_variant(); });
    if (plan_.variants.empty()) in_.fail("it has no variants");
    check_distinct(plan_.variants, &Variant::target, "variants");
    if (in_.remaining() != 0) in_.fail("bytes follow its end");
    return std::move(plan_);
  }

 private:
  template <typename T, typename Read>
  std::vector<T> list(std::size_t element_size, const char* what, Read read_element) {
    const std::size_t size = in_.count(element_size, what);
    std::vector<T> elements;
    elements.reserve(size);
    for (std::size_t i = 0; i < size; ++i) elements.push_back(read_element());
    return elements;
  }

  std::uint32_t index(std::size_t size, const char* what) {
    const std::uint32_t number = in_.u32(what);
    if (number >= size) in_.fail(indexed(what, number, size));
    return number;
  }

  // An enumeration of the values 0 ... last.
  template <typename Enum>
  Enum choice(Enum last, const char* what) {
    const std::uint8_t value = in_.u8(what);
    if (value > static_cast<std::uint8_t>(last)) {
      in_.fail(std::string(what) + " " + std::to_string(value) + " is unknown");
    }
    return static_cast<Enum>(value);
  }

  std::string read_name(const char* what) {
    std::string text = in_.string(what);
    if (text.empty()) in_.fail(std::string(what) + " is empty");
    return text;
  }

  template <typename T>
  void check_distinct(const std::vector<T>& records, std::string T::* name_of, const char* what) {
    std::set<std::string> names;
    for (const T& record : records) {
      if (!names.insert(record.*name_of).second) {
        in_.fail(std::string("two ") + what + " are named " + record.*name_of);
      }
    }
  }

  void read_tensors() {
    plan_.inputs = in_.u32("the number of inputs");
    plan_.outputs = in_.u32("the number of outputs");
    if (plan_.outputs == 0) in_.fail("it has no outputs");
    plan_.types = list<std::uint32_t>(kU32Size, "types", [this] {
      const std::uint32_t type = in_.u32("a type");
      if (type > kMaxDataType) in_.fail("type " + std::to_string(type) + " is unknown");
      return type;
    });
    const std::uint64_t tensors = std::uint64_t{plan_.inputs} + plan_.outputs;
    if (plan_.types.size() != tensors) {
      in_.fail("it has " + std::to_string(plan_.types.size()) + " types for " +
               std::to_string(tensors) + " tensors");
    }
  }

  Symbol read_symbol() {
    Symbol symbol;
    symbol.name = read_name("a symbol's name");
    symbol.source = choice(TensorSource::kOutput, "a symbol's source");
    const bool is_input = symbol.source == TensorSource::kInput;
    symbol.tensor = index(is_input ? plan_.inputs : plan_.outputs, is_input ? "input" : "output");
    symbol.axes = list<std::uint32_t>(kU32Size, "axes", [this] { return index(kMaxRank, "axis"); });
    if (symbol.axes.empty()) in_.fail("symbol " + symbol.name + " has no axes");
    return symbol;
  }

  Check read_check() {
    Check check;
    check.symbol = index(plan_.symbols.size(), "symbol");
    read_bounds(check.min, check.max);
    return check;
  }

  Cover read_cover() {
    Cover cover;
    cover.symbol = index(plan_.symbols.size(), "symbol");
    cover.length = read_quantity();
    return cover;
  }

  Image read_image() {
    Image image;
    const ByteSpan bytes = in_.bytes("an image");
    if (bytes.size == 0) in_.fail("an image is empty");
    image.hash = content_hash(bytes);
    image.data.reserve(bytes.size + 1);
    image.data.assign(bytes.data, bytes.data + bytes.size);
    image.data.push_back(0);
    return image;
  }

  Quantity read_quantity() {
    Quantity quantity;
    quantity.terms = list<Term>(kTermSize, "the terms of a quantity", [this] {
      Term term;
      term.factor = in_.i64("a factor");
      term.parts = list<Ceil>(kCeilSize, "the parts of a term", [this] { return read_ceil(); });
      return term;
    });
    return quantity;
  }

  Ceil read_ceil() {
    Ceil ceil;
    ceil.symbol = index(plan_.symbols.size(), "symbol");
    ceil.divisor = in_.i64("a divisor");
    if (ceil.divisor < 1) in_.fail("divisor " + std::to_string(ceil.divisor) + " is less than 1");
    return ceil;
  }

  Variant read_variant() {
    Variant variant;
    variant.target = read_name("a variant's target");
    variant.major = in_.u32("the compute capability");
    variant.minor = in_.u32("the compute capability");
    variant.match = choice(Match::kNewer, "a variant's match");
    variant.kernels = list<Kernel>(kKernelSize, "kernels", [this] { return read_kernel(); });
    const std::size_t kernels = variant.kernels.size();
    variant.buckets =
        list<Bucket>(kBucketSize, "buckets", [this, kernels] { return read_bucket(kernels); });
    if (variant.buckets.empty()) in_.fail(variant.target + " has no buckets");
    for (const Bucket& bucket : variant.buckets) {
      const bool is_last = &bucket == &variant.buckets.back();
      if (bucket.ranges.empty() == is_last) continue;
      in_.fail("the last bucket of " + variant.target + ", and no other, must be for all shapes");
    }
    return variant;
  }

  Kernel read_kernel() {
    Kernel kernel;
    kernel.template_name = read_name("a kernel's template");
    kernel.entry = read_name("a kernel's entry");
    kernel.kind = choice(ImageKind::kPtx, "a kernel's kind");
    kernel.image = index(plan_.images.size(), "image");
    kernel.registers = in_.u32("a kernel's registers");
    kernel.static_shared = in_.u32("a kernel's static shared memory");
    kernel.max_dynamic_shared = in_.u32("a kernel's dynamic shared memory");
    return kernel;
  }

  Bucket read_bucket(std::size_t kernels) {
    Bucket bucket;
    bucket.ranges = list<Range>(kRangeSize, "ranges", [this] { return read_range(); });
    bucket.tactic = in_.string("a tactic");
    bucket.workspace = read_quantity();
    bucket.launches =
        list<Launch>(kLaunchSize, "launches", [this, kernels] { return read_launch(kernels); });
    if (bucket.launches.empty()) in_.fail("a bucket has no launches");
    return bucket;
  }

  Range read_range() {
    Range range;
    range.symbol = index(plan_.symbols.size(), "symbol");
    read_bounds(range.min, range.max);
    return range;
  }

  void read_bounds(std::int64_t& min, std::int64_t& max) {
    min = in_.i64("a range");
    max = in_.i64("a range");
    if (min <= max) return;
    in_.fail("range " + std::to_string(min) + " ... " + std::to_string(max) + " is empty");
  }

  Launch read_launch(std::size_t kernels) {
    Launch launch;
    launch.kernel = index(kernels, "kernel");
    for (Quantity& size : launch.grid) size = read_quantity();
    for (std::uint32_t& size : launch.block) size = in_.u32("a block's size");
    check_block(launch.block);
    launch.shared = read_quantity();
    launch.arguments =
        list<Argument>(kArgumentSize, "arguments", [this] { return read_argument(); });
    return launch;
  }

  void check_block(const std::uint32_t (&block)[3]) {
    std::uint64_t threads = 1;
    for (const std::uint32_t size : block) {
      // At most 1024 before each product, so it can't overflow.
      threads = threads <= kMaxBlockThreads ? threads * size : threads;
    }
    if (threads >= 1 && threads <= kMaxBlockThreads) return;
    in_.fail("a block of " + std::to_string(block[0]) + " x " + std::to_string(block[1]) + " x " +
             std::to_string(block[2]) + " threads doesn't run on any GPU");
  }

  Argument read_argument() {
    Argument argument;
    argument.kind = choice(ArgumentKind::kFloat32, "an argument's kind");
    switch (argument.kind) {
      case ArgumentKind::kInput:
      case ArgumentKind::kOutput: {
        const bool is_input = argument.kind == ArgumentKind::kInput;
        argument.tensor =
            index(is_input ? plan_.inputs : plan_.outputs, is_input ? "input" : "output");
        argument.offset = in_.i64("an offset");
        if (argument.offset < 0) in_.fail("an argument points before its tensor");
        argument.alignment = read_alignment();
        break;
      }
      case ArgumentKind::kWorkspace:
        argument.quantity = read_quantity();
        argument.alignment = read_alignment();
        break;
      case ArgumentKind::kInt32:
      case ArgumentKind::kInt64:
        argument.quantity = read_quantity();
        break;
      case ArgumentKind::kFloat32:
        argument.value = in_.f32("an argument's value");
        if (std::isnan(argument.value)) in_.fail("an argument is not a number");
        break;
    }
    return argument;
  }

  std::uint32_t read_alignment() {
    const std::uint32_t value = in_.u32("an alignment");
    if (value == 0 || (value & (value - 1)) != 0) {
      in_.fail("alignment " + std::to_string(value) + " is no power of 2");
    }
    return value;
  }

  ByteReader in_;
  Plan plan_;
};

[[noreturn]] void damaged(const std::string& what) {
  throw PlanError("the plan is damaged: " + what + "; run `stof-onnx optimize` again");
}

// Checks the envelope and returns the payload.
std::vector<std::uint8_t> unpack(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kMagicSize = sizeof kMagic - 1;
  if (data == nullptr || size < kMagicSize || std::memcmp(data, kMagic, kMagicSize) != 0) {
    throw PlanError(
        "this is not a plan: it doesn't begin with STOFPLAN; the `plan` attribute of a stof node "
        "is written by `stof-onnx optimize`");
  }
  ByteReader envelope(data + kMagicSize, size - kMagicSize);
  if (size < kEnvelopeSize) damaged("it ends within its first 32 bytes");
  const std::uint32_t version = envelope.u32("the version");
  if (version != kVersion) {
    throw PlanError("the plan has format version " + std::to_string(version) +
                    ", this library reads version " + std::to_string(kVersion) +
                    "; run `stof-onnx optimize` of the library's release again");
  }
  const std::uint32_t compression = envelope.u32("the compression");
  if (compression != kDeflate)
    damaged("compression " + std::to_string(compression) + " is unknown");
  const std::uint64_t payload_size = envelope.u64("the size");
  const std::uint32_t wanted_crc = envelope.u32("the CRC");
  if (envelope.u32("the reserved field") != 0) damaged("its reserved field is not 0");
  // Before memory is reserved: a few damaged bytes mustn't cost a gigabyte.
  const std::size_t packed_size = size - kEnvelopeSize;
  if (payload_size > kMaxPayload || payload_size > largest_inflated_size(packed_size)) {
    damaged("it can't have a payload of " + std::to_string(payload_size) + " bytes");
  }
  std::vector<std::uint8_t> payload(static_cast<std::size_t>(payload_size));
  inflate(data + kEnvelopeSize, packed_size, payload.data(), payload.size());
  if (crc32(payload.data(), payload.size()) != wanted_crc) damaged("its CRC is wrong");
  return payload;
}

}  // namespace

Plan read_plan(const void* data, std::size_t size) {
  const std::vector<std::uint8_t> payload = unpack(static_cast<const std::uint8_t*>(data), size);
  return PlanReader(payload.data(), payload.size()).read();
}

}  // namespace stof
