// The C interface of libstof_plugins.so for callers that don't have TensorRT: what the library is.
//
// Every function may be called from any thread, never throws, and needs neither a GPU nor a driver.
// tests/ and stof_onnx/plugin_library.py call it through dlopen.
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

// Version of the library, "major.minor.patch"; equal to that of the Python package it came with.
// The string lives as long as the library is loaded.
STOF_EXPORT const char* stof_version(void) STOF_NOEXCEPT;

// Number of TensorRT plugin creators in the library.
STOF_EXPORT int32_t stof_plugin_count(void) STOF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif  // STOF_HOST_H
