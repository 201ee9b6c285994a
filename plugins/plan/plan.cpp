// What a plan says about given shapes and a given device.
#include "plan/plan.h"

#include <algorithm>

namespace stof {
namespace {

[[noreturn]] void overflow(const std::string& what) {
  throw PlanError(what + " is larger than 2^63 - 1 at these shapes; use smaller shapes");
}

std::int64_t multiply(std::int64_t a, std::int64_t b, const char* what) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) overflow(what);
  return product;
}

std::int64_t divide_up(std::int64_t value, std::int64_t divisor) {
  return value / divisor + (value % divisor > 0 ? 1 : 0);
}

void check_count(const char* what, std::size_t came, std::uint32_t wanted) {
  if (came == wanted) return;
  throw PlanError("the node has " + std::to_string(came) + " " + what + ", its plan was made for " +
                  std::to_string(wanted) + "; run `stof-onnx optimize` again");
}

std::string describe(const Symbol& symbol) {
  const char* const source = symbol.source == TensorSource::kInput ? "input " : "output ";
  return "symbol " + symbol.name + " (" + source + std::to_string(symbol.tensor) + ")";
}

// "4 * B * ceil(Sq/64) + 256".
std::string describe(const Quantity& quantity, const std::vector<Symbol>& symbols) {
  std::string text;
  for (const Term& term : quantity.terms) {
    if (!text.empty()) text += " + ";
    std::string product;
    if (term.factor != 1 || term.parts.empty()) product = std::to_string(term.factor);
    for (const Ceil& part : term.parts) {
      if (!product.empty()) product += " * ";
      const std::string& name = symbols[part.symbol].name;
      product +=
          part.divisor == 1 ? name : "ceil(" + name + "/" + std::to_string(part.divisor) + ")";
    }
    text += product;
  }
  return text.empty() ? "0" : text;
}

std::int64_t symbol_value(const Symbol& symbol, const Dimensions& shape) {
  std::int64_t value = 1;
  for (const std::uint32_t axis : symbol.axes) {
    if (axis >= shape.size()) {
      throw PlanError(describe(symbol) + " needs axis " + std::to_string(axis) +
                      ", but the tensor has rank " + std::to_string(shape.size()) +
                      "; run `stof-onnx optimize` again");
    }
    if (shape[axis] < 0) {
      throw PlanError(describe(symbol) + ": axis " + std::to_string(axis) + " has size " +
                      std::to_string(shape[axis]) + "; set the shapes of all inputs first");
    }
    if (__builtin_mul_overflow(value, shape[axis], &value)) overflow(describe(symbol));
  }
  return value;
}

void check_range(const Plan& plan, const Check& check, const std::vector<std::int64_t>& values) {
  const std::int64_t value = values[check.symbol];
  if (check.min <= value && value <= check.max) return;
  const std::string wanted = check.min == check.max
                                 ? std::to_string(check.min)
                                 : std::to_string(check.min) + " ... " + std::to_string(check.max);
  throw PlanError(describe(plan.symbols[check.symbol]) + " is " + std::to_string(value) +
                  ", the plan of " + plan.op + " was made for " + wanted +
                  "; run `stof-onnx optimize` for these shapes");
}

void check_cover(const Plan& plan, const Cover& cover, const std::vector<std::int64_t>& values) {
  const std::int64_t size = values[cover.symbol];
  const std::int64_t length = evaluate(cover.length, values);
  if (size == 1 || size >= length) return;
  const std::string value = std::to_string(length);
  const std::string name = describe(cover.length, plan.symbols);
  throw PlanError(describe(plan.symbols[cover.symbol]) + " is " + std::to_string(size) + ", " +
                  plan.op + " wants 1 or at least " +
                  (name == value ? name : name + " = " + value) +
                  "; give the node inputs whose sizes fit each other");
}

bool holds(const Range& range, const std::vector<std::int64_t>& symbols) {
  const std::int64_t value = symbols[range.symbol];
  return range.min <= value && value <= range.max;
}

bool matches(const Variant& variant, std::uint32_t major, std::uint32_t minor) {
  switch (variant.match) {
    case Match::kExact:
      return variant.major == major && variant.minor == minor;
    case Match::kMinor:
      return variant.major == major && variant.minor <= minor;
    case Match::kNewer:
      return variant.major < major || (variant.major == major && variant.minor <= minor);
  }
  return false;
}

// True if `other` is to be preferred among variants that match.
bool is_better(const Variant& other, const Variant& variant) {
  if (other.match != variant.match) return other.match < variant.match;
  if (other.major != variant.major) return other.major > variant.major;
  return other.minor > variant.minor;
}

}  // namespace

const Variant* find_variant(const Plan& plan, std::uint32_t major, std::uint32_t minor) {
  const Variant* best = nullptr;
  for (const Variant& variant : plan.variants) {
    if (!matches(variant, major, minor)) continue;
    if (best == nullptr || is_better(variant, *best)) best = &variant;
  }
  return best;
}

const Variant& require_variant(const Plan& plan, std::uint32_t major, std::uint32_t minor) {
  const Variant* const variant = find_variant(plan, major, minor);
  if (variant != nullptr) return *variant;
  const std::string device = std::to_string(major) + "." + std::to_string(minor);
  throw PlanError("the plan of " + plan.op + " has no kernels for this GPU (compute capability " +
                  device + "), only for " + describe_targets(plan) +
                  "; run `stof-onnx optimize` with --target sm_" + std::to_string(major) +
                  std::to_string(minor));
}

std::string describe_targets(const Plan& plan) {
  std::string text;
  for (const Variant& variant : plan.variants) {
    if (!text.empty()) text += ", ";
    text += variant.target;
  }
  return text;
}

std::vector<std::int64_t> evaluate_symbols(const Plan& plan, const std::vector<Dimensions>& inputs,
                                           const std::vector<Dimensions>& outputs) {
  check_count("inputs", inputs.size(), plan.inputs);
  check_count("outputs", outputs.size(), plan.outputs);
  std::vector<std::int64_t> values;
  values.reserve(plan.symbols.size());
  for (const Symbol& symbol : plan.symbols) {
    const auto& tensors = symbol.source == TensorSource::kInput ? inputs : outputs;
    values.push_back(symbol_value(symbol, tensors[symbol.tensor]));
  }
  for (const Check& check : plan.checks) check_range(plan, check, values);
  for (const Cover& cover : plan.covers) check_cover(plan, cover, values);
  return values;
}

std::int64_t evaluate(const Quantity& quantity, const std::vector<std::int64_t>& symbols) {
  constexpr const char* kWhat = "a size in the plan";
  std::int64_t sum = 0;
  for (const Term& term : quantity.terms) {
    std::int64_t product = term.factor;
    for (const Ceil& part : term.parts) {
      product = multiply(product, divide_up(symbols[part.symbol], part.divisor), kWhat);
    }
    if (__builtin_add_overflow(sum, product, &sum)) overflow(kWhat);
  }
  return sum;
}

const Bucket& find_bucket(const Variant& variant, const std::vector<std::int64_t>& symbols) {
  for (const Bucket& bucket : variant.buckets) {
    const bool all = std::all_of(bucket.ranges.begin(), bucket.ranges.end(),
                                 [&symbols](const Range& range) { return holds(range, symbols); });
    if (all) return bucket;
  }
  return variant.buckets.back();  // has no ranges
}

}  // namespace stof
