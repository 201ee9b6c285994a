#include "trt/masked_attention.h"

#include <cmath>
#include <utility>

#include "trt/expressions.h"

namespace stof {

namespace {

using nvinfer1::DataType;

DataType read_float_type(const Attributes& attributes, const char* name) {
  const std::string text = attributes.text(name);
  if (text == "float32") return DataType::kFLOAT;
  if (text == "float16") return DataType::kHALF;
  if (text == "bfloat16") return DataType::kBF16;
  throw AttributeError(std::string(name) + " is '" + text +
                       "', wanted float32, float16 or bfloat16");
}

// The attributes that only kernels use are checked here too: what is written into an engine should
// be sound.
void check_numbers(const Attributes& attributes) {
  for (const char* name : {"num_heads", "kv_num_heads", "head_dim", "value_head_dim"}) {
    if (attributes.integer(name) < 1) {
      throw AttributeError(std::string(name) + " is " + std::to_string(attributes.integer(name)) +
                           ", wanted 1 or more");
    }
  }
  if (attributes.integer("num_heads") % attributes.integer("kv_num_heads") != 0) {
    throw AttributeError("num_heads is " + std::to_string(attributes.integer("num_heads")) +
                         ", wanted a multiple of kv_num_heads, " +
                         std::to_string(attributes.integer("kv_num_heads")));
  }
  for (const char* name : {"query", "key", "value"}) {
    if (attributes.integer(std::string(name) + "_offset") < 0 ||
        attributes.integer(std::string(name) + "_head_stride") < 0) {
      throw AttributeError(std::string(name) + " has a negative offset or head stride");
    }
  }
  if (!std::isfinite(attributes.number("scale"))) {
    throw AttributeError("scale isn't a finite number");
  }
  if (attributes.text("mask").empty()) throw AttributeError("mask is empty");
  read_float_type(attributes, "score_dtype");
}

// The plan's types, which the format combinations follow, against the attributes.
void check_plan_types(const Node& node) {
  const Plan& plan = *node.plan;
  const auto wanted = static_cast<std::uint32_t>(read_float_type(node.attributes, "dtype"));
  const std::uint32_t fewest = node.attributes.has("table") ? 6 : 3;
  if (plan.inputs < fewest || plan.outputs != 1) {
    throw PlanError("its plan has " + std::to_string(plan.inputs) + " inputs and " +
                    std::to_string(plan.outputs) + " outputs; wanted " + std::to_string(fewest) +
                    " or more, and 1");
  }
  for (const std::size_t tensor :
       {std::size_t{0}, std::size_t{1}, std::size_t{2}, static_cast<std::size_t>(plan.inputs)}) {
    if (plan.types.at(tensor) != wanted) {
      throw PlanError("its plan has type " + std::to_string(plan.types[tensor]) + " for tensor " +
                      std::to_string(tensor) + ", its attributes say " + std::to_string(wanted) +
                      " (nvinfer1::DataType); run `stof-onnx optimize` again");
    }
  }
  check_operand_types(plan, 3);
}

}  // namespace

const AttributeSpecs& MaskedAttention::attribute_specs() {
  static const AttributeSpecs specs = {
      {"num_heads", AttributeKind::kInt},        {"kv_num_heads", AttributeKind::kInt},
      {"head_dim", AttributeKind::kInt},         {"value_head_dim", AttributeKind::kInt},
      {"scale", AttributeKind::kFloat},          {"query_layout", AttributeKind::kString},
      {"key_layout", AttributeKind::kString},    {"value_layout", AttributeKind::kString},
      {"query_offset", AttributeKind::kInt},     {"key_offset", AttributeKind::kInt},
      {"value_offset", AttributeKind::kInt},     {"query_head_stride", AttributeKind::kInt},
      {"key_head_stride", AttributeKind::kInt},  {"value_head_stride", AttributeKind::kInt},
      {"output_layout", AttributeKind::kString}, {"output_rank", AttributeKind::kInt},
      {"mask", AttributeKind::kString},          {"score_dtype", AttributeKind::kString},
      {"dtype", AttributeKind::kString},         {"table", AttributeKind::kInts, 4},
      {"plan", AttributeKind::kBytes},
  };
  return specs;
}

MaskedAttention::Layout MaskedAttention::read_layout(const Attributes& attributes,
                                                     const char* name) {
  const std::string text = attributes.text(name);
  if (text == "BSHD") return Layout::kBshd;
  if (text == "BHSD") return Layout::kBhsd;
  throw AttributeError(std::string(name) + " is '" + text + "', wanted BSHD or BHSD");
}

MaskedAttention::Shape::Shape(const Attributes& attributes)
    : num_heads(attributes.integer("num_heads")),
      value_head_dim(attributes.integer("value_head_dim")),
      input_layouts{read_layout(attributes, "query_layout"), read_layout(attributes, "key_layout"),
                    read_layout(attributes, "value_layout")},
      output_layout(read_layout(attributes, "output_layout")),
      output_rank(attributes.integer("output_rank")),
      table(attributes.has("table") ? attributes.integers("table") : std::vector<std::int64_t>{}) {
  const bool flat = output_rank == 3 && output_layout == Layout::kBshd;
  if (output_rank != 4 && !flat) {
    throw AttributeError("output_rank is " + std::to_string(output_rank) +
                         ", wanted 4, or 3 with the layout BSHD");
  }
  if (!table.empty() && (table[0] < 8 || table[0] % 8 != 0 || table[1] < 8 || table[1] % 8 != 0)) {
    throw AttributeError("table has tiles of " + std::to_string(table[0]) + " x " +
                         std::to_string(table[1]) + ", wanted multiples of 8");
  }
}

MaskedAttention::MaskedAttention(const std::string& node_name, Attributes attributes)
    : MaskedAttention(std::make_shared<const Node>(kName, node_name, std::move(attributes))) {
  check_numbers(node()->attributes);
  check_plan_types(*node());
}

MaskedAttention::MaskedAttention(std::shared_ptr<const Node> shared)
    : PluginBase(std::move(shared)), shape_(node()->attributes) {}

std::unique_ptr<PluginBase> MaskedAttention::copy() const {
  return std::unique_ptr<PluginBase>(new MaskedAttention(node()));
}

void MaskedAttention::write_output_shapes(const std::vector<nvinfer1::DimsExprs>& inputs,
                                          nvinfer1::DimsExprs* outputs,
                                          nvinfer1::IExprBuilder& builder) const {
  const char* const names[] = {"query", "key", "value"};
  for (std::size_t i = 0; i < 3; ++i) {
    const std::int32_t rank = inputs.at(i).nbDims;
    if (shape_.input_layouts[i] == Layout::kBhsd ? rank != 4 : rank < 3) {
      throw AttributeError(std::string(names[i]) + " has rank " + std::to_string(rank) +
                           ", its layout wants " +
                           (shape_.input_layouts[i] == Layout::kBhsd ? "4" : "3 or more"));
    }
  }
  const auto& query = inputs[0].d;
  const auto* const batch = query[0];
  const auto* const queries = query[shape_.input_layouts[0] == Layout::kBhsd ? 2 : 1];
  const auto* const heads = constant(builder, shape_.num_heads);
  const auto* const width = constant(builder, shape_.value_head_dim);
  if (shape_.output_rank == 3) {
    const auto* const row = constant(builder, shape_.num_heads * shape_.value_head_dim);
    set_shape(outputs[0], {batch, queries, row});
  } else if (shape_.output_layout == Layout::kBshd) {
    set_shape(outputs[0], {batch, queries, heads, width});
  } else {
    set_shape(outputs[0], {batch, heads, queries, width});
  }
}

void MaskedAttention::check_shapes(const std::vector<Dimensions>& inputs,
                                   const std::vector<Dimensions>& outputs) const {
  const auto rank_fits = [this](const Dimensions& dims, std::size_t input) {
    return shape_.input_layouts[input] == Layout::kBhsd ? dims.size() == 4 : dims.size() >= 3;
  };
  const auto length = [this](const Dimensions& dims, std::size_t input) {
    return dims[shape_.input_layouts[input] == Layout::kBhsd ? 2 : 1];
  };
  for (std::size_t i = 0; i < 3; ++i) {
    if (!rank_fits(inputs.at(i), i)) throw AttributeError("query, key or value has a wrong rank");
  }
  if (inputs[1][0] != inputs[0][0] || inputs[2][0] != inputs[0][0]) {
    throw AttributeError("query, key and value have batches of " + std::to_string(inputs[0][0]) +
                         ", " + std::to_string(inputs[1][0]) + " and " +
                         std::to_string(inputs[2][0]) + ", wanted the same");
  }
  if (length(inputs[1], 1) != length(inputs[2], 2)) {
    throw AttributeError("key and value have lengths of " + std::to_string(length(inputs[1], 1)) +
                         " and " + std::to_string(length(inputs[2], 2)) + ", wanted the same");
  }
  const std::int64_t batch = inputs[0][0], queries = length(inputs[0], 0);
  const std::int64_t heads = shape_.num_heads, dim = shape_.value_head_dim;
  const Dimensions wanted = shape_.output_rank == 3 ? Dimensions{batch, queries, heads * dim}
                            : shape_.output_layout == Layout::kBshd
                                ? Dimensions{batch, queries, heads, dim}
                                : Dimensions{batch, heads, queries, dim};
  if (outputs.at(0) != wanted) throw AttributeError("the output's shape isn't that of the query");
  check_table(inputs);
}

// The table is the last three inputs; kernels find their tiles by these shapes.
void MaskedAttention::check_table(const std::vector<Dimensions>& inputs) const {
  if (shape_.table.empty()) return;
  const std::int64_t queries = inputs[0][shape_.input_layouts[0] == Layout::kBhsd ? 2 : 1];
  const std::int64_t keys = inputs[1][shape_.input_layouts[1] == Layout::kBhsd ? 2 : 1];
  const std::int64_t groups =
      (shape_.table[2] != 0 ? inputs[0][0] : 1) * (shape_.table[3] != 0 ? shape_.num_heads : 1);
  const std::int64_t tile_q = shape_.table[0], tile_k = shape_.table[1];
  const std::int64_t rows = (queries + tile_q - 1) / tile_q;
  const std::int64_t columns = (keys + tile_k - 1) / tile_k;
  const std::size_t first = inputs.size() - 3;
  const std::vector<Dimensions> table(inputs.begin() + static_cast<std::ptrdiff_t>(first),
                                      inputs.end());
  const std::vector<Dimensions> wanted = {
      {groups, rows, 2}, {groups, rows, columns}, {groups, rows, columns, tile_q * tile_k / 32}};
  if (table != wanted) {
    throw AttributeError("the mask table's shapes aren't those of a mask of " +
                         std::to_string(queries) + " queries and " + std::to_string(keys) +
                         " keys in " + std::to_string(groups) + " groups");
  }
}

}  // namespace stof
