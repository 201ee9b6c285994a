// Loaded images, shared: all layers and execution contexts that run the same image in the same CUDA
// context use one module.
#ifndef STOF_RUNTIME_MODULES_H
#define STOF_RUNTIME_MODULES_H

#include <memory>
#include <mutex>

#include "plan/plan.h"
#include "runtime/driver_api.h"

namespace stof {

// One module of one CUDA context. Thread safe. Unloads itself in that context.
class LoadedModule {
 public:
  // Loads the image into the current context. Throws DriverError.
  explicit LoadedModule(std::shared_ptr<const Image> image);
  ~LoadedModule();
  LoadedModule(const LoadedModule&) = delete;
  LoadedModule& operator=(const LoadedModule&) = delete;

  // The kernel's function, loaded onto the device and allowed the dynamic shared memory that the
  // kernel may need: nothing is left for the first launch, which may be under capture. The
  // function's context must be current. Throws DriverError.
  cuda::Function function(const Kernel& kernel);

  const Image& image() const { return *image_; }

 private:
  void allow_dynamic_shared(cuda::Function function, const Kernel& kernel);

  const cuda::Driver& driver_;
  std::shared_ptr<const Image> image_;
  cuda::Context context_;
  unsigned long long context_id_;
  cuda::Module module_;
  // Guards the read-compare-raise of a function's limit, which all users of the module share.
  std::mutex mutex_;
};

// The module of this image in the current context, loaded if nobody uses it yet. Images are the
// same if their bytes are. `image` is kept as long as the module. Throws DriverError.
std::shared_ptr<LoadedModule> acquire_module(const std::shared_ptr<const Image>& image);

}  // namespace stof

#endif  // STOF_RUNTIME_MODULES_H
