#include "host/last_error.h"

#include "stof_host.h"

namespace stof {

namespace {

thread_local std::string last_error;

}  // namespace

void set_last_error(const std::string& text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();  // no memory for the text; the failure itself is still returned
  }
}

}  // namespace stof

extern "C" const char* stof_last_error(void) noexcept { return stof::last_error.c_str(); }
