#include "runtime.h"

#include <string.h>

#include "tensorrt.h"

#define NO_OPTIMISATION 0 /* ORT_DISABLE_ALL */

static const char *const provider_names[] = {[UMDI_CPU] = "cpu", [UMDI_TENSORRT] = "tensorrt"};

umd_status umdi_provider_find(const char *name, enum umdi_provider *out)
{
    *out = UMDI_CPU;
    for (size_t i = 0; name != NULL && i < UMDI_COUNT(provider_names); i++)
        if (strcmp(name, provider_names[i]) == 0) {
            *out = (enum umdi_provider)i;
            return UMD_OK;
        }
    if (name == NULL)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_PROVIDER_UNAVAILABLE,
                     "provider '%.60s' is unknown to this library; 'cpu' or 'tensorrt' is allowed",
                     name);
}

const char *umdi_provider_name(enum umdi_provider provider)
{
    return provider_names[provider];
}

/* ONNX Runtime would write to standard error; what it says comes back as a status as well. */
static void ignore(void *context, int severity, const char *category, const char *id,
                   const char *location, const char *message)
{
    (void)context, (void)severity, (void)category, (void)id, (void)location, (void)message;
}

bool umdi_runtime_settings(const umdi_runtime *runtime, OrtSessionOptions **out)
{
    const umdi_ort *ort = &runtime->ort;
    bool good;
    *out = NULL;
    good = umdi_is_good(ort, ort->CreateSessionOptions(out)) &&
           umdi_is_good(ort, ort->DisableCpuMemArena(*out)) &&
           umdi_is_good(ort, ort->SetIntraOpNumThreads(*out, runtime->options.threads)) &&
           umdi_is_good(ort, ort->SetInterOpNumThreads(*out, 1)) &&
           /* Waiting threads sleep: a device that asks now and then must not burn a core. */
           umdi_is_good(ort, ort->AddSessionConfigEntry(*out, "session.intra_op.allow_spinning",
                                                        "0"));
    if (good && runtime->options.u8u8)
        good = umdi_is_good(ort, ort->AddSessionConfigEntry(*out, "session.x64quantprecision",
                                                            "1"));
    if (!good && *out != NULL) {
        ort->ReleaseSessionOptions(*out);
        *out = NULL;
    }
    return good;
}

umd_status umdi_runtime_open(umdi_runtime *runtime, const umdi_runtime_options *options)
{
    const umdi_ort *ort = &runtime->ort;
    const int severity = 3, allocator = 0, memory = 0;
    bool good;
    memset(runtime, 0, sizeof *runtime);
    runtime->options = *options;
    UMDI_TRY(umdi_ort_load(&runtime->ort, options->library));
    good = umdi_is_good(ort, ort->CreateEnvWithCustomLogger(ignore, NULL, severity, "umd_edge",
                                                            &runtime->env)) &&
           umdi_is_good(ort, ort->CreateCpuMemoryInfo(allocator, memory, &runtime->memory)) &&
           umdi_runtime_settings(runtime, &runtime->settings);
    /* On the processor such a graph is only looked at. */
    if (good && options->provider != UMDI_CPU)
        good = umdi_is_good(ort, ort->SetSessionGraphOptimizationLevel(runtime->settings,
                                                                       NO_OPTIMISATION));
    if (!good)
        return umdi_fail(UMD_ERROR_PROVIDER_UNAVAILABLE,
                         "ONNX Runtime %.40s cannot be set up; try another version", ort->version);
    return options->provider == UMDI_TENSORRT ? umdi_tensorrt_check(runtime) : UMD_OK;
}

void umdi_runtime_close(umdi_runtime *runtime)
{
    const umdi_ort *ort = &runtime->ort;
    if (runtime->memory != NULL)
        ort->ReleaseMemoryInfo(runtime->memory);
    if (runtime->settings != NULL)
        ort->ReleaseSessionOptions(runtime->settings);
    if (runtime->env != NULL)
        ort->ReleaseEnv(runtime->env);
    memset(runtime, 0, sizeof *runtime);
}
