#include "trt/attributes.h"

#include <cstring>

namespace stof {

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr char kNextStep[] =
    "; the model and the plugin library are of different versions, or the model was damaged: run "
    "`stof-onnx optimize` of the library's version again";

const char* describe(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::kInt:
      return "one INT32 or INT64";
    case AttributeKind::kInts:
      return "INT32 or INT64 numbers";
    case AttributeKind::kFloat:
      return "one FLOAT32";
    case AttributeKind::kString:
      return "characters";
    case AttributeKind::kBytes:
      return "INT8 numbers";
  }
  return "";
}

PluginFieldType usual_type(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::kInt:
    case AttributeKind::kInts:
      return PluginFieldType::kINT32;
    case AttributeKind::kFloat:
      return PluginFieldType::kFLOAT32;
    case AttributeKind::kString:
      return PluginFieldType::kCHAR;
    case AttributeKind::kBytes:
      return PluginFieldType::kINT8;
  }
  return PluginFieldType::kUNKNOWN;
}

bool is_integer(PluginFieldType type) {
  return type == PluginFieldType::kINT32 || type == PluginFieldType::kINT64;
}

bool fits(const AttributeSpec& spec, const PluginField& field) {
  switch (spec.kind) {
    case AttributeKind::kInt:
      return is_integer(field.type) && field.length == 1;
    case AttributeKind::kInts:
      return is_integer(field.type) &&
             (field.length == spec.length || (spec.may_be_empty && field.length == 0));
    default:
      return field.type == usual_type(spec.kind) &&
             (spec.kind != AttributeKind::kFloat || field.length == 1);
  }
}

std::size_t element_size(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT64:
      return 8;
    case PluginFieldType::kINT32:
    case PluginFieldType::kFLOAT32:
      return 4;
    default:
      return 1;
  }
}

template <typename Number>
Number number_at(const std::vector<unsigned char>& data, std::size_t index) {
  Number number;
  std::memcpy(&number, data.data() + index * sizeof number, sizeof number);
  return number;
}

void mix(std::uint64_t& hash, const void* data, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3U;
  }
}

}  // namespace

std::vector<PluginField> describe_fields(const AttributeSpecs& specs) {
  std::vector<PluginField> fields;
  for (const AttributeSpec& spec : specs) {
    fields.emplace_back(spec.name, nullptr, usual_type(spec.kind), spec.length);
  }
  return fields;
}

Attributes::Attributes(const AttributeSpecs& specs, const nvinfer1::PluginFieldCollection* fields) {
  if (fields == nullptr || fields->nbFields < 0 ||
      (fields->nbFields > 0 && fields->fields == nullptr)) {
    throw AttributeError("no attributes were passed; wanted those of docs/operators.md");
  }
  for (std::int32_t i = 0; i < fields->nbFields; ++i) add(specs, fields->fields[i]);
}

void Attributes::add(const AttributeSpecs& specs, const PluginField& field) {
  const std::string name = field.name == nullptr ? "" : field.name;
  if (name == "plugin_version" || name == "plugin_namespace") return;
  const AttributeSpec* wanted = nullptr;
  for (const AttributeSpec& spec : specs) {
    if (name == spec.name) wanted = &spec;
  }
  if (wanted == nullptr) throw AttributeError("unknown attribute '" + name + "'" + kNextStep);
  if (find(name) != nullptr) throw AttributeError("attribute '" + name + "' was passed twice");
  if (!fits(*wanted, field) || field.length < 0 || (field.length > 0 && field.data == nullptr)) {
    throw AttributeError("attribute '" + name + "' has plugin field type " +
                         std::to_string(static_cast<int>(field.type)) + " and length " +
                         std::to_string(field.length) + "; wanted " + describe(wanted->kind) +
                         (wanted->kind == AttributeKind::kInts
                              ? ", " + std::to_string(wanted->length) + " of them"
                              : std::string()) +
                         kNextStep);
  }
  const auto* const bytes = static_cast<const unsigned char*>(field.data);
  const std::size_t size = static_cast<std::size_t>(field.length) * element_size(field.type);
  Value value{name, field.type, field.length, {}};
  if (size > 0) value.data.assign(bytes, bytes + size);
  values_.push_back(std::move(value));
}

const Attributes::Value* Attributes::find(const std::string& name) const {
  for (const Value& value : values_) {
    if (value.name == name) return &value;
  }
  return nullptr;
}

const Attributes::Value& Attributes::get(const std::string& name) const {
  const Value* const value = find(name);
  if (value == nullptr) throw AttributeError("attribute '" + name + "' is missing" + kNextStep);
  return *value;
}

bool Attributes::has(const std::string& name) const { return find(name) != nullptr; }

std::int64_t Attributes::integer(const std::string& name) const { return integers(name).at(0); }

std::vector<std::int64_t> Attributes::integers(const std::string& name) const {
  const Value& value = get(name);
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < static_cast<std::size_t>(value.length); ++i) {
    numbers.push_back(value.type == PluginFieldType::kINT64
                          ? number_at<std::int64_t>(value.data, i)
                          : number_at<std::int32_t>(value.data, i));
  }
  return numbers;
}

float Attributes::number(const std::string& name) const {
  return number_at<float>(get(name).data, 0);
}

std::string Attributes::text(const std::string& name) const {
  const Value& value = get(name);
  std::string result(value.data.begin(), value.data.end());
  while (!result.empty() && result.back() == '\0') result.pop_back();
  return result;
}

const std::vector<unsigned char>& Attributes::bytes(const std::string& name) const {
  return get(name).data;
}

std::vector<PluginField> Attributes::fields() const {
  std::vector<PluginField> fields;
  for (const Value& value : values_) {
    fields.emplace_back(value.name.c_str(), value.data.data(), value.type, value.length);
  }
  return fields;
}

std::uint64_t Attributes::hash() const {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const Value& value : values_) {
    mix(hash, value.name.c_str(), value.name.size() + 1);
    mix(hash, &value.type, sizeof value.type);
    mix(hash, &value.length, sizeof value.length);
    mix(hash, value.data.data(), value.data.size());
  }
  return hash;
}

}  // namespace stof
