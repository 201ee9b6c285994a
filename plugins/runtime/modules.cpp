#include "runtime/modules.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>

namespace stof {
namespace {

unsigned long long context_id(cuda::Context context) {
  const cuda::Driver& driver = cuda::driver();
  unsigned long long id = 0;
  cuda::check(driver, driver.cuCtxGetId(context, &id), "cuCtxGetId");
  return id;
}

// The just-in-time compiler says more about wrong PTX than the error code does.
cuda::Module load(const Image& image) {
  const cuda::Driver& driver = cuda::driver();
  std::array<char, 4096> log{};
  std::array<int, 2> options = {cuda::kJitErrorLog, cuda::kJitErrorLogSize};
  // The driver takes the value of an integer option in the bits of a pointer.
  std::array<void*, 2> values = {log.data(), reinterpret_cast<void*>(log.size() - 1)};
  cuda::Module module = nullptr;
  const cuda::Result result =
      driver.cuModuleLoadDataEx(&module, image.data.data(), static_cast<unsigned>(options.size()),
                                options.data(), values.data());
  if (result == cuda::kSuccess) return module;
  std::string message = "cuModuleLoadDataEx failed with " + cuda::describe_error(driver, result) +
                        "; kernels compiled with CUDA 13 need NVIDIA's driver R580 or newer, and "
                        "portable PTX one as new as the NVRTC that wrote it, unless the GPU is "
                        "named with --target";
  if (log[0] != '\0') message += std::string("; the driver's log: ") + log.data();
  throw DriverError(message);
}

// In bytes a block, static and dynamic memory together; 0 if the driver doesn't say.
int largest_shared_memory(const cuda::Driver& driver) {
  cuda::Device device = 0;
  int limit = 0;
  if (driver.cuCtxGetDevice(&device) != cuda::kSuccess) return 0;
  const cuda::Result result =
      driver.cuDeviceGetAttribute(&limit, cuda::kDeviceMaxSharedOptin, device);
  return result == cuda::kSuccess ? limit : 0;
}

using ModuleKey = std::pair<unsigned long long, std::uint64_t>;  // context's id, image's hash

struct KeyHash {
  std::size_t operator()(const ModuleKey& key) const {
    return static_cast<std::size_t>(key.first * 0x9E3779B97F4A7C15U ^ key.second);
  }
};

struct ModuleTable {
  std::mutex mutex;
  std::unordered_multimap<ModuleKey, std::weak_ptr<LoadedModule>, KeyHash> modules;
};

ModuleTable& table() {
  static ModuleTable module_table;
  return module_table;
}

}  // namespace

LoadedModule::LoadedModule(std::shared_ptr<const Image> image)
    : driver_(cuda::driver()),
      image_(std::move(image)),
      context_(cuda::current_context()),
      context_id_(context_id(context_)),
      module_(load(*image_)) {}

// Failures are ignored: if the context is gone (or replaced by another at the same address) so is
// the module, at process exit the driver may be shut down already, and an error that an earlier
// launch left behind is reported by the next call of whoever uses the context.
LoadedModule::~LoadedModule() {
  unsigned long long id = 0;
  if (driver_.cuCtxGetId(context_, &id) != cuda::kSuccess || id != context_id_) return;
  if (driver_.cuCtxPushCurrent_v2(context_) != cuda::kSuccess) return;
  static_cast<void>(driver_.cuModuleUnload(module_));
  cuda::Context popped = nullptr;
  static_cast<void>(driver_.cuCtxPopCurrent_v2(&popped));
}

cuda::Function LoadedModule::function(const Kernel& kernel) {
  cuda::Function function = nullptr;
  const cuda::Result found = driver_.cuModuleGetFunction(&function, module_, kernel.entry.c_str());
  if (found != cuda::kSuccess) {
    throw DriverError("cuModuleGetFunction(" + kernel.entry + ") failed with " +
                      cuda::describe_error(driver_, found));
  }
  // By default a function is loaded by its first launch (CUDA_MODULE_LOADING=LAZY).
  cuda::check(driver_, driver_.cuFuncLoad(function), "cuFuncLoad");
  allow_dynamic_shared(function, kernel);
  return function;
}

// A function may use 48 KiB, static memory included, unless more is asked for.
void LoadedModule::allow_dynamic_shared(cuda::Function function, const Kernel& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int allowed = 0;
  cuda::check(driver_,
              driver_.cuFuncGetAttribute(&allowed, cuda::kFunctionMaxDynamicShared, function),
              "cuFuncGetAttribute");
  // Never lowered: another plan with the same image may need what is allowed now.
  if (allowed >= 0 && kernel.max_dynamic_shared <= static_cast<unsigned>(allowed)) return;
  const int wanted = static_cast<int>(std::min(
      kernel.max_dynamic_shared, static_cast<std::uint32_t>(std::numeric_limits<int>::max())));
  const cuda::Result result =
      driver_.cuFuncSetAttribute(function, cuda::kFunctionMaxDynamicShared, wanted);
  if (result == cuda::kSuccess) return;
  throw DriverError(
      "cuFuncSetAttribute failed with " + cuda::describe_error(driver_, result) + "; kernel " +
      kernel.entry + " (" + kernel.template_name + ") needs " +
      std::to_string(kernel.static_shared) + " + " + std::to_string(kernel.max_dynamic_shared) +
      " bytes of static and dynamic shared memory, this GPU allows a block " +
      std::to_string(largest_shared_memory(driver_)) + "; run `stof-onnx optimize` for this GPU");
}

std::shared_ptr<LoadedModule> acquire_module(const std::shared_ptr<const Image>& image) {
  const ModuleKey key(context_id(cuda::current_context()), image->hash);
  ModuleTable& known = table();
  // Held while loading, so that two threads don't load the same image twice.
  const std::lock_guard<std::mutex> lock(known.mutex);
  for (auto entry = known.modules.begin(); entry != known.modules.end();) {
    entry = entry->second.expired() ? known.modules.erase(entry) : std::next(entry);
  }
  const auto [begin, end] = known.modules.equal_range(key);
  for (auto entry = begin; entry != end; ++entry) {
    std::shared_ptr<LoadedModule> module = entry->second.lock();
    if (module != nullptr && module->image().data == image->data) return module;
  }
  auto module = std::make_shared<LoadedModule>(image);
  known.modules.emplace(key, module);
  return module;
}

}  // namespace stof
