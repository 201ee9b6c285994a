// The interfaces of TensorRT whose layout differs between its major versions, for both: one library
// of ours serves TensorRT 10 and 11, so the choice is made at run time (trt/tensorrt_library.h) and
// these declarations are used even where NVIDIA's headers, which know one version, are.
//
// Functions that we don't call stand for their slots in the virtual table. These objects are
// TensorRT's: we neither create nor destroy them.
#ifndef STOF_ABI_TENSORRT_VERSIONS_H
#define STOF_ABI_TENSORRT_VERSIONS_H

#include <cstdint>

#include "trt/tensorrt.h"

namespace stof::abi {

// nvinfer1::ILogger::Severity, the same in both.
enum class Severity : std::int32_t {
  kInternalError = 0,
  kError = 1,
  kWarning = 2,
  kInfo = 3,
  kVerbose = 4,
};

namespace v10 {

class Logger {
 public:
  virtual void log(Severity severity, char const* message) noexcept = 0;
  virtual ~Logger() = default;
};

class LoggerFinder {
 public:
  virtual Logger* findLogger() = 0;

 protected:
  virtual ~LoggerFinder() = default;
};

// The first three functions and deregisterV2Creator are those of IPluginV2 creators.
class PluginRegistry {
 public:
  virtual bool registerV2Creator(void* creator, char const* space) noexcept = 0;
  virtual void* const* getPluginCreatorList(std::int32_t* count) const noexcept = 0;
  virtual void* getPluginCreator(char const* name, char const* version,
                                 char const* space) noexcept = 0;

 protected:
  virtual ~PluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept = 0;
  virtual nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept = 0;
  virtual bool deregisterV2Creator(void const* creator) noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(char const* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                               char const* space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(
      std::int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(char const* name, char const* version,
                                                        char const* space) noexcept = 0;
};

}  // namespace v10

namespace v11 {

class Logger : public nvinfer1::IVersionedInterface {
 public:
  virtual void log(Severity severity, char const* message) noexcept = 0;
};

class LoggerFinder : public nvinfer1::IVersionedInterface {
 public:
  virtual Logger* findLogger() = 0;
};

class PluginRegistry {
 protected:
  virtual ~PluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept = 0;
  virtual nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(char const* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                               char const* space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(
      std::int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(char const* name, char const* version,
                                                        char const* space) noexcept = 0;
};

}  // namespace v11

}  // namespace stof::abi

#endif  // STOF_ABI_TENSORRT_VERSIONS_H
