// Messages reach the logger of either version of TensorRT, whose layouts differ, and the error text
// of the C interface.
#include <stdexcept>
#include <string>
#include <vector>

#include "abi/tensorrt_versions.h"
#include "checks.h"
#include "trt/log.h"

namespace stof {
namespace {

struct Logged {
  Severity severity;
  std::string text;
};

template <typename Base>
class RecordingLogger : public Base {
 public:
  void log(Severity severity, const char* message) noexcept override {
    messages.push_back({severity, message});
  }
  std::vector<Logged> messages;
};

template <typename Base, typename Logger>
class Finder : public Base {
 public:
  Logger* findLogger() override {
    if (broken) throw std::runtime_error("a finder of the application fails");
    return logger;
  }
  Logger* logger = nullptr;
  bool broken = false;
};

using Logger10 = RecordingLogger<abi::v10::Logger>;
using Finder10 = Finder<abi::v10::LoggerFinder, abi::v10::Logger>;

class Logger11 final : public RecordingLogger<abi::v11::Logger> {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
};

class Finder11 final : public Finder<abi::v11::LoggerFinder, abi::v11::Logger> {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"ILoggerFinder", 1, 0};
  }
};

template <typename Logger, typename FinderType>
void test_finder(int major) {
  Logger logger;
  FinderType finder;
  finder.logger = &logger;
  set_logger_finder(&finder, major);
  log(Severity::kVerbose, "quiet");
  log(Severity::kError, "loud");
  CHECK(logger.messages.size() == 2);
  CHECK(logger.messages.at(0).severity == Severity::kVerbose);
  CHECK(logger.messages.at(1).severity == Severity::kError);
  CHECK(logger.messages.at(1).text == "stof: loud");
  finder.broken = true;
  log(Severity::kError, "(expected on the error stream: the finder throws)");
  finder.broken = false;
  finder.logger = nullptr;
  log(Severity::kError, "(expected on the error stream: no logger)");
  CHECK(logger.messages.size() == 2);
  set_logger_finder(nullptr, 0);
  log(Severity::kInfo, "nobody to tell, and not important");
}

void test_unknown_version_is_not_called() {
  Logger10 logger;
  Finder10 finder;
  finder.logger = &logger;
  set_logger_finder(&finder, 12);
  log(Severity::kError, "(expected on the error stream: a TensorRT of unknown layout)");
  CHECK(logger.messages.empty());
  set_logger_finder(nullptr, 0);
}

Logger11 source_logger;

void test_source() {
  TensorRtLibrary library{
      "", 110400, 11, nullptr,
      [] { return static_cast<void*>(static_cast<abi::v11::Logger*>(&source_logger)); }};
  set_logger_source(library);
  log(Severity::kWarning, "through getLogger");
  CHECK(source_logger.messages.size() == 1);
  library.get_logger = nullptr;
  set_logger_source(library);
  log(Severity::kWarning, "(expected on the error stream: TensorRT names no logger)");
  CHECK(source_logger.messages.size() == 1);
  set_logger_finder(nullptr, 0);
}

void test_capture() {
  Logger10 logger;
  Finder10 finder;
  finder.logger = &logger;
  set_logger_finder(&finder, 10);
  {
    const LogCapture outer;
    {
      const LogCapture inner;
      log(Severity::kError, "one");
      log(Severity::kInfo, "not kept");
      log(Severity::kWarning, "two");
      CHECK(inner.text() == "one\ntwo");
    }
    log(Severity::kError, "three");
    CHECK(outer.text() == "three");
  }
  CHECK(logger.messages.empty());
  log(Severity::kError, "four");
  CHECK(logger.messages.size() == 1);
  set_logger_finder(nullptr, 0);
}

}  // namespace
}  // namespace stof

int main() {
  stof::test_finder<stof::Logger10, stof::Finder10>(10);
  stof::test_finder<stof::Logger11, stof::Finder11>(11);
  stof::test_unknown_version_is_not_called();
  stof::test_source();
  stof::test_capture();
  return stof::tests::failures();
}
