#include "trt/exports.h"

#include <exception>
#include <vector>

#include "trt/creators.h"
#include "trt/log.h"
#include "trt/tensorrt_library.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) noexcept {
  count = 0;
  try {
    const auto& all = stof::creators();
    count = static_cast<std::int32_t>(all.size());
    return all.data();
  } catch (const std::exception& error) {
    stof::log(stof::Severity::kError, error.what());
    return nullptr;
  }
}

// Which TensorRT calls isn't said. Where two versions are in the process we can't know the finder's
// layout and don't use it; messages go to the error stream.
extern "C" void setLoggerFinder(void* finder) noexcept {
  try {
    int major = 0;
    for (const stof::TensorRtLibrary& library : stof::loaded_tensorrt()) {
      if (major != 0 && major != library.major) finder = nullptr;
      major = library.major;
    }
    stof::set_logger_finder(finder, major);
  } catch (const std::exception& error) {
    stof::log(stof::Severity::kWarning, error.what());
  }
}
