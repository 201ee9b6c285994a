// stof_last_error(): what a thread's last call of the C interface failed with.
#ifndef STOF_HOST_LAST_ERROR_H
#define STOF_HOST_LAST_ERROR_H

#include <exception>
#include <string>

#include "trt/log.h"

namespace stof {

void set_last_error(const std::string& text) noexcept;

// Runs the body of a function of the C interface. It has failed if it throws or returns a value
// that is_failure() knows; what the plugin logged meanwhile, or the exception, is the error text.
template <typename Result, typename Body, typename IsFailure>
Result call(const char* function, Result failed, IsFailure is_failure, Body body) noexcept {
  const LogCapture captured;
  try {
    const Result result = body();
    if (is_failure(result)) {
      set_last_error(captured.text().empty() ? std::string(function) + " failed without a message"
                                             : captured.text());
    }
    return result;
  } catch (const std::exception& error) {
    set_last_error(error.what());
  } catch (...) {
    set_last_error(function);
  }
  return failed;
}

// For functions that return NULL on failure.
template <typename Body>
auto call_pointer(const char* function, Body body) noexcept -> decltype(body()) {
  using Result = decltype(body());
  return call(function, Result{nullptr}, [](Result result) { return result == nullptr; }, body);
}

// For functions that return a negative number on failure.
template <typename Result = std::int32_t, typename Body>
Result call_number(const char* function, Body body) noexcept {
  return call(function, Result{-1}, [](Result result) { return result < 0; }, body);
}

}  // namespace stof

#endif  // STOF_HOST_LAST_ERROR_H
