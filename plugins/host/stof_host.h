// The C interface of libstof_plugins.so for callers that don't have TensorRT: creates, configures,
// serialises, clones and runs plugins in the order and by the calls that TensorRT uses, so that
// tests, the search and the runner execute the plugin itself.
//
// Every function may be called from any thread and never throws. One plugin object belongs to one
// thread at a time. Functions that return a pointer return NULL, the others that can fail a
// negative number, on failure; stof_last_error() of the same thread then says why. Only functions
// that say so need a GPU; they work on the calling thread's current CUDA context.
// stof_onnx/plugin_host.py calls this interface through dlopen.
#ifndef STOF_HOST_H
#define STOF_HOST_H

#include <stdint.h>

#if defined(__GNUC__)
#define STOF_EXPORT __attribute__((visibility("default")))
#else
#define STOF_EXPORT
#endif

#ifdef __cplusplus
#define STOF_NOEXCEPT noexcept
extern "C" {
#else
#define STOF_NOEXCEPT
#endif

// ---- the library ------------------------------------------------------------------------------

// Version of the library, "major.minor.patch"; equal to that of the Python package it came with.
// The string lives as long as the library is loaded.
STOF_EXPORT const char* stof_version(void) STOF_NOEXCEPT;

// What went wrong in this thread's last call that failed; "" if none did. Lives until the next one.
STOF_EXPORT const char* stof_last_error(void) STOF_NOEXCEPT;

// Use another library than libcuda.so.1 as the driver, e.g. one that records calls. 0, or negative
// if the driver is already in use.
STOF_EXPORT int32_t stof_set_driver_library(const char* path) STOF_NOEXCEPT;

// 0 if a plan (the content of a `plan` attribute) is sound.
STOF_EXPORT int32_t stof_check_plan(const void* data, int64_t size) STOF_NOEXCEPT;

// ---- plugin creators --------------------------------------------------------------------------

// Number of TensorRT plugin creators in the library. The functions below take 0 ... count - 1 and
// return NULL (or a negative number) beyond.
STOF_EXPORT int32_t stof_plugin_count(void) STOF_NOEXCEPT;
STOF_EXPORT const char* stof_plugin_name(int32_t creator) STOF_NOEXCEPT;
STOF_EXPORT const char* stof_plugin_version(int32_t creator) STOF_NOEXCEPT;
STOF_EXPORT const char* stof_plugin_namespace(int32_t creator) STOF_NOEXCEPT;

// The attributes that the creator asks for: count, and name and nvinfer1::PluginFieldType of each.
STOF_EXPORT int32_t stof_plugin_field_count(int32_t creator) STOF_NOEXCEPT;
STOF_EXPORT const char* stof_plugin_field_name(int32_t creator, int32_t field) STOF_NOEXCEPT;
STOF_EXPORT int32_t stof_plugin_field_type(int32_t creator, int32_t field) STOF_NOEXCEPT;

// ---- plugins ----------------------------------------------------------------------------------

typedef struct stof_plugin stof_plugin;

// One attribute: type is an nvinfer1::PluginFieldType, length counts elements. Strings are kCHAR,
// as TensorRT's ONNX importer passes them.
typedef struct stof_field {
  const char* name;
  const void* data;
  int32_t type;
  int32_t length;
} stof_field;

// Type (nvinfer1::DataType), format (nvinfer1::TensorFormat, 0 is linear) and shape of a tensor;
// -1 is a dimension that isn't known yet.
typedef struct stof_tensor {
  int32_t dtype;
  int32_t format;
  int32_t rank;
  int64_t dims[8];
} stof_tensor;

// Creates a plugin as the ONNX importer does (phase 0, build) or as a deserialised engine does
// (phase 1, run time), for a layer without a name. To be destroyed.
STOF_EXPORT stof_plugin* stof_plugin_create(const char* name, const stof_field* fields,
                                            int32_t field_count, int32_t phase) STOF_NOEXCEPT;
STOF_EXPORT stof_plugin* stof_plugin_clone(const stof_plugin* plugin) STOF_NOEXCEPT;
STOF_EXPORT void stof_plugin_destroy(stof_plugin* plugin) STOF_NOEXCEPT;

// The attributes that would be written into an engine. They belong to the plugin and live until its
// next stof_plugin_serialize or its end. Returns their number.
STOF_EXPORT int32_t stof_plugin_serialize(stof_plugin* plugin,
                                          const stof_field** fields) STOF_NOEXCEPT;

// getMetadataString and getTimingCacheID. The strings live as long as the plugin.
STOF_EXPORT const char* stof_plugin_metadata(const stof_plugin* plugin) STOF_NOEXCEPT;
STOF_EXPORT const char* stof_plugin_timing_cache_id(const stof_plugin* plugin) STOF_NOEXCEPT;

STOF_EXPORT int32_t stof_plugin_output_count(const stof_plugin* plugin) STOF_NOEXCEPT;
// Fills output_types with stof_plugin_output_count() values.
STOF_EXPORT int32_t stof_plugin_output_types(const stof_plugin* plugin, const int32_t* input_types,
                                             int32_t input_count,
                                             int32_t* output_types) STOF_NOEXCEPT;
// Fills rank and dims of the outputs, of which there are stof_plugin_output_count(), for inputs of
// known shape.
STOF_EXPORT int32_t stof_plugin_output_shapes(const stof_plugin* plugin, const stof_tensor* inputs,
                                              int32_t input_count,
                                              stof_tensor* outputs) STOF_NOEXCEPT;

// supportsFormatCombination: 1 if the tensor at `position` (inputs, then outputs) may have its type
// and format given those of the tensors before it, else 0.
STOF_EXPORT int32_t stof_plugin_supports_format(stof_plugin* plugin, int32_t position,
                                                const stof_tensor* tensors, int32_t input_count,
                                                int32_t output_count) STOF_NOEXCEPT;

// configurePlugin: tensors (inputs, then outputs) with -1 for dynamic dimensions, and the smallest,
// usual and largest shapes of each.
STOF_EXPORT int32_t stof_plugin_configure(stof_plugin* plugin, const stof_tensor* tensors,
                                          const stof_tensor* min, const stof_tensor* opt,
                                          const stof_tensor* max, int32_t input_count,
                                          int32_t output_count) STOF_NOEXCEPT;

// getWorkspaceSize for the largest shapes, in bytes.
STOF_EXPORT int64_t stof_plugin_workspace_size(const stof_plugin* plugin, const stof_tensor* max,
                                               int32_t input_count,
                                               int32_t output_count) STOF_NOEXCEPT;

// getValidTactics: writes up to `capacity` tactics and returns how many there are.
STOF_EXPORT int32_t stof_plugin_tactics(stof_plugin* plugin, int32_t* tactics,
                                        int32_t capacity) STOF_NOEXCEPT;
STOF_EXPORT int32_t stof_plugin_set_tactic(stof_plugin* plugin, int32_t tactic) STOF_NOEXCEPT;

// attachToContext: the clone that an execution context owns. Needs a GPU. To be destroyed.
STOF_EXPORT stof_plugin* stof_plugin_attach(stof_plugin* plugin) STOF_NOEXCEPT;

// onShapeChange, on an attached plugin. Needs a GPU.
STOF_EXPORT int32_t stof_plugin_on_shape_change(stof_plugin* plugin, const stof_tensor* tensors,
                                                int32_t input_count,
                                                int32_t output_count) STOF_NOEXCEPT;

// enqueue, on an attached plugin after stof_plugin_on_shape_change. Addresses are device pointers;
// stream is a CUstream. Needs a GPU.
STOF_EXPORT int32_t stof_plugin_enqueue(stof_plugin* plugin, const stof_tensor* tensors,
                                        int32_t input_count, int32_t output_count,
                                        const void* const* inputs, void* const* outputs,
                                        void* workspace, void* stream) STOF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif  // STOF_HOST_H
