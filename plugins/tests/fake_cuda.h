/* libfake_cuda.so: a stand-in for libcuda.so.1 on machines without a GPU, for tests only.
 *
 * It has the functions of NVIDIA's driver API that the plugin library uses (runtime/driver_api.h),
 * checks their arguments as the driver does where a test depends on it, records every call, and
 * runs no kernel. It has no function that allocates device memory, copies or synchronises: if the
 * library ever looked for one, it would not find it. Choose it by stof_set_driver_library() before
 * the library's first use of the driver; load the same file (dlopen, ctypes) for the functions
 * below.
 *
 * Each context has a device of its own. At first every thread's current context is the default
 * context, whose device has compute capability 9.0. Thread safe.
 */
#ifndef STOF_TESTS_FAKE_CUDA_H
#define STOF_TESTS_FAKE_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets log, counts, signatures and planned failures; ends capture; makes the default context, of
 * capability 9.0 again, current in this thread. Contexts and modules stay. */
void fake_cuda_reset(void);

/* Compute capability of the device of the context that is current in this thread. */
void fake_cuda_set_capability(int32_t major, int32_t minor);

/* A further context, not made current; the default one is there from the start. */
void* fake_cuda_create_context(int32_t major, int32_t minor);
void* fake_cuda_default_context(void);
/* Its modules are gone with it; using it is CUDA_ERROR_CONTEXT_IS_DESTROYED from now on. */
void fake_cuda_destroy_context(void* context);
/* What cudaDeviceReset does to a primary context in use: its modules are gone, and the same handle
 * is another context, with another id. */
void fake_cuda_renew_context(void* context);
/* Makes a context, or none (NULL), current in this thread. */
void fake_cuda_set_current(void* context);

/* Types of a kernel's parameters, "p,i32,i64,f32" (p: pointer), by which launches are logged. */
void fake_cuda_set_signature(const char* entry, const char* types);

/* The next call of this function (by its exported name, "cuCtxPushCurrent_v2") returns this error
 * and does nothing else. May be called again for the call after that. */
void fake_cuda_fail_next(const char* function, int32_t error);

/* While capturing (not 0), loading and unloading of modules and functions fails with
 * CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, and so does the first launch of a function that cuFuncLoad
 * didn't load: stricter than the driver, where it depends on the capture's mode. */
void fake_cuda_set_capturing(int32_t capturing);

/* 0: calls are neither logged nor counted, and the fake allocates nothing on the heap. */
void fake_cuda_set_recording(int32_t recording);

/* One line a call, in order, e.g.
 *   cuCtxGetCurrent
 *   cuModuleLoadDataEx module=1 image=first characters of the image
 *   cuModuleGetFunction module=1 entry=attention
 *   cuFuncLoad entry=attention
 *   cuFuncSetAttribute entry=attention attribute=8 value=65536
 *   cuLaunchKernel entry=attention grid=4,2,1 block=128,1,1 shared=65536 stream=0x10
 *       args=0x7f00,5,0.5            (on the same line; "args=?" without a signature)
 *   cuModuleUnload module=1
 * with " -> 700" at the end if the call failed. cuGetErrorName and cuGetErrorString are not logged.
 * The text lives until this thread's next call of this function. */
const char* fake_cuda_log(void);
void fake_cuda_clear_log(void);

/* Number of calls of a function since the last reset. */
int32_t fake_cuda_call_count(const char* function);
/* Modules that are loaded in contexts that exist. */
int32_t fake_cuda_live_modules(void);

#ifdef __cplusplus
}
#endif

#endif /* STOF_TESTS_FAKE_CUDA_H */
