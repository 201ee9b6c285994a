#include "runtime/driver.h"

#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <mutex>

#include "runtime/driver_api.h"

namespace stof {
namespace {

constexpr const char* kDefaultLibrary = "libcuda.so.1";

// Modules may be unloaded while the process ends, after destructors of static objects ran: what
// they call then, `functions`, has no destructor.
struct DriverState {
  std::mutex mutex;
  std::string* library = nullptr;  // nullptr: kDefaultLibrary. Never freed, see above.
  bool is_loaded = false;
  cuda::Driver functions{};
};

DriverState& state() {
  static DriverState driver_state;
  return driver_state;
}

struct CloseLibrary {
  void operator()(void* library) const { dlclose(library); }
};

template <typename Function>
void resolve(void* library, const char* name, Function& function) {
  void* const address = dlsym(library, name);
  if (address == nullptr) {
    throw DriverError(std::string("the CUDA driver has no ") + name +
                      ": it is too old, install NVIDIA's driver R580 or newer");
  }
  // dlsym returns a data pointer; POSIX guarantees that its bits are the function's address.
  static_assert(sizeof function == sizeof address, "POSIX platforms only");
  std::memcpy(&function, &address, sizeof function);
}

cuda::Driver resolve_all(void* library) {
  cuda::Driver api{};
  resolve(library, "cuInit", api.cuInit);
  resolve(library, "cuGetErrorName", api.cuGetErrorName);
  resolve(library, "cuGetErrorString", api.cuGetErrorString);
  resolve(library, "cuDeviceGetAttribute", api.cuDeviceGetAttribute);
  resolve(library, "cuCtxGetCurrent", api.cuCtxGetCurrent);
  resolve(library, "cuCtxGetDevice", api.cuCtxGetDevice);
  resolve(library, "cuCtxGetId", api.cuCtxGetId);
  resolve(library, "cuCtxPushCurrent_v2", api.cuCtxPushCurrent_v2);
  resolve(library, "cuCtxPopCurrent_v2", api.cuCtxPopCurrent_v2);
  resolve(library, "cuModuleLoadDataEx", api.cuModuleLoadDataEx);
  resolve(library, "cuModuleUnload", api.cuModuleUnload);
  resolve(library, "cuModuleGetFunction", api.cuModuleGetFunction);
  resolve(library, "cuFuncLoad", api.cuFuncLoad);
  resolve(library, "cuFuncGetAttribute", api.cuFuncGetAttribute);
  resolve(library, "cuFuncSetAttribute", api.cuFuncSetAttribute);
  resolve(library, "cuLaunchKernel", api.cuLaunchKernel);
  return api;
}

cuda::Driver load(const char* path) {
  std::unique_ptr<void, CloseLibrary> library(dlopen(path, RTLD_NOW | RTLD_LOCAL));
  if (library == nullptr) {
    const char* const reason = dlerror();
    throw DriverError(std::string("cannot load the CUDA driver: ") +
                      (reason != nullptr ? reason : path) +
                      "; install NVIDIA's driver R580 or newer on a machine with a GPU");
  }
  const cuda::Driver api = resolve_all(library.get());
  cuda::check(api, api.cuInit(0), "cuInit");
  library.release();  // stays loaded as long as the process runs
  return api;
}

}  // namespace

void set_driver_library(const std::string& path) {
  DriverState& driver = state();
  const std::lock_guard<std::mutex> lock(driver.mutex);
  const std::string known = driver.library != nullptr ? *driver.library : kDefaultLibrary;
  if (path == known) return;
  if (driver.is_loaded) {
    throw std::logic_error("the CUDA driver " + known + " is in use, it can't be replaced by " +
                           path + "; choose the library before its first use");
  }
  if (driver.library == nullptr) driver.library = new std::string;
  *driver.library = path;
}

Capability current_capability() {
  const cuda::Driver& driver = cuda::driver();
  cuda::current_context();
  cuda::Device device = 0;
  cuda::check(driver, driver.cuCtxGetDevice(&device), "cuCtxGetDevice");
  int major = 0;
  int minor = 0;
  cuda::check(driver, driver.cuDeviceGetAttribute(&major, cuda::kDeviceCapabilityMajor, device),
              "cuDeviceGetAttribute");
  cuda::check(driver, driver.cuDeviceGetAttribute(&minor, cuda::kDeviceCapabilityMinor, device),
              "cuDeviceGetAttribute");
  return Capability{static_cast<unsigned>(major), static_cast<unsigned>(minor)};
}

namespace cuda {

const Driver& driver() {
  DriverState& driver_state = state();
  const std::lock_guard<std::mutex> lock(driver_state.mutex);
  if (!driver_state.is_loaded) {
    const char* const path =
        driver_state.library != nullptr ? driver_state.library->c_str() : kDefaultLibrary;
    driver_state.functions = load(path);
    driver_state.is_loaded = true;
  }
  return driver_state.functions;
}

std::string describe_error(const Driver& driver, Result result) {
  const char* name = nullptr;
  const char* text = nullptr;
  // Both fail for codes that are newer than the driver; the number remains.
  if (driver.cuGetErrorName(result, &name) != kSuccess || name == nullptr) name = "unknown error";
  if (driver.cuGetErrorString(result, &text) != kSuccess) text = nullptr;
  std::string description = std::string(name) + " (" + std::to_string(result) + ")";
  if (text != nullptr) description += std::string(": ") + text;
  return description;
}

void check(const Driver& driver, Result result, const char* call) {
  if (result == kSuccess) return;
  throw DriverError(std::string(call) + " failed with " + describe_error(driver, result));
}

Context current_context() {
  Context context = nullptr;
  check(driver(), driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  if (context == nullptr) {
    throw DriverError(
        "no CUDA context is current in this thread; make one current, e.g. by cudaSetDevice, "
        "before plugins are used");
  }
  return context;
}

}  // namespace cuda
}  // namespace stof
