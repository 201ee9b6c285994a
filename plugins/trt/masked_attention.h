// StofMaskedAttention: attention under a mask (docs/operators.md).
#ifndef STOF_TRT_MASKED_ATTENTION_H
#define STOF_TRT_MASKED_ATTENTION_H

#include <memory>
#include <string>
#include <vector>

#include "trt/plugin_base.h"

namespace stof {

class MaskedAttention final : public PluginBase {
 public:
  static constexpr char kName[] = "StofMaskedAttention";
  static const AttributeSpecs& attribute_specs();

  // Throws AttributeError or PlanError.
  MaskedAttention(const std::string& node_name, Attributes attributes);

 protected:
  std::unique_ptr<PluginBase> copy() const override;
  void write_output_shapes(const std::vector<nvinfer1::DimsExprs>& inputs,
                           nvinfer1::DimsExprs* outputs,
                           nvinfer1::IExprBuilder& builder) const override;
  void check_shapes(const std::vector<Dimensions>& inputs,
                    const std::vector<Dimensions>& outputs) const override;

 private:
  enum class Layout { kBshd, kBhsd };

  // The part of the attributes that the output's shape depends on; [query, key, value] layouts.
  struct Shape {
    explicit Shape(const Attributes& attributes);

    std::int64_t num_heads;
    std::int64_t value_head_dim;
    Layout input_layouts[3];
    Layout output_layout;
    std::int64_t output_rank;
    // Whether the input behind the mask's operands holds a logit for each head.
    bool has_sinks;
    // Of the mask's table, empty without one: tile of queries, of keys, by batch, by head.
    std::vector<std::int64_t> table;
  };

  explicit MaskedAttention(std::shared_ptr<const Node> shared);

  // Queries of input 0, keys of 1 and 2.
  std::int64_t length_of(const std::vector<Dimensions>& inputs, std::size_t input) const;
  static Layout read_layout(const Attributes& attributes, const char* name);

  const Shape shape_;
};

}  // namespace stof

#endif  // STOF_TRT_MASKED_ATTENTION_H
