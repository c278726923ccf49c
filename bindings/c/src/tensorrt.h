/* TensorRT by the provider that some builds of ONNX Runtime have. */
#ifndef UMDI_TENSORRT_H
#define UMDI_TENSORRT_H

#include "graph.h"

/* The variant to run where none is named: `int8-trt`, else `fp32`. Fails with USAGE. */
umd_status umdi_tensorrt_variant(const umdi_manifest *manifest, const umdi_variant **out);

/* Whether ONNX Runtime has the provider, and engines have a place. Fails with PROVIDER_UNAVAILABLE,
 * or USAGE. */
umd_status umdi_tensorrt_check(const umdi_runtime *runtime);

/* Put a session of TensorRT in the place of the processor's, which was opened to be looked at: the
 * whole graph, or an error. Builds the engine where the folder has none. Fails with
 * PROVIDER_UNAVAILABLE, BUNDLE_INTEGRITY or USAGE. */
umd_status umdi_tensorrt_open(umdi_graph *graph, const umdi_runtime *runtime,
                              const umdi_manifest *manifest, const umdi_variant *variant,
                              const uint8_t *bytes, size_t size);

#endif
