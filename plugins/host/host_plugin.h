// What stof_plugin is, and how the C interface's records become TensorRT's.
#ifndef STOF_HOST_HOST_PLUGIN_H
#define STOF_HOST_HOST_PLUGIN_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "stof_host.h"
#include "trt/tensorrt.h"

// A plugin and its capabilities, which TensorRT asks for once.
struct stof_plugin {
  // Takes the plugin over. Throws std::runtime_error if a capability is missing.
  explicit stof_plugin(nvinfer1::IPluginV3* created);

  std::unique_ptr<nvinfer1::IPluginV3> plugin;
  nvinfer1::IPluginV3OneCore* core;
  nvinfer1::IPluginV3OneBuild* build;
  nvinfer1::IPluginV3OneRuntime* runtime;
  std::vector<stof_field> serialized;
};

namespace stof {

// Throw std::out_of_range, std::logic_error.
nvinfer1::IPluginCreatorV3One& creator_at(std::int32_t index);
nvinfer1::IPluginCreatorV3One& creator_named(const std::string& name);

// Throw std::invalid_argument for NULL and for ranks beyond 0 ... 8.
nvinfer1::PluginTensorDesc to_desc(const stof_tensor& tensor);
std::vector<nvinfer1::PluginTensorDesc> to_descs(const stof_tensor* tensors, std::int32_t count);
// Smallest, usual and largest shapes may be those of the tensors themselves.
std::vector<nvinfer1::DynamicPluginTensorDesc> to_dynamic_descs(const stof_tensor* tensors,
                                                                const stof_tensor* min,
                                                                const stof_tensor* opt,
                                                                const stof_tensor* max,
                                                                std::int32_t count);

// inputs + outputs; throws std::invalid_argument if a count is negative.
std::int32_t tensor_count(std::int32_t inputs, std::int32_t outputs);

}  // namespace stof

#endif  // STOF_HOST_HOST_PLUGIN_H
