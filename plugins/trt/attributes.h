// The attributes of a stof node as TensorRT hands them over (docs/operators.md), checked and kept
// as they came, so that an engine gets back exactly what the ONNX file held.
#ifndef STOF_TRT_ATTRIBUTES_H
#define STOF_TRT_ATTRIBUTES_H

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "trt/tensorrt.h"

namespace stof {

// An attribute is missing or wrong; what() says what came, what was wanted and what to do.
class AttributeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// ONNX's attribute types, and what TensorRT's importer makes of them:
// kInt INT, kInts INTS: kINT32 (or kINT64); kFloat FLOAT: kFLOAT32; kString STRING: kCHAR, often
// with a NUL at the end; kBytes TENSOR of INT8: kINT8.
enum class AttributeKind { kInt, kInts, kFloat, kString, kBytes };

struct AttributeSpec {
  const char* name;
  AttributeKind kind;
  std::int32_t length = 1;    // of kInts
  bool may_be_empty = false;  // of kInts: no values at all mean the same as no attribute
};

using AttributeSpecs = std::vector<AttributeSpec>;

// What a creator's getFieldNames lists; refers to the names in specs.
std::vector<nvinfer1::PluginField> describe_fields(const AttributeSpecs& specs);

// Immutable.
class Attributes {
 public:
  // Copies the fields. Throws AttributeError for unknown names, names given twice, wrong types and
  // lengths; a missing attribute is an error when it is asked for. plugin_version and
  // plugin_namespace, by which TensorRT found the creator, are left out.
  Attributes(const AttributeSpecs& specs, const nvinfer1::PluginFieldCollection* fields);

  bool has(const std::string& name) const;

  // Throw AttributeError if there is none of that name.
  std::int64_t integer(const std::string& name) const;
  std::vector<std::int64_t> integers(const std::string& name) const;
  float number(const std::string& name) const;
  std::string text(const std::string& name) const;  // without NULs at its end
  const std::vector<unsigned char>& bytes(const std::string& name) const;

  // The attributes as fields, which point into this object.
  std::vector<nvinfer1::PluginField> fields() const;

  // 64 bits of hash (FNV-1a) of all names, types and values.
  std::uint64_t hash() const;

 private:
  struct Value {
    std::string name;
    nvinfer1::PluginFieldType type;
    std::int32_t length;
    std::vector<unsigned char> data;
  };

  void add(const AttributeSpecs& specs, const nvinfer1::PluginField& field);
  const Value* find(const std::string& name) const;
  const Value& get(const std::string& name) const;

  std::vector<Value> values_;
};

}  // namespace stof

#endif  // STOF_TRT_ATTRIBUTES_H
