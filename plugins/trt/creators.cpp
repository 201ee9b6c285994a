#include "trt/creators.h"

#include <exception>
#include <string>

#include "trt/attributes.h"
#include "trt/log.h"
#include "trt/mask_table.h"
#include "trt/masked_attention.h"

namespace stof {

namespace {

// Plugin has kName, attribute_specs() and a constructor from a node's name and Attributes.
template <typename Plugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator()
      : fields_(describe_fields(Plugin::attribute_specs())),
        field_collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

  // Needs no GPU, in either phase: parsing and deserialising happen on machines without one too.
  nvinfer1::IPluginV3* createPlugin(const nvinfer1::AsciiChar* name,
                                    const nvinfer1::PluginFieldCollection* fc,
                                    nvinfer1::TensorRTPhase) noexcept override {
    try {
      const std::string node_name = name == nullptr ? "" : name;
      try {
        return new Plugin(node_name, Attributes(Plugin::attribute_specs(), fc));
      } catch (const std::exception& error) {
        log(Severity::kError,
            "can't create " + describe_node(Plugin::kName, node_name) + ": " + error.what());
      }
    } catch (...) {
      log(Severity::kError, Plugin::kName);  // not even memory for a message
    }
    return nullptr;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    return &field_collection_;
  }

  const nvinfer1::AsciiChar* getPluginName() const noexcept override { return Plugin::kName; }

  const nvinfer1::AsciiChar* getPluginVersion() const noexcept override { return kPluginVersion; }

  const nvinfer1::AsciiChar* getPluginNamespace() const noexcept override {
    return kPluginNamespace;
  }

 private:
  const std::vector<nvinfer1::PluginField> fields_;
  const nvinfer1::PluginFieldCollection field_collection_;
};

}  // namespace

const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
  static Creator<MaskedAttention> masked_attention;
  static Creator<MaskTable> mask_table;
  static const std::vector<nvinfer1::IPluginCreatorInterface*> all = {&masked_attention,
                                                                      &mask_table};
  return all;
}

}  // namespace stof
