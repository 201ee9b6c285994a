// Where the plugins' messages go: TensorRT's logger if it gave us one, else the error stream.
#ifndef STOF_TRT_LOG_H
#define STOF_TRT_LOG_H

#include <string>

#include "abi/tensorrt_versions.h"
#include "trt/tensorrt_library.h"

namespace stof {

using Severity = abi::Severity;

// Never throws; a message that can't be delivered is dropped. Any thread.
void log(Severity severity, const std::string& message) noexcept;

// From now on log through the logger that this finder (an nvinfer1::ILoggerFinder of the given
// major version of TensorRT; nullptr: none) finds at each message.
void set_logger_finder(void* finder, int tensorrt_major) noexcept;

// From now on log through the logger that this TensorRT library names at each message.
void set_logger_source(const TensorRtLibrary& library) noexcept;

// While it lives, errors and warnings of its thread are collected instead of logged: the C
// interface makes them its error text. Nests; ends in the order opposite to creation.
class LogCapture {
 public:
  LogCapture() noexcept;
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  const std::string& text() const { return text_; }  // one line a message

 private:
  friend void log(Severity severity, const std::string& message) noexcept;

  std::string text_;
  LogCapture* outer_;
};

}  // namespace stof

#endif  // STOF_TRT_LOG_H
