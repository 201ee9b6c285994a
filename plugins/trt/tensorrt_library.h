// Finds the TensorRT libraries of this process. We link to none of them: which one is there, and of
// which version, is known only at run time.
#ifndef STOF_TRT_TENSORRT_LIBRARY_H
#define STOF_TRT_TENSORRT_LIBRARY_H

#include <string>
#include <vector>

namespace stof {

// One TensorRT (full, lean or dispatch runtime). It stays loaded: ours holds what it returns.
struct TensorRtLibrary {
  std::string path;       // "" if linked into the program
  int version;            // 101601 is 10.16.1
  int major;              // 10
  void* registry;         // its nvinfer1::IPluginRegistry
  void* (*get_logger)();  // returns its nvinfer1::ILogger or nullptr; may be nullptr itself
};

// Those that are loaded, each registry once. TensorRT for RTX has no plugin layers and isn't one.
std::vector<TensorRtLibrary> loaded_tensorrt();

// Those among libnvinfer.so.10 and .11 that the dynamic linker finds; they are loaded then.
std::vector<TensorRtLibrary> load_tensorrt();

// "10.16.1"
std::string describe_version(int version);

}  // namespace stof

#endif  // STOF_TRT_TENSORRT_LIBRARY_H
