#include "host/constant_expressions.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace stof {

namespace {

using nvinfer1::DimensionOperation;

std::optional<std::int64_t> divide(std::int64_t a, std::int64_t b, bool up) {
  if (b == 0 || (b == -1 && a == std::numeric_limits<std::int64_t>::min())) return std::nullopt;
  const std::int64_t quotient = a / b;
  if (a % b == 0) return quotient;
  const bool positive = (a < 0) == (b < 0);
  return quotient + (up && positive ? 1 : 0) - (!up && !positive ? 1 : 0);
}

std::optional<std::int64_t> compute(DimensionOperation op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  switch (op) {
    case DimensionOperation::kSUM:
      return __builtin_add_overflow(a, b, &result) ? std::nullopt : std::optional(result);
    case DimensionOperation::kPROD:
      return __builtin_mul_overflow(a, b, &result) ? std::nullopt : std::optional(result);
    case DimensionOperation::kSUB:
      return __builtin_sub_overflow(a, b, &result) ? std::nullopt : std::optional(result);
    case DimensionOperation::kMAX:
      return std::max(a, b);
    case DimensionOperation::kMIN:
      return std::min(a, b);
    case DimensionOperation::kEQUAL:
      return a == b ? 1 : 0;
    case DimensionOperation::kLESS:
      return a < b ? 1 : 0;
    case DimensionOperation::kFLOOR_DIV:
      return divide(a, b, false);
    case DimensionOperation::kCEIL_DIV:
      return divide(a, b, true);
  }
  return std::nullopt;
}

}  // namespace

const nvinfer1::IDimensionExpr* ConstantExpressionBuilder::Operations::constant(
    std::int64_t value) {
  return &expressions_.emplace_back(value);
}

const nvinfer1::IDimensionExpr* ConstantExpressionBuilder::Operations::operation(
    nvinfer1::DimensionOperation op, const nvinfer1::IDimensionExpr& first,
    const nvinfer1::IDimensionExpr& second) {
  const std::optional<std::int64_t> value =
      compute(op, first.getConstantValue(), second.getConstantValue());
  return value ? constant(*value) : nullptr;
}

const nvinfer1::IDimensionExpr* ConstantExpressionBuilder::Operations::declareSizeTensor(
    std::int32_t, const nvinfer1::IDimensionExpr&, const nvinfer1::IDimensionExpr&) {
  return nullptr;
}

}  // namespace stof
