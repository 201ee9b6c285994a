// The part of stof_host.h about the library and its creators.
#include <stdexcept>
#include <string>

#include "host/host_plugin.h"
#include "host/last_error.h"
#include "plan/plan.h"
#include "runtime/driver.h"
#include "stof_host.h"
#include "trt/exports.h"

namespace stof {

nvinfer1::IPluginCreatorV3One& creator_at(std::int32_t index) {
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* const all = getCreators(count);
  if (index < 0 || index >= count) {
    throw std::out_of_range("creator " + std::to_string(index) + "; wanted 0 to " +
                            std::to_string(count - 1));
  }
  if (std::string(all[index]->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") {
    throw std::logic_error("creator " + std::to_string(index) + " isn't an IPluginCreatorV3One");
  }
  return *static_cast<nvinfer1::IPluginCreatorV3One*>(all[index]);
}

nvinfer1::IPluginCreatorV3One& creator_named(const std::string& name) {
  std::string known;
  for (std::int32_t i = 0; i < stof_plugin_count(); ++i) {
    nvinfer1::IPluginCreatorV3One& creator = creator_at(i);
    if (name == creator.getPluginName()) return creator;
    known += (i == 0 ? "" : ", ") + std::string(creator.getPluginName());
  }
  throw std::out_of_range("no plugin '" + name + "' in this library; it has " + known);
}

namespace {

const nvinfer1::PluginField& field_at(std::int32_t creator, std::int32_t field) {
  const nvinfer1::PluginFieldCollection* const fields = creator_at(creator).getFieldNames();
  if (field < 0 || field >= fields->nbFields) {
    throw std::out_of_range("field " + std::to_string(field) + "; wanted 0 to " +
                            std::to_string(fields->nbFields - 1));
  }
  return fields->fields[field];
}

}  // namespace

}  // namespace stof

using stof::call_number;
using stof::call_pointer;

extern "C" int32_t stof_set_driver_library(const char* path) noexcept {
  return call_number(__func__, [=] {
    if (path == nullptr) throw std::invalid_argument("no path of a driver library");
    stof::set_driver_library(path);
    return 0;
  });
}

extern "C" int32_t stof_check_plan(const void* data, int64_t size) noexcept {
  return call_number(__func__, [=] {
    if (size < 0 || (data == nullptr && size > 0)) throw std::invalid_argument("no plan");
    stof::read_plan(data, static_cast<std::size_t>(size));
    return 0;
  });
}

extern "C" int32_t stof_plugin_count(void) noexcept {
  int32_t count = 0;
  getCreators(count);
  return count;
}

extern "C" const char* stof_plugin_name(int32_t creator) noexcept {
  return call_pointer(__func__, [=] { return stof::creator_at(creator).getPluginName(); });
}

extern "C" const char* stof_plugin_version(int32_t creator) noexcept {
  return call_pointer(__func__, [=] { return stof::creator_at(creator).getPluginVersion(); });
}

extern "C" const char* stof_plugin_namespace(int32_t creator) noexcept {
  return call_pointer(__func__, [=] { return stof::creator_at(creator).getPluginNamespace(); });
}

extern "C" int32_t stof_plugin_field_count(int32_t creator) noexcept {
  return call_number(__func__, [=] { return stof::creator_at(creator).getFieldNames()->nbFields; });
}

extern "C" const char* stof_plugin_field_name(int32_t creator, int32_t field) noexcept {
  return call_pointer(__func__, [=] { return stof::field_at(creator, field).name; });
}

extern "C" int32_t stof_plugin_field_type(int32_t creator, int32_t field) noexcept {
  return call_number(__func__,
                     [=] { return static_cast<int32_t>(stof::field_at(creator, field).type); });
}
