// A driver that records what it is asked for; see fake_cuda.h. The signatures are those of
// NVIDIA's driver API, with handles as void*.
#include "fake_cuda.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kNotInitialized = 3;
constexpr int kInvalidContext = 201;
constexpr int kInvalidHandle = 400;
constexpr int kNotFound = 500;
constexpr int kContextIsDestroyed = 709;
constexpr int kCaptureUnsupported = 900;

constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kMaxSharedOptin = 97;
constexpr int kMaxDynamicShared = 8;
constexpr int kSharedOptin = 232448;  // an H100's
constexpr int kSharedDefault = 49152;

struct Context {
  int device;
  unsigned long long id;
  int major;
  int minor;
  bool is_alive;
};

struct Module {
  int number;
  Context* context;
  bool is_alive;
};

struct Function {
  Module* module;
  std::string entry;
  bool is_loaded;
  int max_dynamic_shared;
};

// Everything is kept until the process ends, so that a stale handle is recognised and no crash.
struct World {
  std::mutex mutex;
  bool is_initialized = false;
  bool is_capturing = false;
  bool is_recording = true;
  std::deque<Context> contexts{Context{0, 1, 9, 0, true}};
  unsigned long long last_context_id = 1;
  std::deque<Module> modules;
  std::deque<Function> functions;
  std::string log;
  std::map<std::string, int> counts;
  std::map<std::string, std::string> signatures;
  std::deque<std::pair<std::string, int>> failures;
};

World& world() {
  static World* const instance = new World;  // outlives everything that unloads at exit
  return *instance;
}

// Contexts of a thread, the last one current; nullptr is none.
struct ContextStack {
  std::deque<Context*> contexts{&world().contexts.front()};
};

ContextStack& stack() {
  thread_local ContextStack contexts;
  return contexts;
}

Context* current() { return stack().contexts.back(); }

template <typename T>
T* known(std::deque<T>& objects, const void* handle) {
  const auto found = std::find_if(objects.begin(), objects.end(),
                                  [handle](const T& object) { return &object == handle; });
  return found != objects.end() ? &*found : nullptr;
}

// One call of the driver: holds the lock, finds a planned failure, and logs the outcome.
class Call {
 public:
  explicit Call(const char* name) : lock_(world().mutex), name_(name) {}

  // The error with which this call has to fail at once, or success.
  int begin(bool is_allowed_in_capture = true) {
    World& w = world();
    const auto planned = std::find_if(w.failures.begin(), w.failures.end(),
                                      [this](const auto& plan) { return plan.first == name_; });
    if (planned != w.failures.end()) {
      const int error = planned->second;
      w.failures.erase(planned);
      return error;
    }
    if (!w.is_initialized && std::strcmp(name_, "cuInit") != 0) return kNotInitialized;
    return w.is_capturing && !is_allowed_in_capture ? kCaptureUnsupported : kSuccess;
  }

  int end(int result, const std::string& details = std::string()) {
    World& w = world();
    if (!w.is_recording) return result;
    ++w.counts[name_];
    w.log += name_ + details;
    if (result != kSuccess) w.log += " -> " + std::to_string(result);
    w.log += '\n';
    return result;
  }

 private:
  const std::lock_guard<std::mutex> lock_;
  const char* name_;
};

std::string number(const void* address) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx",
                static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(address)));
  return text;
}

template <typename T>
T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::string argument_text(const std::string& type, const void* value) {
  if (type == "p") return number(load<const void*>(value));
  if (type == "i32") return std::to_string(load<std::int32_t>(value));
  if (type == "i64") return std::to_string(load<std::int64_t>(value));
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(load<float>(value)));
  return text;
}

std::string arguments_text(const std::string& entry, void** arguments) {
  const auto signature = world().signatures.find(entry);
  if (signature == world().signatures.end()) return "?";
  std::string text;
  std::size_t begin = 0;
  for (std::size_t i = 0; begin < signature->second.size(); ++i) {
    const std::size_t end = std::min(signature->second.find(',', begin), signature->second.size());
    if (i > 0) text += ',';
    text += argument_text(signature->second.substr(begin, end - begin), arguments[i]);
    begin = end + 1;
  }
  return text;
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  return std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z);
}

// The first characters of an image, which has to end in a NUL as PTX does.
std::string image_text(const void* image) {
  const char* const text = static_cast<const char*>(image);
  std::string shown(text, strnlen(text, 24));
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '.';
  }
  return shown;
}

std::string module_text(const Module* module) {
  return " module=" + (module != nullptr ? std::to_string(module->number) : std::string("?"));
}

std::string entry_text(const Function* function) {
  return " entry=" + (function != nullptr ? function->entry : std::string("?"));
}

// A function of the current context, or an error.
int check_function(const Function* function) {
  if (function == nullptr || !function->module->is_alive) return kInvalidHandle;
  return function->module->context == current() ? kSuccess : kInvalidHandle;
}

int check_current() {
  const Context* const context = current();
  if (context == nullptr) return kInvalidContext;
  return context->is_alive ? kSuccess : kContextIsDestroyed;
}

void drop_modules(const Context* context) {
  for (Module& module : world().modules) {
    if (module.context == context) module.is_alive = false;
  }
}

int check_launch(const Function& function, const unsigned (&grid)[3], const unsigned (&block)[3],
                 unsigned shared) {
  std::uint64_t threads = 1;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const unsigned limit = axis == 0 ? 0x7FFFFFFFU : 65535U;
    if (grid[axis] == 0 || grid[axis] > limit) return kInvalidValue;
    if (block[axis] == 0 || block[axis] > 1024) return kInvalidValue;
    threads *= block[axis];
  }
  if (threads > 1024) return kInvalidValue;
  if (shared > static_cast<unsigned>(function.max_dynamic_shared)) return kInvalidValue;
  return !function.is_loaded && world().is_capturing ? kCaptureUnsupported : kSuccess;
}

}  // namespace

extern "C" {

// ---- the driver -------------------------------------------------------------------------------

int cuInit(unsigned) {
  Call call("cuInit");
  const int result = call.begin();
  if (result == kSuccess) world().is_initialized = true;
  return call.end(result);
}

int cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {
      {kSuccess, "CUDA_SUCCESS"},
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED"},
      {4, "CUDA_ERROR_DEINITIALIZED"},
      {100, "CUDA_ERROR_NO_DEVICE"},
      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {218, "CUDA_ERROR_INVALID_PTX"},
      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
      {kContextIsDestroyed, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
  };
  const auto found = names.find(error);
  *name = found != names.end() ? found->second : nullptr;
  return found != names.end() ? kSuccess : kInvalidValue;
}

int cuGetErrorString(int error, const char** text) {
  const int result = cuGetErrorName(error, text);
  if (result == kSuccess) *text = "the fake driver's text";
  return result;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  Call call("cuDeviceGetAttribute");
  int result = call.begin();
  std::deque<Context>& contexts = world().contexts;
  if (result == kSuccess && (device < 0 || static_cast<std::size_t>(device) >= contexts.size())) {
    result = kInvalidValue;
  }
  if (result != kSuccess) return call.end(result);
  const Context& context = contexts[static_cast<std::size_t>(device)];
  if (attribute == kCapabilityMajor) {
    *value = context.major;
  } else if (attribute == kCapabilityMinor) {
    *value = context.minor;
  } else if (attribute == kMaxSharedOptin) {
    *value = kSharedOptin;
  } else {
    result = kInvalidValue;
  }
  return call.end(result);
}

int cuCtxGetCurrent(void** context) {
  Call call("cuCtxGetCurrent");
  const int result = call.begin();
  if (result == kSuccess) *context = current();
  return call.end(result);
}

int cuCtxGetDevice(int* device) {
  Call call("cuCtxGetDevice");
  int result = call.begin();
  if (result == kSuccess) result = check_current();
  if (result == kSuccess) *device = current()->device;
  return call.end(result);
}

int cuCtxGetId(void* context, unsigned long long* id) {
  Call call("cuCtxGetId");
  int result = call.begin();
  const Context* const found = known(world().contexts, context);
  if (result == kSuccess && found == nullptr) result = kInvalidContext;
  if (result == kSuccess && !found->is_alive) result = kContextIsDestroyed;
  if (result == kSuccess) *id = found->id;
  return call.end(result);
}

int cuCtxPushCurrent_v2(void* context) {
  Call call("cuCtxPushCurrent_v2");
  int result = call.begin();
  Context* const found = known(world().contexts, context);
  if (result == kSuccess && found == nullptr) result = kInvalidContext;
  if (result == kSuccess && !found->is_alive) result = kContextIsDestroyed;
  if (result == kSuccess) stack().contexts.push_back(found);
  return call.end(result);
}

int cuCtxPopCurrent_v2(void** context) {
  Call call("cuCtxPopCurrent_v2");
  int result = call.begin();
  if (result == kSuccess && stack().contexts.size() < 2) result = kInvalidContext;
  if (result != kSuccess) return call.end(result);
  *context = current();
  stack().contexts.pop_back();
  return call.end(result);
}

int cuModuleLoadDataEx(void** module, const void* image, unsigned option_count, int* options,
                       void** values) {
  Call call("cuModuleLoadDataEx");
  int result = call.begin(false);
  if (result == kSuccess) result = check_current();
  if (result != kSuccess) {
    constexpr int kErrorLog = 5;
    for (unsigned i = 0; i < option_count; ++i) {
      if (options[i] == kErrorLog) std::strcpy(static_cast<char*>(values[i]), "line 1: fake");
    }
    return call.end(result);
  }
  std::deque<Module>& modules = world().modules;
  modules.push_back(Module{static_cast<int>(modules.size()) + 1, current(), true});
  *module = &modules.back();
  return call.end(result, module_text(&modules.back()) + " image=" + image_text(image));
}

int cuModuleUnload(void* handle) {
  Call call("cuModuleUnload");
  int result = call.begin(false);
  Module* const module = known(world().modules, handle);
  if (result == kSuccess && (module == nullptr || !module->is_alive)) result = kInvalidHandle;
  if (result == kSuccess && module->context != current()) result = kInvalidContext;
  if (result == kSuccess) module->is_alive = false;
  return call.end(result, module_text(module));
}

int cuModuleGetFunction(void** function, void* handle, const char* entry) {
  Call call("cuModuleGetFunction");
  int result = call.begin();
  Module* const module = known(world().modules, handle);
  if (result == kSuccess && (module == nullptr || !module->is_alive)) result = kInvalidHandle;
  const std::string details = module_text(module) + " entry=" + entry;
  if (result != kSuccess) return call.end(result, details);
  std::deque<Function>& functions = world().functions;
  auto found = std::find_if(functions.begin(), functions.end(), [&](const Function& other) {
    return other.module == module && other.entry == entry;
  });
  if (found == functions.end()) {
    functions.push_back(Function{module, entry, false, kSharedDefault});
    found = std::prev(functions.end());
  }
  *function = &*found;
  return call.end(result, details);
}

int cuFuncLoad(void* handle) {
  Call call("cuFuncLoad");
  int result = call.begin(false);
  Function* const function = known(world().functions, handle);
  if (result == kSuccess) result = check_function(function);
  if (result == kSuccess) function->is_loaded = true;
  return call.end(result, entry_text(function));
}

int cuFuncGetAttribute(int* value, int attribute, void* handle) {
  Call call("cuFuncGetAttribute");
  int result = call.begin();
  const Function* const function = known(world().functions, handle);
  if (result == kSuccess) result = check_function(function);
  if (result == kSuccess && attribute != kMaxDynamicShared) result = kInvalidValue;
  if (result == kSuccess) *value = function->max_dynamic_shared;
  return call.end(result, entry_text(function));
}

int cuFuncSetAttribute(void* handle, int attribute, int value) {
  Call call("cuFuncSetAttribute");
  int result = call.begin();
  Function* const function = known(world().functions, handle);
  if (result == kSuccess) result = check_function(function);
  if (result == kSuccess && (attribute != kMaxDynamicShared || value > kSharedOptin)) {
    result = kInvalidValue;
  }
  if (result == kSuccess) function->max_dynamic_shared = value;
  return call.end(result, entry_text(function) + " attribute=" + std::to_string(attribute) +
                              " value=" + std::to_string(value));
}

int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   void* stream, void** arguments, void**) {
  Call call("cuLaunchKernel");
  int result = call.begin();
  Function* const function = known(world().functions, handle);
  if (result == kSuccess) result = check_function(function);
  if (result == kSuccess) {
    result = check_launch(*function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared);
  }
  if (result == kSuccess) function->is_loaded = true;
  if (!world().is_recording) return result;
  return call.end(
      result,
      entry_text(function) + " grid=" + triple(grid_x, grid_y, grid_z) +
          " block=" + triple(block_x, block_y, block_z) + " shared=" + std::to_string(shared) +
          " stream=" + number(stream) + " args=" +
          (function != nullptr ? arguments_text(function->entry, arguments) : std::string("?")));
}

// ---- what tests ask and set -------------------------------------------------------------------

void fake_cuda_reset(void) {
  World& w = world();
  const std::lock_guard<std::mutex> lock(w.mutex);
  w.log.clear();
  w.counts.clear();
  w.signatures.clear();
  w.failures.clear();
  w.is_capturing = false;
  w.is_recording = true;
  w.contexts.front().major = 9;
  w.contexts.front().minor = 0;
  stack().contexts.assign(1, &w.contexts.front());
}

void fake_cuda_set_capability(int32_t major, int32_t minor) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  if (current() == nullptr) return;
  current()->major = major;
  current()->minor = minor;
}

void* fake_cuda_create_context(int32_t major, int32_t minor) {
  World& w = world();
  const std::lock_guard<std::mutex> lock(w.mutex);
  const int device = static_cast<int>(w.contexts.size());
  w.contexts.push_back(Context{device, ++w.last_context_id, major, minor, true});
  return &w.contexts.back();
}

void* fake_cuda_default_context(void) { return &world().contexts.front(); }

void fake_cuda_destroy_context(void* handle) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  Context* const context = known(world().contexts, handle);
  if (context == nullptr) return;
  drop_modules(context);
  context->is_alive = false;
}

void fake_cuda_renew_context(void* handle) {
  World& w = world();
  const std::lock_guard<std::mutex> lock(w.mutex);
  Context* const context = known(w.contexts, handle);
  if (context == nullptr) return;
  drop_modules(context);
  context->id = ++w.last_context_id;
}

void fake_cuda_set_current(void* handle) {
  World& w = world();
  const std::lock_guard<std::mutex> lock(w.mutex);
  stack().contexts.back() = known(w.contexts, handle);
}

void fake_cuda_set_signature(const char* entry, const char* types) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().signatures[entry] = types;
}

void fake_cuda_fail_next(const char* function, int32_t error) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().failures.emplace_back(function, error);
}

void fake_cuda_set_capturing(int32_t capturing) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().is_capturing = capturing != 0;
}

void fake_cuda_set_recording(int32_t recording) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().is_recording = recording != 0;
}

const char* fake_cuda_log(void) {
  thread_local std::string copy;
  const std::lock_guard<std::mutex> lock(world().mutex);
  copy = world().log;
  return copy.c_str();
}

void fake_cuda_clear_log(void) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  world().log.clear();
}

int32_t fake_cuda_call_count(const char* function) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  const auto found = world().counts.find(function);
  return found != world().counts.end() ? found->second : 0;
}

int32_t fake_cuda_live_modules(void) {
  const std::lock_guard<std::mutex> lock(world().mutex);
  const auto& modules = world().modules;
  return static_cast<int32_t>(std::count_if(modules.begin(), modules.end(),
                                            [](const Module& module) { return module.is_alive; }));
}

}  // extern "C"
