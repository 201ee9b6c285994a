#include "stof_host.h"

#ifndef STOF_VERSION
#error "CMake passes STOF_VERSION, read from pyproject.toml"
#endif

extern "C" const char* stof_version(void) noexcept { return STOF_VERSION; }

// None in this release: optimized files carry stof nodes, the plugins that run them come next.
extern "C" int32_t stof_plugin_count(void) noexcept { return 0; }
