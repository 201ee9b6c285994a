// The part of NVIDIA's driver API that the launcher uses, declared from its documentation so that
// the library builds without a CUDA toolkit. tests/test_driver_abi.cpp compares with cuda.h where
// there is one.
#ifndef STOF_RUNTIME_DRIVER_API_H
#define STOF_RUNTIME_DRIVER_API_H

#include <string>

#include "runtime/driver.h"

namespace stof {
namespace cuda {

using Result = int;  // CUresult
using Device = int;  // CUdevice
using Context = struct ContextHandle*;
using Module = struct ModuleHandle*;
using Function = struct FunctionHandle*;
using Stream = struct StreamHandle*;

constexpr Result kSuccess = 0;
// CUdevice_attribute
constexpr int kDeviceCapabilityMajor = 75;
constexpr int kDeviceCapabilityMinor = 76;
constexpr int kDeviceMaxSharedOptin = 97;
// CUfunction_attribute
constexpr int kFunctionMaxDynamicShared = 8;
// CUjit_option
constexpr int kJitErrorLog = 5;
constexpr int kJitErrorLogSize = 6;

// Addresses of the driver's functions. The names are those that libcuda.so exports, of which some
// end in the version of the signature.
struct Driver {
  Result (*cuInit)(unsigned flags);
  Result (*cuGetErrorName)(Result error, const char** name);
  Result (*cuGetErrorString)(Result error, const char** text);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, Device device);
  Result (*cuCtxGetCurrent)(Context* context);
  Result (*cuCtxGetDevice)(Device* device);
  Result (*cuCtxGetId)(Context context, unsigned long long* id);
  Result (*cuCtxPushCurrent_v2)(Context context);
  Result (*cuCtxPopCurrent_v2)(Context* context);
  Result (*cuModuleLoadDataEx)(Module* module, const void* image, unsigned option_count,
                               int* options, void** values);
  Result (*cuModuleUnload)(Module module);
  Result (*cuModuleGetFunction)(Function* function, Module module, const char* name);
  Result (*cuFuncLoad)(Function function);
  Result (*cuFuncGetAttribute)(int* value, int attribute, Function function);
  Result (*cuFuncSetAttribute)(Function function, int attribute, int value);
  Result (*cuLaunchKernel)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                           Stream stream, void** arguments, void** extra);
};

// The driver, loaded and initialised by the first call; the same object for the life of the
// process. Throws DriverError if there is none, or no GPU; the next call tries again.
const Driver& driver();

// "CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected"
std::string describe_error(const Driver& driver, Result result);

// Throws DriverError naming `call` unless the result is success.
void check(const Driver& driver, Result result, const char* call);

// The context that is current in this thread; throws DriverError if there is none.
Context current_context();

}  // namespace cuda
}  // namespace stof

#endif  // STOF_RUNTIME_DRIVER_API_H
