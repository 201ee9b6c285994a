#include "trt/mask_table.h"

#include <algorithm>
#include <utility>

#include "trt/expressions.h"
#include "trt/shapes.h"

namespace stof {

namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::IDimensionExpr;

constexpr std::uint32_t kOutputs = 3;

// In size_axes: the size is 1, as the batch of a mask that all batches share.
constexpr std::int64_t kNoOperand = -1;

// Well above any tile a kernel works on; the words of a bitmap stay far from overflow.
constexpr std::int64_t kLargestTile = 1024;

void check_plan_types(const Plan& plan) {
  if (plan.inputs < 1 || plan.outputs != kOutputs) {
    throw PlanError("its plan has " + std::to_string(plan.inputs) + " inputs and " +
                    std::to_string(plan.outputs) + " outputs; wanted 1 or more, and 3");
  }
  check_operand_types(plan, 0);
  for (std::size_t i = 0; i < kOutputs; ++i) {
    if (plan.types.at(plan.inputs + i) != static_cast<std::uint32_t>(DataType::kINT32)) {
      throw PlanError("its plan has an output that isn't INT32; run `stof-onnx optimize` again");
    }
  }
}

[[noreturn]] void refuse_axis(std::int64_t operand, std::int64_t axis) {
  throw AttributeError("size_axes names axis " + std::to_string(axis) + " of input " +
                       std::to_string(operand) + ", which doesn't exist");
}

const IDimensionExpr* size_at(const std::vector<DimsExprs>& inputs, std::int64_t operand,
                              std::int64_t axis, nvinfer1::IExprBuilder& builder) {
  if (operand == kNoOperand) return constant(builder, 1);
  if (operand < 0 || operand >= static_cast<std::int64_t>(inputs.size()) || axis < 0 ||
      axis >= inputs[static_cast<std::size_t>(operand)].nbDims) {
    refuse_axis(operand, axis);
  }
  return inputs[static_cast<std::size_t>(operand)].d[axis];
}

std::int64_t size_at(const std::vector<Dimensions>& inputs, std::int64_t operand,
                     std::int64_t axis) {
  if (operand == kNoOperand) return 1;
  if (operand < 0 || axis < 0) refuse_axis(operand, axis);
  return inputs.at(static_cast<std::size_t>(operand)).at(static_cast<std::size_t>(axis));
}

}  // namespace

const AttributeSpecs& MaskTable::attribute_specs() {
  static const AttributeSpecs specs = {
      {"mask", AttributeKind::kString},       {"num_heads", AttributeKind::kInt},
      {"size_axes", AttributeKind::kInts, 6}, {"tile", AttributeKind::kInts, 2},
      {"plan", AttributeKind::kBytes},
  };
  return specs;
}

MaskTable::MaskTable(const std::string& node_name, Attributes attributes)
    : MaskTable(std::make_shared<const Node>(kName, node_name, std::move(attributes))) {
  if (num_heads_ < 1) {
    throw AttributeError("num_heads is " + std::to_string(num_heads_) + ", wanted 1 or more");
  }
  if (std::any_of(tile_.begin(), tile_.end(), [](std::int64_t size) {
        return size < 8 || size > kLargestTile || size % 8 != 0;
      })) {
    throw AttributeError("tile is " + std::to_string(tile_[0]) + " x " + std::to_string(tile_[1]) +
                         ", wanted multiples of 8 up to " + std::to_string(kLargestTile));
  }
  if (node()->attributes.text("mask").empty()) throw AttributeError("mask is empty");
  check_plan_types(*node()->plan);
}

MaskTable::MaskTable(std::shared_ptr<const Node> shared)
    : PluginBase(std::move(shared)),
      num_heads_(node()->attributes.integer("num_heads")),
      size_axes_(node()->attributes.integers("size_axes")),
      tile_(node()->attributes.integers("tile")) {}

std::unique_ptr<PluginBase> MaskTable::copy() const {
  return std::unique_ptr<PluginBase>(new MaskTable(node()));
}

void MaskTable::write_output_shapes(const std::vector<DimsExprs>& inputs, DimsExprs* outputs,
                                    nvinfer1::IExprBuilder& builder) const {
  const auto* const batch = size_at(inputs, size_axes_[0], size_axes_[1], builder);
  const auto* const queries = size_at(inputs, size_axes_[2], size_axes_[3], builder);
  const auto* const keys = size_at(inputs, size_axes_[4], size_axes_[5], builder);
  const auto* const groups =
      operation(builder, DimensionOperation::kPROD, batch, constant(builder, num_heads_));
  const auto* const rows =
      operation(builder, DimensionOperation::kCEIL_DIV, queries, constant(builder, tile_[0]));
  const auto* const columns =
      operation(builder, DimensionOperation::kCEIL_DIV, keys, constant(builder, tile_[1]));
  const auto* const words = constant(builder, tile_[0] * tile_[1] / 32);
  set_shape(outputs[0], {groups, rows, constant(builder, 2)});
  set_shape(outputs[1], {groups, rows, columns});
  set_shape(outputs[2], {groups, rows, columns, words});
}

void MaskTable::check_shapes(const std::vector<Dimensions>& inputs,
                             const std::vector<Dimensions>& outputs) const {
  const std::int64_t groups = product(size_at(inputs, size_axes_[0], size_axes_[1]), num_heads_);
  const std::int64_t queries = size_at(inputs, size_axes_[2], size_axes_[3]);
  const std::int64_t keys = size_at(inputs, size_axes_[4], size_axes_[5]);
  const auto wanted = table_shapes(groups, queries, keys, tile_[0], tile_[1]);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    require_shape(kTableTensors[i], outputs.at(i), wanted[i]);
  }
}

}  // namespace stof
