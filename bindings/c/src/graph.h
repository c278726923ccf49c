/* One ONNX graph in ONNX Runtime. */
#ifndef UMDI_GRAPH_H
#define UMDI_GRAPH_H

#include "control.h"
#include "manifest.h"
#include "runtime.h"

#define UMDI_MAX_RANK 4
#define UMDI_FUSION_INPUTS 5

typedef struct umdi_graph {
    const umdi_ort *ort;
    OrtSession *session;
    umdi_text name; /* path in the bundle */
    enum umdi_part part;
} umdi_graph;

/* A float32 output. */
typedef struct umdi_tensor {
    OrtValue *value;
    float *data;
    size_t rank;
    int64_t shape[UMDI_MAX_RANK];
} umdi_tensor;

/* Open the variant's graph from bytes whose hash was compared. Fails with BUNDLE_INTEGRITY, or with
 * PROVIDER_UNAVAILABLE where another provider than the processor's does not take it. */
umd_status umdi_graph_open(umdi_graph *graph, const umdi_runtime *runtime,
                           const umdi_manifest *manifest, const umdi_variant *variant,
                           enum umdi_part part, const uint8_t *bytes, size_t size);
void umdi_graph_close(umdi_graph *graph);

/* Run it; the inputs stand in the order of the format. Fails with INFERENCE, CANCELLED, DEADLINE;
 * no output is left then. */
umd_status umdi_graph_run(const umdi_graph *graph, umdi_control *control,
                          const OrtValue *const *inputs, const char *const *names, size_t count,
                          umdi_tensor *outputs);

/* A tensor over memory that stays where it is. `type` is UMDI_ORT_FLOAT or UMDI_ORT_INT64. */
umd_status umdi_tensor_wrap(const umdi_runtime *runtime, void *data, size_t bytes,
                            const int64_t *shape, size_t rank, int type, OrtValue **out);
void umdi_value_free(const umdi_runtime *runtime, OrtValue **value);

/* Number of values of a tensor. */
size_t umdi_tensor_size(const umdi_tensor *tensor);

#endif
