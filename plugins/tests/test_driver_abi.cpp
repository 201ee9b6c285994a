// Compared while compiling, where there is a CUDA toolkit: runtime/driver_api.h declares what
// cuda.h declares. The CUDA version of cuda.h doesn't matter: a name's signature never changes,
// since cuda.h maps it to another name (cuCtxPushCurrent_v2) when it does.
#include <cuda.h>

#include <string_view>
#include <type_traits>

#include "runtime/driver_api.h"

namespace stof {
namespace cuda {
namespace {

template <typename Ours, typename Theirs>
constexpr bool same_value() {
  return sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;
}

template <typename Ours, typename Theirs>
struct SameAbi : std::false_type {};

template <typename OurResult, typename... Ours, typename TheirResult, typename... Theirs>
struct SameAbi<OurResult (*)(Ours...), TheirResult (*)(Theirs...)> {
  static constexpr bool compare() {
    if constexpr (sizeof...(Ours) == sizeof...(Theirs)) {
      return same_value<OurResult, TheirResult>() && (same_value<Ours, Theirs>() && ...);
    } else {
      return false;
    }
  }
  static constexpr bool value = compare();
};

#define STOF_TEXT(name) #name
#define STOF_MAPPED_NAME(name) STOF_TEXT(name)
// `exported` is what cuda.h makes of `name`.
#define STOF_SAME_FUNCTION(name, exported)                                              \
  static_assert(std::string_view(STOF_MAPPED_NAME(name)) == #exported, "another name"); \
  static_assert(SameAbi<decltype(Driver::exported), decltype(&::exported)>::value,      \
                "another signature")

STOF_SAME_FUNCTION(cuInit, cuInit);
STOF_SAME_FUNCTION(cuGetErrorName, cuGetErrorName);
STOF_SAME_FUNCTION(cuGetErrorString, cuGetErrorString);
STOF_SAME_FUNCTION(cuDeviceGetAttribute, cuDeviceGetAttribute);
STOF_SAME_FUNCTION(cuCtxGetCurrent, cuCtxGetCurrent);
STOF_SAME_FUNCTION(cuCtxGetDevice, cuCtxGetDevice);
STOF_SAME_FUNCTION(cuCtxGetId, cuCtxGetId);
STOF_SAME_FUNCTION(cuCtxPushCurrent, cuCtxPushCurrent_v2);
STOF_SAME_FUNCTION(cuCtxPopCurrent, cuCtxPopCurrent_v2);
STOF_SAME_FUNCTION(cuModuleLoadDataEx, cuModuleLoadDataEx);
STOF_SAME_FUNCTION(cuModuleUnload, cuModuleUnload);
STOF_SAME_FUNCTION(cuModuleGetFunction, cuModuleGetFunction);
STOF_SAME_FUNCTION(cuFuncLoad, cuFuncLoad);
STOF_SAME_FUNCTION(cuFuncGetAttribute, cuFuncGetAttribute);
STOF_SAME_FUNCTION(cuFuncSetAttribute, cuFuncSetAttribute);
STOF_SAME_FUNCTION(cuLaunchKernel, cuLaunchKernel);

static_assert(sizeof(Driver) == 16 * sizeof(void*), "a function of Driver isn't compared above");
static_assert(kSuccess == CUDA_SUCCESS);
static_assert(kDeviceCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kDeviceCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kDeviceMaxSharedOptin == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(kFunctionMaxDynamicShared == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kJitErrorLog == CU_JIT_ERROR_LOG_BUFFER);
static_assert(kJitErrorLogSize == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);

}  // namespace
}  // namespace cuda
}  // namespace stof
