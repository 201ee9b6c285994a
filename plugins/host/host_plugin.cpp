#include "host/host_plugin.h"

#include <cstring>
#include <limits>
#include <stdexcept>

namespace stof {

namespace {

// As TensorRT: ask the plugin for the interface and the interface for its kind.
template <typename Interface>
Interface* capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type,
                      const char* kind) {
  nvinfer1::IPluginCapability* const found = plugin.getCapabilityInterface(type);
  if (found == nullptr || std::strcmp(found->getInterfaceInfo().kind, kind) != 0) {
    throw std::runtime_error(std::string("the plugin has no capability ") + kind);
  }
  return static_cast<Interface*>(found);
}

}  // namespace

nvinfer1::PluginTensorDesc to_desc(const stof_tensor& tensor) {
  if (tensor.rank < 0 || tensor.rank > nvinfer1::Dims::MAX_DIMS) {
    throw std::invalid_argument("a tensor of rank " + std::to_string(tensor.rank) +
                                "; wanted 0 to 8");
  }
  nvinfer1::PluginTensorDesc desc{};
  desc.dims.nbDims = tensor.rank;
  for (std::int32_t i = 0; i < tensor.rank; ++i) desc.dims.d[i] = tensor.dims[i];
  desc.type = static_cast<nvinfer1::DataType>(tensor.dtype);
  desc.format = static_cast<nvinfer1::TensorFormat>(tensor.format);
  desc.scale = -1.0F;  // TensorRT's "none"
  return desc;
}

std::vector<nvinfer1::PluginTensorDesc> to_descs(const stof_tensor* tensors, std::int32_t count) {
  if (tensors == nullptr) throw std::invalid_argument("no tensors");
  std::vector<nvinfer1::PluginTensorDesc> descs;
  for (std::int32_t i = 0; i < count; ++i) descs.push_back(to_desc(tensors[i]));
  return descs;
}

std::vector<nvinfer1::DynamicPluginTensorDesc> to_dynamic_descs(const stof_tensor* tensors,
                                                                const stof_tensor* min,
                                                                const stof_tensor* opt,
                                                                const stof_tensor* max,
                                                                std::int32_t count) {
  if (tensors == nullptr || min == nullptr || opt == nullptr || max == nullptr) {
    throw std::invalid_argument("no tensors");
  }
  std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
  for (std::int32_t i = 0; i < count; ++i) {
    nvinfer1::DynamicPluginTensorDesc desc{};
    desc.desc = to_desc(tensors[i]);
    desc.min = to_desc(min[i]).dims;
    desc.opt = to_desc(opt[i]).dims;
    desc.max = to_desc(max[i]).dims;
    descs.push_back(desc);
  }
  return descs;
}

std::int32_t tensor_count(std::int32_t inputs, std::int32_t outputs) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
  if (inputs < 0 || outputs < 0 || inputs > kMost || outputs > kMost) {
    throw std::invalid_argument(std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                                " outputs");
  }
  return inputs + outputs;
}

}  // namespace stof

stof_plugin::stof_plugin(nvinfer1::IPluginV3* created)
    : plugin(created),
      core(stof::capability<nvinfer1::IPluginV3OneCore>(
          *created, nvinfer1::PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE")),
      build(stof::capability<nvinfer1::IPluginV3OneBuild>(
          *created, nvinfer1::PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD")),
      runtime(stof::capability<nvinfer1::IPluginV3OneRuntime>(
          *created, nvinfer1::PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME")) {}
