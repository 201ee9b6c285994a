// StofMaskTable: the block table of a run-time mask (docs/operators.md).
#ifndef STOF_TRT_MASK_TABLE_H
#define STOF_TRT_MASK_TABLE_H

#include <memory>
#include <string>
#include <vector>

#include "trt/plugin_base.h"

namespace stof {

class MaskTable final : public PluginBase {
 public:
  static constexpr char kName[] = "StofMaskTable";
  static const AttributeSpecs& attribute_specs();

  // Throws AttributeError or PlanError.
  MaskTable(const std::string& node_name, Attributes attributes);

 protected:
  std::unique_ptr<PluginBase> copy() const override;
  void write_output_shapes(const std::vector<nvinfer1::DimsExprs>& inputs,
                           nvinfer1::DimsExprs* outputs,
                           nvinfer1::IExprBuilder& builder) const override;
  void check_shapes(const std::vector<Dimensions>& inputs,
                    const std::vector<Dimensions>& outputs) const override;

 private:
  explicit MaskTable(std::shared_ptr<const Node> shared);

  const std::int64_t num_heads_;
  const std::vector<std::int64_t> size_axes_;  // (operand, axis) of B, of Sq, of Sk; operand -1: 1
  const std::vector<std::int64_t> tile_;       // queries, keys
};

}  // namespace stof

#endif  // STOF_TRT_MASK_TABLE_H
