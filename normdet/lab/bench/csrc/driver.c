// A stand-in for NVIDIA's driver library: what Triton's launcher calls, doing nothing.
//
// With it the whole way of a launch runs on a machine without a GPU, down to the last call before
// the driver, and its time on the host can be measured. Kernels are "loaded" and never run.

#include <stddef.h>

typedef int Result;  // CUresult: 0 is success

static long launches = 0;

long normdet_launches(void) { return launches; }

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Result cuDeviceGetCount(int* count) { return *count = 1, 0; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
// The shared memory of an H100, and as many of anything else.
Result cuDeviceGetAttribute(int* value, int attribute, int device) { return *value = 227 << 10, 0; }
Result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &launches, 0; }
Result cuCtxGetCurrent(void** context) { return *context = &launches, 0; }
Result cuCtxSetCurrent(void* context) { return 0; }
Result cuCtxGetDevice(int* device) { return *device = 0, 0; }
Result cuCtxGetLimit(size_t* value, int limit) { return *value = 0, 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuModuleLoadData(void** module, const void* image) { return *module = &launches, 0; }
Result cuModuleUnload(void* module) { return 0; }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
  return *function = &launches, 0;
}
Result cuFuncGetAttribute(int* value, int attribute, void* function) {
  return *value = attribute == 0 ? 1024 : 0, 0;  // 0: the most threads of a program
}
Result cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void* function, int config) { return 0; }
Result cuGetErrorString(Result error, const char** text) { return *text = "none", 0; }
Result cuPointerGetAttribute(void* data, int attribute, unsigned long long pointer) {
  return *(unsigned long long*)data = pointer, 0;
}
Result cuPointerGetAttributes(unsigned count, int* attributes, void** data,
                              unsigned long long pointer) {
  return 0;
}
Result cuLaunchKernelEx(const void* config, void* function, void** arguments, void** extra) {
  return ++launches, 0;
}
Result cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b,
                      unsigned c, unsigned shared, void* stream, void** arguments, void** extra) {
  return ++launches, 0;
}
Result cuOccupancyMaxActiveClusters(int* count, void* function, const void* config) {
  return *count = 1, 0;
}
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }
