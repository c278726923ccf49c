/* ONNX Runtime with what all graphs of a predictor share. */
#ifndef UMDI_RUNTIME_H
#define UMDI_RUNTIME_H

#include "ort.h"

enum umdi_provider { UMDI_CPU, UMDI_TENSORRT };

typedef struct umdi_runtime_options {
    const char *library; /* path of ONNX Runtime, or NULL */
    int threads;
    bool u8u8; /* 8-bit products that cannot saturate */
    enum umdi_provider provider;
    const char *engines; /* folder of TensorRT's engines */
} umdi_runtime_options;

typedef struct umdi_runtime {
    umdi_ort ort;
    OrtEnv *env;
    OrtSessionOptions *settings; /* of the CPU provider */
    OrtMemoryInfo *memory;
    umdi_runtime_options options; /* without its texts once the bundle is open: the caller's */
} umdi_runtime;

/* The provider of that name, NULL for the processor's. Fails with PROVIDER_UNAVAILABLE. */
umd_status umdi_provider_find(const char *name, enum umdi_provider *out);
const char *umdi_provider_name(enum umdi_provider provider);

/* Load ONNX Runtime and make what all graphs share. Fails with MISSING_DEPENDENCY, or
 * PROVIDER_UNAVAILABLE where the library is too old or lacks the provider. */
umd_status umdi_runtime_open(umdi_runtime *runtime, const umdi_runtime_options *options);
void umdi_runtime_close(umdi_runtime *runtime);

/* Settings of a session, to be released by the caller. False: they cannot be made. */
bool umdi_runtime_settings(const umdi_runtime *runtime, OrtSessionOptions **out);

#endif
