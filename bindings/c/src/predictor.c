#define _POSIX_C_SOURCE 200809L
#include "predictor.h"

#include <string.h>

#define MAX_THREADS 256
#define VERSION "0.1.0"

uint32_t umd_abi_version(void)
{
    return UMD_ABI_VERSION;
}

const char *umd_version(void)
{
    return VERSION;
}

void umdi_log(const umd_predictor *predictor, int32_t level, const char *message)
{
    if (predictor->log != NULL)
        predictor->log(predictor->log_context, level, message);
}

umd_status umdi_read_file(const umd_predictor *predictor, umdi_text name, uint8_t **bytes,
                          size_t *size)
{
    const umdi_file *file = umdi_manifest_file(&predictor->manifest, name);
    const umdi_entry *entry = umdi_container_find(&predictor->container, name);
    char sha256[UMDI_SHA256_HEX];
    if (file == NULL || entry == NULL)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%.200s' is not in the bundle", name.text);
    UMDI_TRY(umdi_container_read(&predictor->container, entry, bytes));
    *size = (size_t)entry->size;
    umdi_sha256(*bytes, *size, sha256);
    if (memcmp(sha256, file->sha256.text, UMDI_SHA256_HEX - 1) == 0)
        return UMD_OK;
    umdi_delete(&predictor->allocator, *bytes);
    *bytes = NULL;
    return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                     "'%.200s' of the bundle is not the file that its manifest describes (SHA-256 "
                     "differs); do not use it, fetch the bundle again",
                     name.text);
}

static umd_status check_options(const umd_open_options *options)
{
    if (options->threads < 0 || options->threads > MAX_THREADS)
        return umdi_fail(UMD_ERROR_USAGE, "threads %d given; 1..%d is allowed, 0 means 1",
                         options->threads, MAX_THREADS);
    if (options->allocator != NULL &&
        (options->allocator->allocate == NULL || options->allocator->release == NULL))
        return umdi_fail(UMD_ERROR_USAGE, "an allocator needs both functions");
    return UMD_OK;
}

static umd_status open_any(const char *path, const void *bytes, size_t size,
                           const umd_open_options *given, umd_predictor **out)
{
    umd_open_options options;
    umd_allocator allocator;
    umd_predictor *predictor;
    umd_status status;
    if (out == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "out is NULL; give the address of a pointer");
    *out = NULL;
    UMDI_TRY(umdi_take(&options, sizeof options, given, "umd_open_options"));
    UMDI_TRY(check_options(&options));
    if (path == NULL && bytes == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "no bundle given; give a path, or its bytes");
    allocator = umdi_allocator(options.allocator);
    predictor = umdi_new(&allocator, 1, sizeof *predictor);
    if (predictor == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    atomic_init(&predictor->users, 1);
    atomic_init(&predictor->embedding_size, 0);
    predictor->allocator = allocator;
    predictor->log = options.log;
    predictor->log_context = options.log_context;
    umdi_arena_init(&predictor->arena, &allocator);
    predictor->has_lock = pthread_mutex_init(&predictor->lock, NULL) == 0;
    status = path != NULL
                 ? umdi_container_open(&predictor->container, &predictor->arena, path)
                 : umdi_container_open_memory(&predictor->container, &predictor->arena, bytes,
                                              size);
    if (status == UMD_OK)
        status = umdi_load(predictor, &options);
    if (status != UMD_OK) {
        umdi_log(predictor, UMD_LOG_ERROR, umd_last_error());
        umd_close(predictor);
        return status;
    }
    umdi_log(predictor, UMD_LOG_INFO, "bundle opened");
    *out = predictor;
    return UMD_OK;
}

umd_status umd_open(const char *path, const umd_open_options *options, umd_predictor **out)
{
    return open_any(path, NULL, 0, options, out);
}

umd_status umd_open_memory(const void *bytes, size_t size, const umd_open_options *options,
                           umd_predictor **out)
{
    return open_any(NULL, bytes, size, options, out);
}

void umdi_release(umd_predictor *predictor)
{
    umd_allocator allocator = predictor->allocator;
    if (atomic_fetch_sub(&predictor->users, 1) != 1)
        return;
    for (size_t i = 0; i < UMDI_CACHED_TEXTS; i++) {
        umdi_delete(&allocator, predictor->cache[i].text);
        umdi_features_free(predictor, predictor->cache[i].features);
    }
    umdi_values_free(predictor, &predictor->no_values);
    for (size_t part = 0; part < UMDI_PARTS; part++)
        umdi_graph_close(&predictor->graphs[part]);
    umdi_runtime_close(&predictor->runtime);
    umdi_arena_free(&predictor->arena);
    if (predictor->has_lock)
        pthread_mutex_destroy(&predictor->lock);
    umdi_delete(&allocator, predictor);
}

void umd_close(umd_predictor *predictor)
{
    if (predictor != NULL)
        umdi_release(predictor);
}
