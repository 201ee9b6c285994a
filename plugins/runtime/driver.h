// NVIDIA's driver API, found at run time: the library loads and parses without a driver.
#ifndef STOF_RUNTIME_DRIVER_H
#define STOF_RUNTIME_DRIVER_H

#include <stdexcept>
#include <string>

namespace stof {

// A call of the driver failed, or there is no driver; what() says which call and why.
class DriverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Which library holds the driver, "libcuda.so.1" if never called. For tests, which bring a driver
// that records what it is asked for. Must come before the first use of the driver; later calls
// throw std::logic_error unless they name the same library.
void set_driver_library(const std::string& path);

// Compute capability of the current context's device.
struct Capability {
  unsigned major;
  unsigned minor;
};
Capability current_capability();

}  // namespace stof

#endif  // STOF_RUNTIME_DRIVER_H
