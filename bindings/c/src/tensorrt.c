#define _POSIX_C_SOURCE 200809L
#include "tensorrt.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_PATH_BYTES 4096
#define MAX_BATCH 16 /* as `umd-edge build-engine` */
#define USUAL_LENGTH 16
#define PROFILE_BYTES 512

/* Shapes of all inputs, `name:1x2x3,name:4x5`: the smallest, usual and largest that are taken. */
enum { SMALLEST, USUAL, LARGEST, SHAPES };

typedef struct profile {
    char shapes[SHAPES][PROFILE_BYTES];
} profile;

umd_status umdi_tensorrt_variant(const umdi_manifest *manifest, const umdi_variant **out)
{
    static const char *const made_for_it[] = {"int8-trt", "fp32"};
    *out = NULL;
    for (size_t i = 0; i < UMDI_COUNT(made_for_it) && *out == NULL; i++)
        *out = umdi_manifest_variant(manifest, umdi_of(made_for_it[i]));
    if (*out != NULL)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_USAGE,
                     "the bundle has neither of the variants 'int8-trt' and 'fp32' that TensorRT "
                     "takes; export one of them (umd-edge-export bundle --variants), or name one "
                     "to try");
}

umd_status umdi_tensorrt_check(const umdi_runtime *runtime)
{
    const umdi_ort *ort = &runtime->ort;
    const char *engines = runtime->options.engines;
    struct stat facts;
    char **names = NULL;
    int count = 0;
    bool found = false;
    if (umdi_is_good(ort, ort->GetAvailableProviders(&names, &count))) {
        for (int i = 0; i < count; i++)
            found = found || strcmp(names[i], "TensorrtExecutionProvider") == 0;
        umdi_is_good(ort, ort->ReleaseAvailableProviders(names, count));
    }
    if (!found)
        return umdi_fail(UMD_ERROR_PROVIDER_UNAVAILABLE,
                         "provider 'tensorrt' is not in this ONNX Runtime %.40s; give the path of "
                         "a build that has it, or choose 'cpu'",
                         ort->version);
    if (engines == NULL)
        return umdi_fail(UMD_ERROR_USAGE,
                         "engines is NULL; name a folder in umd_open_options.engines: building "
                         "them takes minutes, and is done once");
    if (strlen(engines) > MAX_PATH_BYTES / 2 || stat(engines, &facts) != 0 ||
        !S_ISDIR(facts.st_mode))
        return umdi_fail(UMD_ERROR_USAGE, "the folder '%.300s' for engines is not there; make it",
                         engines);
    return UMD_OK;
}

/* ---- the shapes that an engine takes ---- */

static bool is_of_words(const char *name)
{
    return strcmp(name, "input_ids") == 0 || strcmp(name, "attention_mask") == 0 ||
           strcmp(name, "text_tokens") == 0;
}

/* The range of one axis. False: it is neither fixed nor batch nor text length. */
static bool axis_range(const char *name, size_t axis, int64_t size, int64_t longest,
                       int64_t range[SHAPES])
{
    const int64_t usual = longest < USUAL_LENGTH ? longest : USUAL_LENGTH;
    range[SMALLEST] = range[USUAL] = range[LARGEST] = size;
    if (size >= 0)
        return true;
    range[SMALLEST] = range[USUAL] = 1;
    range[LARGEST] = MAX_BATCH;
    if (axis == 0)
        return true;
    range[USUAL] = usual;
    range[LARGEST] = longest;
    return axis == 1 && is_of_words(name);
}

static bool append(char text[PROFILE_BYTES], const char *name, int64_t size)
{
    size_t used = strlen(text);
    int length = name != NULL ? snprintf(text + used, PROFILE_BYTES - used, "%s%s:",
                                         used != 0 ? "," : "", name)
                              : snprintf(text + used, PROFILE_BYTES - used, "%s%lld",
                                         text[used - 1] != ':' ? "x" : "", (long long)size);
    return length > 0 && (size_t)length < PROFILE_BYTES - used;
}

static bool add_shape(profile *p, const char *name, const int64_t *shape, size_t rank,
                      int64_t longest)
{
    bool good = true;
    for (size_t i = 0; i < SHAPES; i++)
        good = good && append(p->shapes[i], name, 0);
    for (size_t axis = 0; axis < rank && good; axis++) {
        int64_t range[SHAPES];
        good = axis_range(name, axis, shape[axis], longest, range);
        for (size_t i = 0; i < SHAPES; i++)
            good = good && append(p->shapes[i], NULL, range[i]);
    }
    return good;
}

static bool add_input(profile *p, const umdi_graph *graph, OrtAllocator *allocator, size_t index,
                      int64_t longest)
{
    const umdi_ort *ort = graph->ort;
    const OrtTensorTypeAndShapeInfo *facts = NULL;
    OrtTypeInfo *info = NULL;
    int64_t shape[UMDI_MAX_RANK];
    char *name = NULL;
    size_t rank = 0;
    bool good = umdi_is_good(ort, ort->SessionGetInputName(graph->session, index, allocator,
                                                           &name)) &&
                umdi_is_good(ort, ort->SessionGetInputTypeInfo(graph->session, index, &info)) &&
                umdi_is_good(ort, ort->CastTypeInfoToTensorInfo(info, &facts)) &&
                umdi_is_good(ort, ort->GetDimensionsCount(facts, &rank)) &&
                rank <= UMDI_MAX_RANK &&
                umdi_is_good(ort, ort->GetDimensions(facts, shape, rank)) &&
                add_shape(p, name, shape, rank, longest);
    if (info != NULL)
        ort->ReleaseTypeInfo(info);
    if (name != NULL)
        umdi_is_good(ort, ort->AllocatorFree(allocator, name));
    return good;
}

static umd_status make_profile(profile *p, const umdi_graph *graph, int64_t longest)
{
    const umdi_ort *ort = graph->ort;
    OrtAllocator *allocator = NULL;
    size_t count = 0;
    bool good = umdi_is_good(ort, ort->GetAllocatorWithDefaultOptions(&allocator)) &&
                umdi_is_good(ort, ort->SessionGetInputCount(graph->session, &count));
    memset(p, 0, sizeof *p);
    for (size_t i = 0; i < count && good; i++)
        good = add_input(p, graph, allocator, i, longest);
    if (good)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                     "'%s' has an input with an axis of no fixed size; TensorRT needs one for "
                     "every axis but batch and text length: export the bundle anew",
                     graph->name.text);
}

/* ---- engines ---- */

/* A folder for each graph and version: ONNX Runtime's own names for engines do not tell graphs of
 * the same layers with other weights apart. */
static umd_status engine_folder(char out[MAX_PATH_BYTES], const umdi_runtime *runtime,
                                const umdi_file *file)
{
    int length = snprintf(out, MAX_PATH_BYTES, "%s/%.64s-", runtime->options.engines,
                          file->sha256.text);
    for (const char *c = runtime->ort.version; *c != '\0' && length < MAX_PATH_BYTES - 1; c++)
        out[length++] = *c == '/' ? '_' : *c;
    out[length] = '\0';
    if (mkdir(out, 0755) == 0 || errno == EEXIST)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_USAGE,
                     "the folder for engines cannot be written: %s; give one that can, or one that "
                     "has the engines of this bundle",
                     strerror(errno));
}

static umd_status refused(const umdi_graph *graph, OrtStatus *problem)
{
    const umdi_ort *ort = graph->ort;
    umd_status status = umdi_fail(
        UMD_ERROR_PROVIDER_UNAVAILABLE,
        "provider 'tensorrt' does not take '%s' (ONNX Runtime %.40s: %.300s); check TensorRT and "
        "the driver, or choose 'cpu'",
        graph->name.text, ort->version, ort->GetErrorMessage(problem));
    ort->ReleaseStatus(problem);
    return status;
}

/* Add the provider to the settings. */
static OrtStatus *append_provider(const umdi_ort *ort, OrtSessionOptions *settings,
                                  const profile *shapes, const char *folder, bool is_int8)
{
    const char *const pairs[][2] = {
        {"trt_int8_enable", is_int8 ? "1" : "0"},
        {"trt_fp16_enable", "0"},
        {"trt_engine_cache_enable", "1"},
        {"trt_engine_cache_path", folder},
        {"trt_timing_cache_enable", "1"},
        {"trt_timing_cache_path", folder},
        {"trt_profile_min_shapes", shapes->shapes[SMALLEST]},
        {"trt_profile_opt_shapes", shapes->shapes[USUAL]},
        {"trt_profile_max_shapes", shapes->shapes[LARGEST]},
    };
    const char *keys[UMDI_COUNT(pairs)], *values[UMDI_COUNT(pairs)];
    OrtTensorRTProviderOptionsV2 *given = NULL;
    OrtStatus *problem = ort->CreateTensorRTProviderOptions(&given);
    for (size_t i = 0; i < UMDI_COUNT(pairs); i++) {
        keys[i] = pairs[i][0];
        values[i] = pairs[i][1];
    }
    if (problem == NULL)
        problem = ort->UpdateTensorRTProviderOptions(given, keys, values, UMDI_COUNT(pairs));
    if (problem == NULL)
        problem = ort->SessionOptionsAppendExecutionProvider_TensorRT_V2(settings, given);
    if (given != NULL)
        ort->ReleaseTensorRTProviderOptions(given);
    /* A layer that TensorRT does not take is an error, not work for the processor. */
    if (problem == NULL)
        problem = ort->AddSessionConfigEntry(settings, "session.disable_cpu_ep_fallback", "1");
    return problem;
}

umd_status umdi_tensorrt_open(umdi_graph *graph, const umdi_runtime *runtime,
                              const umdi_manifest *manifest, const umdi_variant *variant,
                              const uint8_t *bytes, size_t size)
{
    const umdi_ort *ort = &runtime->ort;
    const umdi_file *file = umdi_manifest_file(manifest, graph->name);
    const bool is_int8 = variant->name.length >= 4 && memcmp(variant->name.text, "int8", 4) == 0;
    char folder[MAX_PATH_BYTES];
    OrtSessionOptions *settings;
    OrtSession *session = NULL;
    OrtStatus *problem;
    profile shapes;
    UMDI_TRY(make_profile(&shapes, graph, manifest->max_length));
    UMDI_TRY(engine_folder(folder, runtime, file));
    if (!umdi_runtime_settings(runtime, &settings))
        return umdi_fail(UMD_ERROR_PROVIDER_UNAVAILABLE, "ONNX Runtime %.40s cannot be set up",
                         ort->version);
    problem = append_provider(ort, settings, &shapes, folder, is_int8);
    if (problem == NULL)
        problem = ort->CreateSessionFromArray(runtime->env, bytes, size, settings, &session);
    ort->ReleaseSessionOptions(settings);
    if (problem != NULL)
        return refused(graph, problem);
    ort->ReleaseSession(graph->session);
    graph->session = session;
    return UMD_OK;
}
