#include "trt/tensorrt_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace stof {

namespace {

// dlsym returns a data pointer; POSIX guarantees that its bits are the function's address.
template <typename Function>
Function find_function(void* library, const char* name) {
  void* const address = dlsym(library, name);
  Function function = nullptr;
  static_assert(sizeof function == sizeof address, "POSIX platforms only");
  std::memcpy(&function, &address, sizeof function);
  return function;
}

// Called by the dynamic linker under its lock, which dlopen takes too: only collects names.
int collect_path(dl_phdr_info* info, std::size_t, void* data) noexcept {
  try {
    const std::string path = info->dlpi_name;
    if (path.compare(path.rfind('/') + 1, 10, "libnvinfer") == 0) {
      static_cast<std::vector<std::string>*>(data)->push_back(path);
    }
  } catch (...) {
    return 1;  // out of memory: stop here
  }
  return 0;
}

void add_library(std::vector<TensorRtLibrary>& found, const std::string& path, void* handle) {
  const auto get_version = find_function<std::int32_t (*)()>(handle, "getInferLibVersion");
  const auto get_registry = find_function<void* (*)()>(handle, "getPluginRegistry");
  if (get_version == nullptr || get_registry == nullptr) return;
  TensorRtLibrary library;
  library.path = path;
  library.version = get_version();
  library.major = library.version / 10000;
  library.registry = get_registry();
  library.get_logger = find_function<void* (*)()>(handle, "getLogger");
  // libnvinfer_plugin finds the functions of the libnvinfer that it links to.
  const bool known = std::any_of(
      found.begin(), found.end(),
      [&library](const TensorRtLibrary& other) { return other.registry == library.registry; });
  if (!known && library.registry != nullptr) found.push_back(library);
}

void add_by_path(std::vector<TensorRtLibrary>& found, const std::string& path, int flags) {
  // Not closed again: the library has to outlive what it returned.
  void* const handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL | flags);
  if (handle != nullptr) add_library(found, path, handle);
}

}  // namespace

std::vector<TensorRtLibrary> loaded_tensorrt() {
  std::vector<std::string> paths;
  dl_iterate_phdr(collect_path, &paths);
  std::vector<TensorRtLibrary> found;
  for (const std::string& path : paths) add_by_path(found, path, RTLD_NOLOAD);
  add_library(found, "", RTLD_DEFAULT);
  return found;
}

std::vector<TensorRtLibrary> load_tensorrt() {
  std::vector<TensorRtLibrary> found;
  for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10"}) add_by_path(found, name, 0);
  return found;
}

std::string describe_version(int version) {
  return std::to_string(version / 10000) + '.' + std::to_string(version / 100 % 100) + '.' +
         std::to_string(version % 100);
}

}  // namespace stof
