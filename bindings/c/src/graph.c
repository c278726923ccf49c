#include "graph.h"

#include <stdlib.h>
#include <string.h>

#include "tensorrt.h"

typedef struct input {
    const char *name;
    int type;
    size_t rank;
} input;

static const input inputs_of[UMDI_PARTS][UMDI_FUSION_INPUTS] = {
    [UMDI_VISION] = {{"pixel_values", UMDI_ORT_FLOAT, 4}},
    [UMDI_TEXT] = {{"input_ids", UMDI_ORT_INT64, 2}, {"attention_mask", UMDI_ORT_INT64, 2}},
    [UMDI_FUSION] = {{"image_tokens", UMDI_ORT_FLOAT, 3},
                     {"text_tokens", UMDI_ORT_FLOAT, 3},
                     {"attention_mask", UMDI_ORT_INT64, 2},
                     {"structured_values", UMDI_ORT_FLOAT, 2},
                     {"structured_mask", UMDI_ORT_FLOAT, 2}},
};
static const size_t input_count[UMDI_PARTS] = {1, 2, UMDI_FUSION_INPUTS};

/* Protobuf bytes of the key `location`, by which a tensor names a file to read: any file. */
static const char external_data[] = "\x0a\x08location";

/* Whether the bytes hold `external_data`. Weights are rarely large, so that its `t`, 116, is the
 * byte to look for. */
static bool has_external_data(const uint8_t *bytes, size_t size)
{
    const size_t length = sizeof external_data - 1, place = 6;
    const uint8_t *end = bytes + size, *at = bytes + (size < length ? size : place);
    while ((at = memchr(at, external_data[place], (size_t)(end - at))) != NULL) {
        const uint8_t *start = at++ - place;
        if ((size_t)(end - start) >= length && memcmp(start, external_data, length) == 0)
            return true;
    }
    return false;
}

/* Whether input `index` is one that the format asks for, with its type and rank. */
static bool check_input(const umdi_graph *graph, OrtAllocator *allocator, size_t index)
{
    const umdi_ort *ort = graph->ort;
    const OrtTensorTypeAndShapeInfo *facts = NULL;
    OrtTypeInfo *info = NULL;
    char *name = NULL;
    int type = 0;
    size_t rank = 0;
    bool found = false;
    if (umdi_is_good(ort, ort->SessionGetInputName(graph->session, index, allocator, &name)) &&
        umdi_is_good(ort, ort->SessionGetInputTypeInfo(graph->session, index, &info)) &&
        umdi_is_good(ort, ort->CastTypeInfoToTensorInfo(info, &facts)) && facts != NULL &&
        umdi_is_good(ort, ort->GetTensorElementType(facts, &type)) &&
        umdi_is_good(ort, ort->GetDimensionsCount(facts, &rank)))
        for (size_t i = 0; i < input_count[graph->part]; i++) {
            const input *wanted = &inputs_of[graph->part][i];
            found = found || (strcmp(name, wanted->name) == 0 && type == wanted->type &&
                              rank == wanted->rank);
        }
    if (info != NULL)
        ort->ReleaseTypeInfo(info);
    if (name != NULL)
        umdi_is_good(ort, ort->AllocatorFree(allocator, name));
    return found;
}

static bool is_wanted_output(const umdi_manifest *manifest, enum umdi_part part, const char *name)
{
    if (part == UMDI_VISION)
        return strcmp(name, "image_tokens") == 0 || strcmp(name, "image_embedding") == 0;
    if (part == UMDI_TEXT)
        return strcmp(name, "text_tokens") == 0 || strcmp(name, "text_embedding") == 0;
    for (size_t i = 0; i < manifest->task_count; i++)
        if (manifest->tasks[i].kind != UMD_RETRIEVAL &&
            umdi_equal(manifest->tasks[i].output_name, name))
            return true;
    return strcmp(name, "match_logit") == 0;
}

static size_t output_count(const umdi_manifest *manifest, enum umdi_part part)
{
    size_t count = part == UMDI_FUSION ? 1 : 2;
    for (size_t i = 0; i < manifest->task_count && part == UMDI_FUSION; i++)
        count += manifest->tasks[i].kind != UMD_RETRIEVAL;
    return count;
}

/* Names of inputs and of outputs differ in a graph, so it is enough to count and to know each. */
static bool check_interface(const umdi_graph *graph, const umdi_manifest *manifest)
{
    const umdi_ort *ort = graph->ort;
    OrtAllocator *allocator = NULL;
    size_t inputs = 0, outputs = 0;
    bool good = umdi_is_good(ort, ort->GetAllocatorWithDefaultOptions(&allocator)) &&
                umdi_is_good(ort, ort->SessionGetInputCount(graph->session, &inputs)) &&
                umdi_is_good(ort, ort->SessionGetOutputCount(graph->session, &outputs)) &&
                inputs == input_count[graph->part] &&
                outputs == output_count(manifest, graph->part);
    for (size_t i = 0; i < inputs && good; i++)
        good = check_input(graph, allocator, i);
    for (size_t i = 0; i < outputs && good; i++) {
        char *name = NULL;
        good = umdi_is_good(ort, ort->SessionGetOutputName(graph->session, i, allocator, &name)) &&
               is_wanted_output(manifest, graph->part, name);
        if (name != NULL)
            umdi_is_good(ort, ort->AllocatorFree(allocator, name));
    }
    return good;
}

umd_status umdi_graph_open(umdi_graph *graph, const umdi_runtime *runtime,
                           const umdi_manifest *manifest, const umdi_variant *variant,
                           enum umdi_part part, const uint8_t *bytes, size_t size)
{
    const umdi_ort *ort = &runtime->ort;
    graph->ort = ort;
    graph->name = variant->graphs[part];
    graph->part = part;
    if (has_external_data(bytes, size))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "'%s' keeps weights outside itself; a bundle's graph holds all of them",
                         graph->name.text);
    if (!umdi_is_good(ort, ort->CreateSessionFromArray(runtime->env, bytes, size,
                                                       runtime->settings, &graph->session)))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "'%s' cannot be opened by ONNX Runtime %.40s; use a newer one or another "
                         "bundle",
                         graph->name.text, ort->version);
    if (!check_interface(graph, manifest))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "'%s' has other inputs or outputs than the format asks for",
                         graph->name.text);
    if (runtime->options.provider == UMDI_CPU)
        return UMD_OK;
    return umdi_tensorrt_open(graph, runtime, manifest, variant, bytes, size);
}

void umdi_graph_close(umdi_graph *graph)
{
    if (graph->session != NULL)
        graph->ort->ReleaseSession(graph->session);
    graph->session = NULL;
}

static bool describe(const umdi_ort *ort, umdi_tensor *tensor)
{
    OrtTensorTypeAndShapeInfo *facts = NULL;
    void *data = NULL;
    int type = 0;
    bool good = umdi_is_good(ort, ort->GetTensorTypeAndShape(tensor->value, &facts)) &&
                umdi_is_good(ort, ort->GetTensorElementType(facts, &type)) &&
                type == UMDI_ORT_FLOAT &&
                umdi_is_good(ort, ort->GetDimensionsCount(facts, &tensor->rank)) &&
                tensor->rank <= UMDI_MAX_RANK &&
                umdi_is_good(ort, ort->GetDimensions(facts, tensor->shape, tensor->rank)) &&
                umdi_is_good(ort, ort->GetTensorMutableData(tensor->value, &data));
    if (facts != NULL)
        ort->ReleaseTensorTypeAndShapeInfo(facts);
    tensor->data = data;
    return good;
}

umd_status umdi_graph_run(const umdi_graph *graph, umdi_control *control,
                          const OrtValue *const *inputs, const char *const *names, size_t count,
                          umdi_tensor *outputs)
{
    const umdi_ort *ort = graph->ort;
    const char *input_names[UMDI_FUSION_INPUTS];
    OrtValue *values[2] = {NULL, NULL};
    OrtStatus *problem;
    bool good;
    memset(outputs, 0, count * sizeof *outputs);
    UMDI_TRY(umdi_control_check(control));
    for (size_t i = 0; i < input_count[graph->part]; i++)
        input_names[i] = inputs_of[graph->part][i].name;
    problem = ort->Run(graph->session, control->run, input_names, inputs, input_count[graph->part],
                       names, count, values);
    good = umdi_is_good(ort, problem);
    for (size_t i = 0; i < count; i++) {
        outputs[i].value = values[i];
        good = good && describe(ort, &outputs[i]);
    }
    if (good)
        return UMD_OK;
    for (size_t i = 0; i < count; i++) {
        if (outputs[i].value != NULL)
            ort->ReleaseValue(outputs[i].value);
        outputs[i].value = NULL;
    }
    UMDI_TRY(umdi_control_check(control));
    return umdi_fail(UMD_ERROR_INFERENCE,
                     "'%s' failed in ONNX Runtime %.40s; run the self-test on this machine",
                     graph->name.text, ort->version);
}

umd_status umdi_tensor_wrap(const umdi_runtime *runtime, void *data, size_t bytes,
                            const int64_t *shape, size_t rank, int type, OrtValue **out)
{
    const umdi_ort *ort = &runtime->ort;
    if (umdi_is_good(ort, ort->CreateTensorWithDataAsOrtValue(runtime->memory, data, bytes, shape,
                                                              rank, type, out)))
        return UMD_OK;
    return umdi_fail(UMD_ERROR_INFERENCE, "ONNX Runtime %.40s cannot take an input", ort->version);
}

void umdi_value_free(const umdi_runtime *runtime, OrtValue **value)
{
    if (*value != NULL)
        runtime->ort.ReleaseValue(*value);
    *value = NULL;
}

size_t umdi_tensor_size(const umdi_tensor *tensor)
{
    size_t size = 1;
    for (size_t i = 0; i < tensor->rank; i++)
        size *= (size_t)tensor->shape[i];
    return size;
}
