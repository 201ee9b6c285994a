// Usage: test_library_info LIBRARY VERSION
// Loads LIBRARY and compares what it says about itself with what is expected of this release;
// exits 0 when all agree.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "stof_host.h"

namespace {

constexpr int kPlugins = 2;
constexpr const char* kNames[kPlugins] = {"StofMaskedAttention", "StofMaskTable"};

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
  const auto plugin_name = find<decltype(&stof_plugin_name)>(library, "stof_plugin_name");
  const auto last_error = find<decltype(&stof_last_error)>(library, "stof_last_error");
  if (version == nullptr || plugin_count == nullptr || plugin_name == nullptr ||
      last_error == nullptr) {
    return 1;
  }
  if (std::strcmp(version(), wanted_version) != 0) {
    std::fprintf(stderr, "stof_version() is %s, wanted %s\n", version(), wanted_version);
    return 1;
  }
  if (plugin_count() != kPlugins) {
    std::fprintf(stderr, "stof_plugin_count() is %d, wanted %d\n", plugin_count(), kPlugins);
    return 1;
  }
  for (int i = 0; i < kPlugins; ++i) {
    if (std::strcmp(plugin_name(i), kNames[i]) != 0) {
      std::fprintf(stderr, "stof_plugin_name(%d) is %s, wanted %s\n", i, plugin_name(i), kNames[i]);
      return 1;
    }
  }
  if (plugin_name(kPlugins) != nullptr || *last_error() == '\0') {
    std::fprintf(stderr, "a plugin beyond the last has a name, or there is no error about it\n");
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
