// libstof_plugins_autoload.so: registers the plugins with TensorRT when it is loaded, for programs
// that load plugin libraries without asking them for creators (trtexec --staticPlugins, Polygraphy
// --plugins, Triton).
//
// It is linked with -z nodelete: the registry keeps pointers to the creators.
#include <exception>
#include <string>
#include <vector>

#include "abi/tensorrt_versions.h"
#include "trt/creators.h"
#include "trt/log.h"
#include "trt/plugin_base.h"
#include "trt/tensorrt_library.h"

namespace stof {

namespace {

template <typename Registry>
void register_creators(const TensorRtLibrary& library) {
  auto& registry = *static_cast<Registry*>(library.registry);
  for (nvinfer1::IPluginCreatorInterface* const creator : creators()) {
    const std::string name = static_cast<nvinfer1::IPluginCreatorV3One*>(creator)->getPluginName();
    // Another copy of ours, e.g. through --dynamicPlugins: the first one stays.
    if (registry.getCreator(name.c_str(), kPluginVersion, kPluginNamespace) != nullptr) continue;
    if (!registry.registerCreator(*creator, kPluginNamespace)) {
      log(Severity::kError, "TensorRT " + describe_version(library.version) +
                                " refused to register the plugin " + name);
    }
  }
}

void register_with(const TensorRtLibrary& library) {
  set_logger_source(library);
  if (library.major == 10) {
    register_creators<abi::v10::PluginRegistry>(library);
  } else if (library.major == 11) {
    register_creators<abi::v11::PluginRegistry>(library);
  } else {
    log(Severity::kError, "TensorRT " + describe_version(library.version) + " (" + library.path +
                              ") is loaded; these plugins know TensorRT 10 and 11");
  }
}

// Polygraphy loads plugins before it imports TensorRT: then the one that the dynamic linker finds
// is the one it will import, if there is one.
__attribute__((constructor)) void register_at_load_time() noexcept {
  try {
    std::vector<TensorRtLibrary> libraries = loaded_tensorrt();
    if (libraries.empty()) libraries = load_tensorrt();
    for (const TensorRtLibrary& library : libraries) register_with(library);
    if (libraries.empty()) {
      log(Severity::kError,
          "no TensorRT is loaded in this process, so no plugin was registered; load TensorRT "
          "before libstof_plugins_autoload.so (in Python: import tensorrt first), or put the "
          "directory of libnvinfer.so into LD_LIBRARY_PATH");
    }
  } catch (const std::exception& error) {
    log(Severity::kError, std::string("no plugin was registered: ") + error.what());
  }
}

}  // namespace

}  // namespace stof
