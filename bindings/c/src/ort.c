#define _POSIX_C_SOURCE 200809L
#include "ort.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#ifdef UMD_USE_ORT_HEADER
#include <onnxruntime_c_api.h>
#define UMDI_CHECK(place, name, result, parameters)                                                \
    _Static_assert(offsetof(OrtApi, name) == (place) * sizeof(void *), #name " has moved");
UMDI_ORT_FUNCTIONS(UMDI_CHECK)
#undef UMDI_CHECK
_Static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == UMDI_ORT_FLOAT, "element type");
_Static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == UMDI_ORT_INT64, "element type");
#endif

typedef void (*slot)(void);

typedef struct api_base {
    const slot *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} api_base;

static void *open_library(const char *path)
{
#ifdef __APPLE__
    static const char *const names[] = {"libonnxruntime.dylib"};
#else
    static const char *const names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
    void *library = NULL;
    if (path == NULL)
        path = getenv("UMD_ONNXRUNTIME");
    if (path != NULL)
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < UMDI_COUNT(names) && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

void umdi_ort_silence(void)
{
    static const char name[] = "ORT_DISABLE_TELEMETRY";
    const char *value = getenv(name);
    if (value == NULL || strcmp(value, "1") != 0)
        setenv(name, "1", 1);
}

umd_status umdi_ort_load(umdi_ort *ort, const char *path)
{
    const api_base *(*get_base)(void);
    const api_base *base;
    const slot *table;
    void *symbol, *library;
    library = open_library(path);
    memset(ort, 0, sizeof *ort);
    if (library == NULL)
        return umdi_fail(UMD_ERROR_MISSING_DEPENDENCY,
                         "ONNX Runtime cannot be opened (%.300s); give its path in "
                         "umd_open_options.onnxruntime or UMD_ONNXRUNTIME. `umd-edge c-info` "
                         "prints the one of a Python installation",
                         dlerror());
    symbol = dlsym(library, "OrtGetApiBase");
    if (symbol == NULL)
        return umdi_fail(UMD_ERROR_MISSING_DEPENDENCY,
                         "the library named for ONNX Runtime is another one: it has no "
                         "OrtGetApiBase");
    memcpy(&get_base, &symbol, sizeof get_base);
    base = get_base();
    ort->version = base->GetVersionString();
    table = base->GetApi(UMDI_ORT_API_VERSION);
    if (table == NULL)
        return umdi_fail(UMD_ERROR_PROVIDER_UNAVAILABLE,
                         "ONNX Runtime %.40s is too old; 1.%d or a newer one is needed",
                         ort->version, UMDI_ORT_API_VERSION);
#define UMDI_FETCH(place, name, result, parameters) ort->name = (result(*) parameters)table[place];
    UMDI_ORT_FUNCTIONS(UMDI_FETCH)
#undef UMDI_FETCH
    return UMD_OK;
}

bool umdi_is_good(const umdi_ort *ort, OrtStatus *status)
{
    if (status == NULL)
        return true;
    ort->ReleaseStatus(status);
    return false;
}
