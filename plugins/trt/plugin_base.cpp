#include "trt/plugin_base.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "runtime/driver.h"
#include "trt/log.h"

namespace stof {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::ErrorCode;
using nvinfer1::PluginTensorDesc;

std::shared_ptr<const Plan> read_node_plan(const std::string& op, const Attributes& attributes) {
  if (!attributes.has("plan")) {
    throw AttributeError(
        "it has no `plan` attribute, so there is no kernel to run; run `stof-onnx optimize "
        "--target sm_90` (or the GPU at hand) to compile one, or `stof-onnx expand` to run the "
        "model without the plugin");
  }
  const std::vector<unsigned char>& bytes = attributes.bytes("plan");
  auto plan = std::make_shared<const Plan>(read_plan(bytes.data(), bytes.size()));
  if (plan->op != op) {
    throw PlanError("its plan was made for " + plan->op +
                    "; run `stof-onnx optimize` on the original model again");
  }
  return plan;
}

std::string hexadecimal(std::uint64_t number) {
  std::string text(16, '0');
  for (std::size_t i = 0; i < text.size(); ++i) {
    text[text.size() - 1 - i] = "0123456789abcdef"[number >> (4 * i) & 15U];
  }
  return text;
}

std::string describe_plan(const Plan& plan) {
  std::string text = plan.op + " by " + plan.producer + " for ";
  for (const Variant& variant : plan.variants) {
    if (&variant != &plan.variants.front()) text += ", ";
    text += variant.target;
    for (const Bucket& bucket : variant.buckets) text += ' ' + bucket.tactic;
  }
  return text;
}

Dimensions to_dimensions(const Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > Dims::MAX_DIMS ||
      std::any_of(dims.d, dims.d + dims.nbDims, [](std::int64_t size) { return size < 0; })) {
    throw PlanError("a tensor's shape isn't known; wanted sizes of 0 or more");
  }
  return Dimensions(dims.d, dims.d + dims.nbDims);
}

std::vector<Dimensions> shapes_of(const PluginTensorDesc* tensors, std::int32_t count) {
  std::vector<Dimensions> shapes;
  for (std::int32_t i = 0; i < count; ++i) shapes.push_back(to_dimensions(tensors[i].dims));
  return shapes;
}

std::vector<Dimensions> largest_shapes_of(const DynamicPluginTensorDesc* tensors,
                                          std::int32_t count) {
  std::vector<Dimensions> shapes;
  for (std::int32_t i = 0; i < count; ++i) shapes.push_back(to_dimensions(tensors[i].max));
  return shapes;
}

// Compute capability of the GPU, if there is one.
std::optional<Capability> find_capability() {
  try {
    return current_capability();
  } catch (const DriverError&) {
    return std::nullopt;
  }
}

}  // namespace

std::string describe_node(const std::string& op, const std::string& name) {
  return name.empty() ? op : "node '" + name + "' (" + op + ")";
}

void check_operand_types(const Plan& plan, std::size_t first) {
  constexpr DataType kAllowed[] = {DataType::kINT8,  DataType::kINT32, DataType::kINT64,
                                   DataType::kFLOAT, DataType::kHALF,  DataType::kBF16};
  for (std::size_t i = first; i < plan.inputs; ++i) {
    const std::uint32_t type = plan.types.at(i);
    if (std::none_of(std::begin(kAllowed), std::end(kAllowed), [type](DataType allowed) {
          return static_cast<std::uint32_t>(allowed) == type;
        })) {
      throw PlanError("its plan has type " + std::to_string(type) + " for mask operand " +
                      std::to_string(i) +
                      ", which plugins can't take (nvinfer1::DataType); run `stof-onnx optimize` "
                      "again");
    }
  }
}

Node::Node(std::string operator_name, std::string node_name, Attributes node_attributes)
    : op(std::move(operator_name)),
      name(std::move(node_name)),
      attributes(std::move(node_attributes)),
      plan(read_node_plan(op, attributes)),
      timing_cache_id(hexadecimal(attributes.hash())),
      metadata(describe_plan(*plan)) {}

PluginBase::PluginBase(std::shared_ptr<const Node> shared)
    : node_(std::move(shared)),
      fields_(node_->attributes.fields()),
      field_collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

PluginBase::~PluginBase() { set_recorder(nullptr); }

void PluginBase::set_recorder(nvinfer1::IErrorRecorder* recorder) noexcept {
  if (recorder != nullptr) recorder->incRefCount();
  if (recorder_ != nullptr) recorder_->decRefCount();
  recorder_ = recorder;
}

void PluginBase::report(ErrorCode code, const char* what) const noexcept {
  try {
    const std::string message = describe_node(node_->op, node_->name) + ": " + what;
    log(Severity::kError, message);
    if (recorder_ != nullptr) recorder_->reportError(code, message.c_str());
  } catch (...) {
    log(Severity::kError, node_->op);  // out of memory: the caller still returns its failure
  }
}

// Runs the body of a function that must not throw; a failure is reported and gives `failed`.
template <typename Result, typename Body>
Result PluginBase::guarded(ErrorCode code, Result failed, Body body) const noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    report(code, error.what());
  } catch (...) {
    report(ErrorCode::kINTERNAL_ERROR, "unknown error");
  }
  return failed;
}

// ---- IPluginV3 --------------------------------------------------------------------------------

nvinfer1::IPluginCapability* PluginBase::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PluginBase::clone() noexcept {
  return guarded(ErrorCode::kFAILED_ALLOCATION, static_cast<nvinfer1::IPluginV3*>(nullptr),
                 [this]() -> nvinfer1::IPluginV3* { return copy().release(); });
}

// ---- IPluginV3OneCore -------------------------------------------------------------------------

const nvinfer1::AsciiChar* PluginBase::getPluginName() const noexcept { return node_->op.c_str(); }

const nvinfer1::AsciiChar* PluginBase::getPluginVersion() const noexcept { return kPluginVersion; }

const nvinfer1::AsciiChar* PluginBase::getPluginNamespace() const noexcept {
  return kPluginNamespace;
}

// ---- IPluginV3OneBuild ------------------------------------------------------------------------

void PluginBase::check_counts(std::int32_t inputs, std::int32_t outputs) const {
  const Plan& plan = *node_->plan;
  if (inputs != static_cast<std::int64_t>(plan.inputs) ||
      outputs != static_cast<std::int64_t>(plan.outputs)) {
    throw PlanError("it has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                    " outputs, its plan was made for " + std::to_string(plan.inputs) + " and " +
                    std::to_string(plan.outputs) + "; run `stof-onnx optimize` again");
  }
}

bool PluginBase::type_fits(std::int32_t position, DataType type) const {
  return static_cast<std::int64_t>(type) ==
         static_cast<std::int64_t>(node_->plan->types.at(static_cast<std::size_t>(position)));
}

std::int32_t PluginBase::configurePlugin(const DynamicPluginTensorDesc*, std::int32_t nbInputs,
                                         const DynamicPluginTensorDesc*,
                                         std::int32_t nbOutputs) noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, -1, [=] {
    check_counts(nbInputs, nbOutputs);
    return 0;
  });
}

std::int32_t PluginBase::getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs,
                                            const DataType* inputTypes,
                                            std::int32_t nbInputs) const noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, -1, [=] {
    check_counts(nbInputs, nbOutputs);
    const std::vector<std::uint32_t>& types = node_->plan->types;
    for (std::int32_t i = 0; i < nbInputs; ++i) {
      if (type_fits(i, inputTypes[i])) continue;
      throw PlanError("input " + std::to_string(i) + " has type " +
                      std::to_string(static_cast<int>(inputTypes[i])) +
                      ", its plan was made for type " +
                      std::to_string(types.at(static_cast<std::size_t>(i))) +
                      " (nvinfer1::DataType); run `stof-onnx optimize` again");
    }
    for (std::int32_t i = 0; i < nbOutputs; ++i) {
      outputTypes[i] = static_cast<DataType>(types.at(static_cast<std::size_t>(nbInputs + i)));
    }
    return 0;
  });
}

std::int32_t PluginBase::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t nbInputs,
                                         const nvinfer1::DimsExprs*, std::int32_t,
                                         nvinfer1::DimsExprs* outputs, std::int32_t nbOutputs,
                                         nvinfer1::IExprBuilder& exprBuilder) noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, -1, [=, &exprBuilder] {
    check_counts(nbInputs, nbOutputs);
    write_output_shapes({inputs, inputs + nbInputs}, outputs, exprBuilder);
    return 0;
  });
}

// Asks about one position at a time and reads that position only.
bool PluginBase::supportsFormatCombination(std::int32_t pos, const DynamicPluginTensorDesc* inOut,
                                           std::int32_t nbInputs, std::int32_t nbOutputs) noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, false, [=] {
    check_counts(nbInputs, nbOutputs);
    if (pos < 0 || pos >= nbInputs + nbOutputs) return false;
    const PluginTensorDesc& tensor = inOut[pos].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && type_fits(pos, tensor.type);
  });
}

std::int32_t PluginBase::getNbOutputs() const noexcept {
  return static_cast<std::int32_t>(node_->plan->outputs);
}

std::size_t PluginBase::getWorkspaceSize(const DynamicPluginTensorDesc* inputs,
                                         std::int32_t nbInputs,
                                         const DynamicPluginTensorDesc* outputs,
                                         std::int32_t nbOutputs) const noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, kImpossibleWorkspace, [=] {
    check_counts(nbInputs, nbOutputs);
    return workspace_size(*node_->plan, largest_shapes_of(inputs, nbInputs),
                          largest_shapes_of(outputs, nbOutputs));
  });
}

std::int32_t PluginBase::getValidTactics(std::int32_t* tactics, std::int32_t nbTactics) noexcept {
  return guarded(ErrorCode::kINVALID_CONFIG, -1, [=] {
    const Plan& plan = *node_->plan;
    const std::optional<Capability> gpu = find_capability();
    if (gpu && find_variant(plan, gpu->major, gpu->minor) == nullptr) {
      throw PlanError("the GPU has compute capability " + std::to_string(gpu->major) + '.' +
                      std::to_string(gpu->minor) + ", its plan was made for " +
                      describe_targets(plan) +
                      "; run `stof-onnx optimize` with a --target for this GPU");
    }
    if (nbTactics > 0) tactics[0] = kTactic;
    return 0;
  });
}

std::int32_t PluginBase::getNbTactics() noexcept { return 1; }

const char* PluginBase::getTimingCacheID() noexcept { return node_->timing_cache_id.c_str(); }

std::int32_t PluginBase::getFormatCombinationLimit() noexcept { return 1; }

const char* PluginBase::getMetadataString() noexcept { return node_->metadata.c_str(); }

// ---- IPluginV3OneRuntime ----------------------------------------------------------------------

std::int32_t PluginBase::setTactic(std::int32_t tactic) noexcept {
  return guarded(ErrorCode::kINVALID_ARGUMENT, -1, [=] {
    if (tactic != kTactic) {
      throw PlanError("tactic " + std::to_string(tactic) + " was chosen, " +
                      std::to_string(kTactic) +
                      " is the only one; build the engine again with this plugin library");
    }
    return 0;
  });
}

std::int32_t PluginBase::onShapeChange(const PluginTensorDesc* in, std::int32_t nbInputs,
                                       const PluginTensorDesc* out,
                                       std::int32_t nbOutputs) noexcept {
  return guarded(ErrorCode::kINVALID_ARGUMENT, -1, [=] {
    shapes_known_ = false;
    check_counts(nbInputs, nbOutputs);
    // The builder also prepares plugins that it has not attached to a context.
    if (executor_ == nullptr) executor_ = std::make_unique<Executor>(node_->plan);
    const std::vector<Dimensions> inputs = shapes_of(in, nbInputs);
    const std::vector<Dimensions> outputs = shapes_of(out, nbOutputs);
    check_shapes(inputs, outputs);
    executor_->set_shapes(inputs, outputs);
    shapes_known_ = true;
    log(Severity::kVerbose, describe_node(node_->op, node_->name) + ": " + executor_->target() +
                                ", " + executor_->tactic());
    return 0;
  });
}

std::int32_t PluginBase::enqueue(const PluginTensorDesc*, const PluginTensorDesc*,
                                 const void* const* inputs, void* const* outputs, void* workspace,
                                 cudaStream_t stream) noexcept {
  return guarded(ErrorCode::kFAILED_EXECUTION, -1, [=] {
    if (!shapes_known_) throw PlanError("enqueue was called before a successful onShapeChange");
    if (workspace == nullptr && executor_->workspace_size() > 0) {
      throw PlanError("enqueue got no workspace, wanted " +
                      std::to_string(executor_->workspace_size()) + " bytes");
    }
    executor_->enqueue(inputs, outputs, workspace, stream);
    return 0;
  });
}

nvinfer1::IPluginV3* PluginBase::attachToContext(
    nvinfer1::IPluginResourceContext* context) noexcept {
  nvinfer1::IErrorRecorder* const recorder =
      context == nullptr ? nullptr : context->getErrorRecorder();
  return guarded(ErrorCode::kFAILED_INITIALIZATION, static_cast<nvinfer1::IPluginV3*>(nullptr),
                 [this, recorder]() -> nvinfer1::IPluginV3* {
                   std::unique_ptr<PluginBase> attached = copy();
                   attached->set_recorder(recorder);
                   // Reports by its own, which has the context's recorder.
                   const bool loaded =
                       attached->guarded(ErrorCode::kFAILED_INITIALIZATION, false, [&attached] {
                         attached->executor_ = std::make_unique<Executor>(attached->node_->plan);
                         return true;
                       });
                   return loaded ? attached.release() : nullptr;
                 });
}

const nvinfer1::PluginFieldCollection* PluginBase::getFieldsToSerialize() noexcept {
  return &field_collection_;
}

}  // namespace stof
