// What StofMaskedAttention and StofMaskTable have in common: everything but their attributes and
// output shapes. Plan and attributes are read once and shared, never changed, by all clones of a
// plugin; the loaded kernels belong to one object.
#ifndef STOF_TRT_PLUGIN_BASE_H
#define STOF_TRT_PLUGIN_BASE_H

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "plan/plan.h"
#include "runtime/executor.h"
#include "trt/attributes.h"
#include "trt/tensorrt.h"

namespace stof {

inline constexpr char kPluginVersion[] = "1";
inline constexpr char kPluginNamespace[] = "stof";

// The one tactic: the plan has already been tuned, so that TensorRT has nothing to time. 0 is
// TensorRT's own default tactic and can't be advertised.
inline constexpr std::int32_t kTactic = 1;

// getWorkspaceSize has no way to fail; this size, which no GPU has, makes TensorRT stop instead of
// building an engine that would write beyond its workspace.
inline constexpr std::size_t kImpossibleWorkspace = std::size_t{1} << 62U;

// A node of the model, as created.
struct Node {
  // Reads the plan. Throws AttributeError or PlanError: no plan, a damaged one, one that was made
  // for another operator.
  Node(std::string operator_name, std::string node_name, Attributes node_attributes);

  std::string op;
  std::string name;  // of the layer, for messages
  Attributes attributes;
  std::shared_ptr<const Plan> plan;
  std::string timing_cache_id;
  std::string metadata;
};

// "node 'attention_3' (StofMaskedAttention)", or the operator alone for a node without a name.
std::string describe_node(const std::string& op, const std::string& name);

// Mask operands, the plan's inputs from `first` on, have types that a mask can come in: INT8 (for
// BOOL, which plugins can't take), INT32, INT64, FLOAT, HALF, BF16. Throws PlanError.
void check_operand_types(const Plan& plan, std::size_t first);

class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
 public:
  ~PluginBase() override;
  PluginBase(const PluginBase&) = delete;
  PluginBase& operator=(const PluginBase&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* clone() noexcept final;

  // IPluginV3OneCore
  const nvinfer1::AsciiChar* getPluginName() const noexcept final;
  const nvinfer1::AsciiChar* getPluginVersion() const noexcept final;
  const nvinfer1::AsciiChar* getPluginNamespace() const noexcept final;

  // IPluginV3OneBuild
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t nbInputs,
                               const nvinfer1::DynamicPluginTensorDesc* out,
                               std::int32_t nbOutputs) noexcept final;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, std::int32_t nbOutputs,
                                  const nvinfer1::DataType* inputTypes,
                                  std::int32_t nbInputs) const noexcept final;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t nbInputs,
                               const nvinfer1::DimsExprs* shapeInputs, std::int32_t nbShapeInputs,
                               nvinfer1::DimsExprs* outputs, std::int32_t nbOutputs,
                               nvinfer1::IExprBuilder& exprBuilder) noexcept final;
  bool supportsFormatCombination(std::int32_t pos, const nvinfer1::DynamicPluginTensorDesc* inOut,
                                 std::int32_t nbInputs, std::int32_t nbOutputs) noexcept final;
  std::int32_t getNbOutputs() const noexcept final;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t nbInputs,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t nbOutputs) const noexcept final;
  std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t nbTactics) noexcept final;
  std::int32_t getNbTactics() noexcept final;
  const char* getTimingCacheID() noexcept final;
  std::int32_t getFormatCombinationLimit() noexcept final;
  const char* getMetadataString() noexcept final;

  // IPluginV3OneRuntime
  std::int32_t setTactic(std::int32_t tactic) noexcept final;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t nbInputs,
                             const nvinfer1::PluginTensorDesc* out,
                             std::int32_t nbOutputs) noexcept final;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* inputDesc,
                       const nvinfer1::PluginTensorDesc* outputDesc, const void* const* inputs,
                       void* const* outputs, void* workspace, cudaStream_t stream) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept final;

 protected:
  explicit PluginBase(std::shared_ptr<const Node> shared);

  const std::shared_ptr<const Node>& node() const { return node_; }

  // A plugin of the same node without the state of an execution context. May throw.
  virtual std::unique_ptr<PluginBase> copy() const = 0;

  // Writes the output shapes. Throws AttributeError for inputs that the attributes don't fit.
  virtual void write_output_shapes(const std::vector<nvinfer1::DimsExprs>& inputs,
                                   nvinfer1::DimsExprs* outputs,
                                   nvinfer1::IExprBuilder& builder) const = 0;

  // Throws AttributeError for shapes that don't fit each other, which a plan's checks, each on one
  // number, can't see: kernels rely on it that sizes agree.
  virtual void check_shapes(const std::vector<Dimensions>& inputs,
                            const std::vector<Dimensions>& outputs) const = 0;

 private:
  template <typename Result, typename Body>
  Result guarded(nvinfer1::ErrorCode code, Result failed, Body body) const noexcept;
  void report(nvinfer1::ErrorCode code, const char* what) const noexcept;
  void check_counts(std::int32_t inputs, std::int32_t outputs) const;
  bool type_fits(std::int32_t position, nvinfer1::DataType type) const;
  void set_recorder(nvinfer1::IErrorRecorder* recorder) noexcept;

  const std::shared_ptr<const Node> node_;
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection field_collection_;
  std::unique_ptr<Executor> executor_;  // of an attached plugin
  bool shapes_known_ = false;
  nvinfer1::IErrorRecorder* recorder_ = nullptr;  // of the execution context; we hold a reference
};

}  // namespace stof

#endif  // STOF_TRT_PLUGIN_BASE_H
