// The part of stof_host.h about plugin objects: each function is the call that TensorRT makes.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "host/constant_expressions.h"
#include "host/host_plugin.h"
#include "host/last_error.h"
#include "stof_host.h"
#include "trt/plugin_base.h"

namespace stof {

namespace {

// The context of stof_plugin_attach: it offers nothing.
class NoResources final : public nvinfer1::IPluginResourceContext {
 public:
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

const stof_plugin& existing(const stof_plugin* plugin) {
  if (plugin == nullptr) throw std::invalid_argument("no plugin");
  return *plugin;
}

// nullptr, with what the plugin logged as the error, if the plugin returned none.
stof_plugin* wrap(nvinfer1::IPluginV3* plugin) {
  return plugin == nullptr ? nullptr : new stof_plugin(plugin);
}

// TensorRT takes any value but 0 for a failure, C callers a negative one.
std::int32_t to_status(std::int32_t returned) { return returned == 0 ? 0 : -1; }

std::vector<nvinfer1::DimsExprs> to_expressions(const stof_tensor* tensors, std::int32_t count,
                                                nvinfer1::IExprBuilder& builder) {
  std::vector<nvinfer1::DimsExprs> shapes;
  for (const nvinfer1::PluginTensorDesc& desc : to_descs(tensors, count)) {
    nvinfer1::DimsExprs shape{};
    shape.nbDims = desc.dims.nbDims;
    for (std::int32_t i = 0; i < shape.nbDims; ++i) shape.d[i] = builder.constant(desc.dims.d[i]);
    shapes.push_back(shape);
  }
  return shapes;
}

// Type and format of the outputs stay as they are.
void read_shape(const nvinfer1::DimsExprs& shape, stof_tensor& tensor) {
  tensor.rank = shape.nbDims;
  for (std::int32_t i = 0; i < shape.nbDims; ++i) tensor.dims[i] = shape.d[i]->getConstantValue();
}

}  // namespace

}  // namespace stof

using stof::call_number;
using stof::call_pointer;
using stof::existing;

extern "C" stof_plugin* stof_plugin_create(const char* name, const stof_field* fields,
                                           int32_t field_count, int32_t phase) noexcept {
  return call_pointer(__func__, [=] {
    if (name == nullptr || (fields == nullptr && field_count > 0) || phase < 0 || phase > 1) {
      throw std::invalid_argument("no plugin name, no fields, or a phase other than 0 and 1");
    }
    std::vector<nvinfer1::PluginField> list;
    for (int32_t i = 0; i < field_count; ++i) {
      list.emplace_back(fields[i].name, fields[i].data,
                        static_cast<nvinfer1::PluginFieldType>(fields[i].type), fields[i].length);
    }
    const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(list.size()),
                                                     list.data()};
    return stof::wrap(stof::creator_named(name).createPlugin(
        "", &collection, static_cast<nvinfer1::TensorRTPhase>(phase)));
  });
}

extern "C" stof_plugin* stof_plugin_clone(const stof_plugin* plugin) noexcept {
  return call_pointer(__func__, [=] { return stof::wrap(existing(plugin).plugin->clone()); });
}

extern "C" void stof_plugin_destroy(stof_plugin* plugin) noexcept { delete plugin; }

extern "C" int32_t stof_plugin_serialize(stof_plugin* plugin, const stof_field** fields) noexcept {
  return call_number(__func__, [=] {
    const nvinfer1::PluginFieldCollection* const collection =
        existing(plugin).runtime->getFieldsToSerialize();
    if (collection == nullptr || fields == nullptr) return -1;
    plugin->serialized.clear();
    for (int32_t i = 0; i < collection->nbFields; ++i) {
      const nvinfer1::PluginField& field = collection->fields[i];
      plugin->serialized.push_back(
          {field.name, field.data, static_cast<int32_t>(field.type), field.length});
    }
    *fields = plugin->serialized.data();
    return collection->nbFields;
  });
}

extern "C" const char* stof_plugin_metadata(const stof_plugin* plugin) noexcept {
  return call_pointer(__func__, [=] { return existing(plugin).build->getMetadataString(); });
}

extern "C" const char* stof_plugin_timing_cache_id(const stof_plugin* plugin) noexcept {
  return call_pointer(__func__, [=] { return existing(plugin).build->getTimingCacheID(); });
}

extern "C" int32_t stof_plugin_output_count(const stof_plugin* plugin) noexcept {
  return call_number(__func__, [=] { return existing(plugin).build->getNbOutputs(); });
}

extern "C" int32_t stof_plugin_output_types(const stof_plugin* plugin, const int32_t* input_types,
                                            int32_t input_count, int32_t* output_types) noexcept {
  return call_number(__func__, [=] {
    if (input_types == nullptr || output_types == nullptr || input_count < 0) {
      throw std::invalid_argument("no types");
    }
    const nvinfer1::IPluginV3OneBuild& build = *existing(plugin).build;
    std::vector<nvinfer1::DataType> inputs;
    for (int32_t i = 0; i < input_count; ++i) {
      inputs.push_back(static_cast<nvinfer1::DataType>(input_types[i]));
    }
    std::vector<nvinfer1::DataType> outputs(static_cast<std::size_t>(build.getNbOutputs()));
    if (build.getOutputDataTypes(outputs.data(), build.getNbOutputs(), inputs.data(),
                                 input_count) != 0) {
      return -1;
    }
    std::transform(outputs.begin(), outputs.end(), output_types,
                   [](nvinfer1::DataType type) { return static_cast<int32_t>(type); });
    return 0;
  });
}

extern "C" int32_t stof_plugin_output_shapes(const stof_plugin* plugin, const stof_tensor* inputs,
                                             int32_t input_count, stof_tensor* outputs) noexcept {
  return call_number(__func__, [=] {
    if (outputs == nullptr) throw std::invalid_argument("no place for the output shapes");
    nvinfer1::IPluginV3OneBuild& build = *existing(plugin).build;
    stof::ConstantExpressionBuilder builder;
    const std::vector<nvinfer1::DimsExprs> given =
        stof::to_expressions(inputs, input_count, builder);
    std::vector<nvinfer1::DimsExprs> shapes(static_cast<std::size_t>(build.getNbOutputs()));
    if (build.getOutputShapes(given.data(), input_count, nullptr, 0, shapes.data(),
                              build.getNbOutputs(), builder) != 0) {
      return -1;
    }
    for (std::size_t i = 0; i < shapes.size(); ++i) stof::read_shape(shapes[i], outputs[i]);
    return 0;
  });
}

extern "C" int32_t stof_plugin_supports_format(stof_plugin* plugin, int32_t position,
                                               const stof_tensor* tensors, int32_t input_count,
                                               int32_t output_count) noexcept {
  return call_number(__func__, [=] {
    const int32_t count = stof::tensor_count(input_count, output_count);
    const auto descs = stof::to_dynamic_descs(tensors, tensors, tensors, tensors, count);
    return existing(plugin).build->supportsFormatCombination(position, descs.data(), input_count,
                                                             output_count)
               ? 1
               : 0;
  });
}

extern "C" int32_t stof_plugin_configure(stof_plugin* plugin, const stof_tensor* tensors,
                                         const stof_tensor* min, const stof_tensor* opt,
                                         const stof_tensor* max, int32_t input_count,
                                         int32_t output_count) noexcept {
  return call_number(__func__, [=] {
    const int32_t count = stof::tensor_count(input_count, output_count);
    const auto descs = stof::to_dynamic_descs(tensors, min, opt, max, count);
    return stof::to_status(existing(plugin).build->configurePlugin(
        descs.data(), input_count, descs.data() + input_count, output_count));
  });
}

extern "C" int64_t stof_plugin_workspace_size(const stof_plugin* plugin, const stof_tensor* max,
                                              int32_t input_count, int32_t output_count) noexcept {
  return call_number<int64_t>(__func__, [=]() -> int64_t {
    const int32_t count = stof::tensor_count(input_count, output_count);
    const auto descs = stof::to_dynamic_descs(max, max, max, max, count);
    const std::size_t size = existing(plugin).build->getWorkspaceSize(
        descs.data(), input_count, descs.data() + input_count, output_count);
    return size >= stof::kImpossibleWorkspace ? -1 : static_cast<int64_t>(size);
  });
}

extern "C" int32_t stof_plugin_tactics(stof_plugin* plugin, int32_t* tactics,
                                       int32_t capacity) noexcept {
  return call_number(__func__, [=] {
    nvinfer1::IPluginV3OneBuild& build = *existing(plugin).build;
    std::vector<int32_t> all(static_cast<std::size_t>(build.getNbTactics()));
    const auto count = static_cast<int32_t>(all.size());
    if (build.getValidTactics(all.data(), count) != 0) return -1;
    if (capacity < 0 || (tactics == nullptr && capacity > 0)) {
      throw std::invalid_argument("no place for the tactics");
    }
    std::copy_n(all.begin(), std::min(count, capacity), tactics);
    return count;
  });
}

extern "C" int32_t stof_plugin_set_tactic(stof_plugin* plugin, int32_t tactic) noexcept {
  return call_number(__func__,
                     [=] { return stof::to_status(existing(plugin).runtime->setTactic(tactic)); });
}

extern "C" stof_plugin* stof_plugin_attach(stof_plugin* plugin) noexcept {
  return call_pointer(__func__, [=] {
    stof::NoResources context;
    return stof::wrap(existing(plugin).runtime->attachToContext(&context));
  });
}

extern "C" int32_t stof_plugin_on_shape_change(stof_plugin* plugin, const stof_tensor* tensors,
                                               int32_t input_count, int32_t output_count) noexcept {
  return call_number(__func__, [=] {
    const auto descs = stof::to_descs(tensors, stof::tensor_count(input_count, output_count));
    return stof::to_status(existing(plugin).runtime->onShapeChange(
        descs.data(), input_count, descs.data() + input_count, output_count));
  });
}

extern "C" int32_t stof_plugin_enqueue(stof_plugin* plugin, const stof_tensor* tensors,
                                       int32_t input_count, int32_t output_count,
                                       const void* const* inputs, void* const* outputs,
                                       void* workspace, void* stream) noexcept {
  return call_number(__func__, [=] {
    const auto descs = stof::to_descs(tensors, stof::tensor_count(input_count, output_count));
    return stof::to_status(
        existing(plugin).runtime->enqueue(descs.data(), descs.data() + input_count, inputs, outputs,
                                          workspace, static_cast<cudaStream_t>(stream)));
  });
}
