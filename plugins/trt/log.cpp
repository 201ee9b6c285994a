#include "trt/log.h"

#include <cstdio>
#include <mutex>

namespace stof {

namespace {

// What TensorRT offers to find its logger. At most one of finder and get_logger is set.
struct LogTarget {
  int major = 0;
  void* finder = nullptr;
  void* (*get_logger)() = nullptr;
};

std::mutex target_mutex;
LogTarget target;

thread_local LogCapture* capture = nullptr;

void set_target(const LogTarget& wanted) noexcept {
  const std::lock_guard<std::mutex> lock(target_mutex);
  target = wanted;
}

LogTarget current_target() {
  const std::lock_guard<std::mutex> lock(target_mutex);
  return target;
}

// Finder and Logger are those of one version in tensorrt_versions.h.
template <typename Finder, typename Logger>
bool deliver(const LogTarget& to, Severity severity, const char* message) {
  Logger* logger = nullptr;
  if (to.finder != nullptr) {
    logger = static_cast<Finder*>(to.finder)->findLogger();
  } else if (to.get_logger != nullptr) {
    logger = static_cast<Logger*>(to.get_logger());
  }
  if (logger == nullptr) return false;
  logger->log(severity, message);
  return true;
}

bool deliver_to_tensorrt(Severity severity, const char* message) {
  const LogTarget to = current_target();
  if (to.major == 10) {
    return deliver<abi::v10::LoggerFinder, abi::v10::Logger>(to, severity, message);
  }
  if (to.major == 11) {
    return deliver<abi::v11::LoggerFinder, abi::v11::Logger>(to, severity, message);
  }
  return false;
}

}  // namespace

void log(Severity severity, const std::string& message) noexcept {
  const bool important = severity <= Severity::kWarning;
  try {
    if (capture != nullptr) {
      if (!important) return;
      if (!capture->text_.empty()) capture->text_ += '\n';
      capture->text_ += message;
      return;
    }
    if (deliver_to_tensorrt(severity, ("stof: " + message).c_str())) return;
  } catch (...) {
    // A logger of the application that throws: the error stream is what is left.
  }
  if (important) std::fprintf(stderr, "stof: %s\n", message.c_str());
}

void set_logger_finder(void* finder, int tensorrt_major) noexcept {
  LogTarget wanted;
  wanted.major = tensorrt_major;
  wanted.finder = finder;
  set_target(wanted);
}

void set_logger_source(const TensorRtLibrary& library) noexcept {
  LogTarget wanted;
  wanted.major = library.major;
  wanted.get_logger = library.get_logger;
  set_target(wanted);
}

LogCapture::LogCapture() noexcept : outer_(capture) { capture = this; }

LogCapture::~LogCapture() { capture = outer_; }

}  // namespace stof
