/* A stand-in for an ONNX Runtime with TensorRT: the real library named by FAKE_REAL, whose functions
 * for providers write what they are given into the file FAKE_LOG. Sessions run on the processor.
 * FAKE_FAIL names the step that fails: create, update, append or session. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 200 /* every version from 1.18 on has more */

typedef struct status status;
typedef void (*slot)(void);

typedef struct api_base {
    const slot *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} api_base;

const api_base *OrtGetApiBase(void);

static slot table[SLOTS];
static const slot *real;
static const api_base *real_base;
static int is_appended; /* since the last session */

static void note(const char *format, const char *first, const char *second)
{
    FILE *file = fopen(getenv("FAKE_LOG"), "a");
    if (file == NULL)
        abort();
    fprintf(file, format, first, second);
    fclose(file);
}

static status *step(const char *name)
{
    const char *failing = getenv("FAKE_FAIL");
    if (failing == NULL || strcmp(failing, name) != 0)
        return NULL;
    return ((status * (*)(int, const char *)) real[0])(1, "libnvinfer.so.10 is not there");
}

static status *get_providers(char ***names, int *count)
{
    static char *list[] = {"TensorrtExecutionProvider", "CPUExecutionProvider"};
    *names = list;
    *count = 2;
    return NULL;
}

static status *release_providers(char **names, int count)
{
    note("release %s\n", names[count - 1], "");
    return NULL;
}

static status *create_options(void **out)
{
    static int options;
    status *problem = step("create");
    *out = problem == NULL ? &options : NULL;
    return problem;
}

static status *update_options(void *options, const char *const *keys, const char *const *values,
                              size_t count)
{
    (void)options;
    for (size_t i = 0; i < count; i++)
        note("%s=%s\n", keys[i], values[i]);
    return step("update");
}

static status *append_provider(void *settings, const void *options)
{
    status *problem = step("append");
    (void)settings, (void)options;
    is_appended = problem == NULL;
    return problem;
}

static void release_options(void *options)
{
    (void)options;
    note("released\n", "", "");
}

static status *add_entry(void *settings, const char *key, const char *value)
{
    if (strcmp(key, "session.disable_cpu_ep_fallback") == 0) {
        note("%s=%s\n", key, value);
        return NULL;
    }
    return ((status * (*)(void *, const char *, const char *)) real[130])(settings, key, value);
}

static status *create_session(void *env, const void *bytes, size_t size, void *settings, void **out)
{
    status *problem = is_appended ? step("session") : NULL;
    note("session %s\n", is_appended ? "tensorrt" : "cpu", "");
    is_appended = 0;
    if (problem != NULL)
        return problem;
    return ((status * (*)(void *, const void *, size_t, void *, void **)) real[8])(env, bytes, size,
                                                                                  settings, out);
}

static const slot *get_api(uint32_t version)
{
    real = real_base->GetApi(version);
    if (real == NULL)
        return NULL;
    memcpy(table, real, sizeof table);
    table[8] = (slot)create_session;
    table[125] = (slot)get_providers;
    table[126] = (slot)release_providers;
    table[130] = (slot)add_entry;
    table[170] = (slot)append_provider;
    table[171] = (slot)create_options;
    table[172] = (slot)update_options;
    table[174] = (slot)release_options;
    return table;
}

static const char *get_version(void)
{
    return real_base->GetVersionString();
}

const api_base *OrtGetApiBase(void)
{
    static const api_base base = {get_api, get_version};
    const api_base *(*get_base)(void);
    void *library = dlopen(getenv("FAKE_REAL"), RTLD_NOW | RTLD_LOCAL);
    void *symbol = library != NULL ? dlsym(library, "OrtGetApiBase") : NULL;
    if (symbol == NULL)
        abort();
    memcpy(&get_base, &symbol, sizeof get_base);
    real_base = get_base();
    return &base;
}
