#include "stof_host.h"

#ifndef STOF_VERSION
#error "CMake passes STOF_VERSION, read from pyproject.toml"
#endif

extern "C" const char* stof_version(void) noexcept { return STOF_VERSION; }
