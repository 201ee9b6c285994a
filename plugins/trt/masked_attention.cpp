#include "trt/masked_attention.h"

#include <cmath>
#include <utility>

#include "trt/expressions.h"
#include "trt/shapes.h"

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
  if (attributes.has("softcap")) {
    const float softcap = attributes.number("softcap");
    if (!std::isfinite(softcap) || softcap < 0) {
      throw AttributeError("softcap is " + std::to_string(softcap) +
                           ", wanted a positive number, or 0 for none");
    }
  }
  if (attributes.text("mask").empty()) throw AttributeError("mask is empty");
  read_float_type(attributes, "score_dtype");
}

void check_table(const std::vector<std::int64_t>& table) {
  const auto is_tile = [](std::int64_t size) { return size >= 8 && size % 8 == 0; };
  const auto is_flag = [](std::int64_t value) { return value == 0 || value == 1; };
  if (is_tile(table[0]) && is_tile(table[1]) && is_flag(table[2]) && is_flag(table[3])) return;
  std::string values;
  for (const std::int64_t value : table) values += " " + std::to_string(value);
  throw AttributeError("table is" + values +
                       ", wanted [tile_q, tile_k, 0 or 1, 0 or 1] with tiles of multiples of 8");
}

bool read_sinks(const Attributes& attributes) {
  const std::int64_t sinks = attributes.has("sinks") ? attributes.integer("sinks") : 0;
  if (sinks == 0 || sinks == 1) return sinks == 1;
  throw AttributeError("sinks is " + std::to_string(sinks) + ", wanted 0 or 1");
}

// The plan's types, which the format combinations follow, against the attributes.
void check_plan_types(const Node& node) {
  const Plan& plan = *node.plan;
  const auto wanted = static_cast<std::uint32_t>(read_float_type(node.attributes, "dtype"));
  const bool has_table = node.attributes.has("table") && !node.attributes.integers("table").empty();
  const bool has_sinks = read_sinks(node.attributes);
  const std::uint32_t table_inputs = has_table ? 3 : 0;
  const std::uint32_t fewest = 3 + (has_sinks ? 1 : 0) + table_inputs;
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
  if (!has_sinks) return;
  const std::uint32_t position = plan.inputs - table_inputs - 1;
  const std::uint32_t type = plan.types.at(position);
  if (type != static_cast<std::uint32_t>(DataType::kFLOAT)) {
    throw PlanError("its plan has type " + std::to_string(type) + " for tensor " +
                    std::to_string(position) + ", the sinks, wanted " +
                    std::to_string(static_cast<std::uint32_t>(DataType::kFLOAT)) +
                    " (nvinfer1::DataType); run `stof-onnx optimize` again");
  }
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
      {"dtype", AttributeKind::kString},         {"table", AttributeKind::kInts, 4, true},
      {"softcap", AttributeKind::kFloat},        {"sinks", AttributeKind::kInt},
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
      has_sinks(read_sinks(attributes)),
      table(attributes.has("table") ? attributes.integers("table") : std::vector<std::int64_t>{}) {
  const bool flat = output_rank == 3 && output_layout == Layout::kBshd;
  if (output_rank != 4 && !flat) {
    throw AttributeError("output_rank is " + std::to_string(output_rank) +
                         ", wanted 4, or 3 with the layout BSHD");
  }
  if (!table.empty()) check_table(table);
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
    const auto* const row = constant(builder, product(shape_.num_heads, shape_.value_head_dim));
    set_shape(outputs[0], {batch, queries, row});
  } else if (shape_.output_layout == Layout::kBshd) {
    set_shape(outputs[0], {batch, queries, heads, width});
  } else {
    set_shape(outputs[0], {batch, heads, queries, width});
  }
}

void MaskedAttention::check_shapes(const std::vector<Dimensions>& inputs,
                                   const std::vector<Dimensions>& outputs) const {
  const char* const names[] = {"query", "key", "value"};
  for (std::size_t i = 0; i < 3; ++i) {
    const bool is_bhsd = shape_.input_layouts[i] == Layout::kBhsd;
    if (is_bhsd ? inputs.at(i).size() != 4 : inputs.at(i).size() < 3) {
      throw AttributeError(std::string(names[i]) + " has rank " + std::to_string(inputs[i].size()) +
                           ", its layout wants " + (is_bhsd ? "4" : "3 or more"));
    }
  }
  const std::int64_t batch = inputs[0][0], queries = length_of(inputs, 0);
  const std::int64_t keys = length_of(inputs, 1);
  for (std::size_t i = 1; i < 3; ++i) {
    require_shape(std::string("batch and length of ") + names[i],
                  {inputs[i][0], length_of(inputs, i)}, {batch, keys});
  }
  const std::int64_t heads = shape_.num_heads, dim = shape_.value_head_dim;
  const Dimensions wanted =
      shape_.output_rank == 3                 ? Dimensions{batch, queries, product(heads, dim)}
      : shape_.output_layout == Layout::kBshd ? Dimensions{batch, queries, heads, dim}
                                              : Dimensions{batch, heads, queries, dim};
  require_shape("the output", outputs.at(0), wanted);
  const std::size_t table_inputs = shape_.table.empty() ? 0 : 3;
  if (shape_.has_sinks) require_shape("sinks", inputs[inputs.size() - table_inputs - 1], {heads});
  if (shape_.table.empty()) return;
  const std::int64_t groups =
      product(shape_.table[2] != 0 ? batch : 1, shape_.table[3] != 0 ? heads : 1);
  const auto tables = table_shapes(groups, queries, keys, shape_.table[0], shape_.table[1]);
  // The table is the last three inputs; kernels find their tiles by these shapes.
  for (std::size_t i = 0; i < table_inputs; ++i) {
    require_shape(kTableTensors[i], inputs[inputs.size() - table_inputs + i], tables[i]);
  }
}

std::int64_t MaskedAttention::length_of(const std::vector<Dimensions>& inputs,
                                        std::size_t input) const {
  return inputs[input][shape_.input_layouts[input] == Layout::kBhsd ? 2 : 1];
}

}  // namespace stof
