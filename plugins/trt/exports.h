// What IPluginRegistry::loadLibrary (trtexec --dynamicPlugins) looks for in libstof_plugins.so.
#ifndef STOF_TRT_EXPORTS_H
#define STOF_TRT_EXPORTS_H

#include <cstdint>

#include "trt/tensorrt.h"

#define STOF_TRT_EXPORT __attribute__((visibility("default")))

// The creators; count receives their number. nullptr and 0 if memory ran out.
extern "C" STOF_TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) noexcept;

// Takes an nvinfer1::ILoggerFinder, whose layout is that of the TensorRT that calls.
extern "C" STOF_TRT_EXPORT void setLoggerFinder(void* finder) noexcept;

#endif  // STOF_TRT_EXPORTS_H
