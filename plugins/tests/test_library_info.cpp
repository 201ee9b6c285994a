// Usage: test_library_info LIBRARY VERSION
// Loads LIBRARY, calls each function of stof_host.h and compares with what is expected of this
// release; exits 0 when all agree.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "stof_host.h"

namespace {

// dlsym returns a data pointer; POSIX guarantees that its bits are the function's address.
template <typename Function>
Function find(void* library, const char* name) {
  void* const address = dlsym(library, name);
  if (address == nullptr) {
    std::fprintf(stderr, "%s is not exported: %s\n", name, dlerror());
    return nullptr;
  }
  Function function;
  static_assert(sizeof function == sizeof address, "POSIX platforms only");
  std::memcpy(&function, &address, sizeof function);
  return function;
}

int check(void* library, const char* wanted_version) {
  const auto version = find<decltype(&stof_version)>(library, "stof_version");
  const auto plugin_count = find<decltype(&stof_plugin_count)>(library, "stof_plugin_count");
  if (version == nullptr || plugin_count == nullptr) return 1;
  if (std::strcmp(version(), wanted_version) != 0) {
    std::fprintf(stderr, "stof_version() is %s, wanted %s\n", version(), wanted_version);
    return 1;
  }
  if (plugin_count() != 0) {
    std::fprintf(stderr, "stof_plugin_count() is %d, wanted 0\n", plugin_count());
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s LIBRARY VERSION\n", argv[0]);
    return 2;
  }
  // RTLD_NOW: an undefined symbol fails here and not in the middle of a user's engine build.
  void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "cannot load the library: %s\n", dlerror());
    return 1;
  }
  const int failures = check(library, argv[2]);
  if (dlclose(library) != 0) {
    std::fprintf(stderr, "cannot unload the library: %s\n", dlerror());
    return 1;
  }
  return failures;
}
