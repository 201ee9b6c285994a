// What only C++ can see of a plugin: the execution context's error recorder, the creator's answers
// to broken field collections, clones that outlive their original. The rest is tested through the
// C interface, in Python. Needs no GPU; where there is one, attaching fails all the same, because
// the plan is for a compute capability that doesn't exist.
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "plan_writer.h"
#include "trt/creators.h"
#include "trt/log.h"
#include "trt/plugin_base.h"

namespace stof {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using tests::Bytes;

class Recorder final : public nvinfer1::IErrorRecorder {
 public:
  std::int32_t getNbErrors() const noexcept override {
    return static_cast<std::int32_t>(errors.size());
  }
  nvinfer1::ErrorCode getErrorCode(std::int32_t) const noexcept override { return code; }
  ErrorDesc getErrorDesc(std::int32_t index) const noexcept override {
    return errors[static_cast<std::size_t>(index)].c_str();
  }
  bool hasOverflowed() const noexcept override { return false; }
  void clear() noexcept override { errors.clear(); }
  bool reportError(nvinfer1::ErrorCode val, ErrorDesc desc) noexcept override {
    code = val;
    errors.emplace_back(desc);
    return true;
  }
  RefCount incRefCount() noexcept override { return ++references; }
  RefCount decRefCount() noexcept override { return --references; }

  std::vector<std::string> errors;
  nvinfer1::ErrorCode code = nvinfer1::ErrorCode::kSUCCESS;
  int references = 0;
};

class Context final : public nvinfer1::IPluginResourceContext {
 public:
  explicit Context(nvinfer1::IErrorRecorder* recorder) : recorder_(recorder) {}
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return recorder_; }

 private:
  nvinfer1::IErrorRecorder* recorder_;
};

// A StofMaskTable of one operand [B, Sq] for a GPU that no driver knows.
Bytes table_plan() {
  Plan plan = tests::sample_plan();
  plan.op = "StofMaskTable";
  plan.outputs = 3;
  plan.types = {2, 2, 3, 3, 3};
  plan.variants.resize(1);
  plan.variants[0].target = "sm_999";
  plan.variants[0].major = 99;
  plan.variants[0].minor = 9;
  plan.variants[0].match = Match::kExact;
  return tests::write_plan(plan);
}

struct TableFields {
  Bytes plan = table_plan();
  std::string mask = "{}";
  std::int32_t heads = 4;
  std::vector<std::int32_t> axes = {0, 0, 0, 1, 1, 1};
  std::vector<std::int64_t> tile = {64, 128};
  std::vector<PluginField> fields = {
      {"mask", mask.data(), PluginFieldType::kCHAR, static_cast<std::int32_t>(mask.size())},
      {"num_heads", &heads, PluginFieldType::kINT32, 1},
      {"size_axes", axes.data(), PluginFieldType::kINT32, 6},
      {"tile", tile.data(), PluginFieldType::kINT64, 2},
      {"plan", plan.data(), PluginFieldType::kINT8, static_cast<std::int32_t>(plan.size())},
  };
};

std::unique_ptr<nvinfer1::IPluginV3> create(const std::vector<PluginField>& fields) {
  const nvinfer1::PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()),
                                                   fields.data()};
  auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators().at(1));
  return std::unique_ptr<nvinfer1::IPluginV3>(
      creator->createPlugin("table_1", &collection, nvinfer1::TensorRTPhase::kBUILD));
}

template <typename Interface>
Interface& capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
  return *static_cast<Interface*>(plugin.getCapabilityInterface(type));
}

void test_error_recorder() {
  const TableFields table;
  const auto plugin = create(table.fields);
  CHECK(plugin != nullptr);
  if (plugin == nullptr) return;
  auto& runtime =
      capability<nvinfer1::IPluginV3OneRuntime>(*plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
  Recorder recorder;
  Context context(&recorder);
  const LogCapture captured;
  CHECK(runtime.attachToContext(&context) == nullptr);
  CHECK(recorder.errors.size() == 1);
  CHECK(recorder.code == nvinfer1::ErrorCode::kFAILED_INITIALIZATION);
  CHECK(recorder.references == 0);  // the plugin that failed is gone, with its reference
  CHECK_CONTAINS(recorder.errors.at(0), "node 'table_1' (StofMaskTable)");
  CHECK(captured.text() == recorder.errors.at(0));
  CHECK(runtime.attachToContext(nullptr) == nullptr);
}

void test_clone_outlives_its_original() {
  const TableFields table;
  auto plugin = create(table.fields);
  std::unique_ptr<nvinfer1::IPluginV3> clone(plugin->clone());
  plugin.reset();
  const nvinfer1::PluginFieldCollection* const fields =
      capability<nvinfer1::IPluginV3OneRuntime>(*clone, nvinfer1::PluginCapabilityType::kRUNTIME)
          .getFieldsToSerialize();
  CHECK(fields->nbFields == static_cast<std::int32_t>(table.fields.size()));
  for (std::int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& came = table.fields[static_cast<std::size_t>(i)];
    const PluginField& kept = fields->fields[i];
    CHECK(std::string(kept.name) == came.name && kept.type == came.type);
    CHECK(kept.length == came.length && kept.data != came.data);
  }
}

void test_broken_collections() {
  auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators().at(1));
  const auto refuses = [creator](const nvinfer1::PluginFieldCollection* fields) {
    const LogCapture captured;
    const bool refused =
        creator->createPlugin(nullptr, fields, nvinfer1::TensorRTPhase::kRUNTIME) == nullptr;
    return refused ? captured.text() : std::string("not refused");
  };
  CHECK_CONTAINS(refuses(nullptr), "no attributes");
  nvinfer1::PluginFieldCollection collection{3, nullptr};
  CHECK_CONTAINS(refuses(&collection), "no attributes");
  collection.nbFields = -1;
  CHECK_CONTAINS(refuses(&collection), "no attributes");
  PluginField field(nullptr, nullptr, PluginFieldType::kINT8, 1);
  collection = {1, &field};
  CHECK_CONTAINS(refuses(&collection), "unknown attribute ''");
  field = PluginField("plan", nullptr, PluginFieldType::kINT8, 100);
  CHECK_CONTAINS(refuses(&collection), "attribute 'plan'");
  field.length = -1;
  CHECK_CONTAINS(refuses(&collection), "length -1");
}

}  // namespace
}  // namespace stof

int main() {
  stof::test_error_recorder();
  stof::test_clone_outlives_its_original();
  stof::test_broken_collections();
  return stof::tests::failures();
}
