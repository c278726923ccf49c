/* A stand-in for NVIDIA's driver library: the "device" is ordinary memory. For tests alone. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long live; /* allocations and streams that were not given back */

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return flags ? 1 : number("FAKE_CUDA_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA_VERSION", 12060); return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_CUDA_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

int cuDeviceGetName(char *name, int size, int device) {
  (void)device;
  snprintf(name, (size_t)size, "Fake Orin");
  return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  (void)device;
  *context = &live;
  return 0;
}

static _Thread_local void *current;
int cuCtxSetCurrent(void *context) { current = context; return 0; }

/* 201: CUDA_ERROR_INVALID_CONTEXT, when a thread has not entered the context. */
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  if (!current) return 201;
  if (size > (size_t)number("FAKE_CUDA_MEMORY", 1 << 30)) return 2;
  *address = (uint64_t)(uintptr_t)malloc(size);
  ++live;
  return 0;
}

int cuMemFree_v2(uint64_t address) {
  if (!current) return 201;
  free((void *)(uintptr_t)address);
  --live;
  return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
  if (!current || !stream) return 201;
  memcpy((void *)(uintptr_t)to, from, size);
  return 0;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
  if (!current || !stream) return 201;
  memcpy(to, (void *)(uintptr_t)from, size);
  return 0;
}

int cuStreamCreate(void **stream, unsigned flags) {
  if (!current || flags != 1) return 1;
  *stream = malloc(1);
  ++live;
  return 0;
}

int cuStreamSynchronize(void *stream) { return stream ? number("FAKE_CUDA_WAIT", 0) : 1; }

int cuStreamDestroy_v2(void *stream) {
  free(stream);
  --live;
  return 0;
}

int cuGetErrorName(int code, const char **name) {
  *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL;
  return *name ? 0 : 1;
}

long fake_live(void) { return live; }
