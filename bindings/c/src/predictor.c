#define _POSIX_C_SOURCE 200809L
#include "predictor.h"

#include <stdio.h>
#include <string.h>

#include "signature.h"

#define MAX_THREADS 256
#define MIN_SIDE 16 /* of images that are looked at for what they are like */
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

/* Before the manifest is parsed: nobody's text but the maker's is read. */
static umd_status check_signature(umd_predictor *predictor, const char *keys)
{
    const umdi_entry *entry = umdi_container_find(&predictor->container, umdi_of("manifest.sig"));
    umdi_text signatures = {NULL, 0};
    uint8_t *bytes = NULL;
    umd_status status;
    predictor->signature = entry != NULL ? UMD_SIGNATURE_NOT_CHECKED : UMD_UNSIGNED;
    if (keys == NULL) {
        if (entry != NULL)
            umdi_log(predictor, UMD_LOG_WARNING,
                     "the bundle is signed, and nobody said by whom it should be: not checked");
        return UMD_OK;
    }
    if (entry != NULL && entry->size <= UMDI_MAX_SIGNATURES * UMDI_SIGNATURE_BYTES) {
        UMDI_TRY(umdi_container_read(&predictor->container, entry, &bytes));
        signatures.text = (const char *)bytes;
        signatures.length = (size_t)entry->size;
    } else if (entry != NULL) {
        signatures.text = ""; /* not read: its size alone is wrong */
        signatures.length = (size_t)entry->size;
    }
    status = umdi_signature_check(predictor->manifest_text, signatures, keys);
    umdi_delete(&predictor->allocator, bytes);
    if (status == UMD_OK)
        predictor->signature = UMD_SIGNATURE_VERIFIED;
    return status;
}

static umd_status read_manifest(umd_predictor *predictor, const umd_open_options *options)
{
    const umdi_entry *entry =
        umdi_container_find(&predictor->container, umdi_of("manifest.json"));
    uint8_t *bytes;
    umd_status status = UMD_OK;
    if (entry == NULL)
        return umdi_fail(UMD_ERROR_BUNDLE_NOT_FOUND,
                         "the bundle holds no manifest.json; give one made by umd-edge-export");
    if (entry->size > UMDI_MAX_MANIFEST_BYTES)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "manifest.json is too large; at most %u bytes are allowed",
                         UMDI_MAX_MANIFEST_BYTES);
    UMDI_TRY(umdi_container_read(&predictor->container, entry, &bytes));
    umdi_sha256(bytes, (size_t)entry->size, predictor->sha256);
    predictor->manifest_text.length = (size_t)entry->size;
    predictor->manifest_text.text =
        umdi_arena_copy(&predictor->arena, (const char *)bytes, (size_t)entry->size);
    umdi_delete(&predictor->allocator, bytes);
    if (predictor->manifest_text.text == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (options->sha256 != NULL && strcmp(options->sha256, predictor->sha256) != 0)
        status = umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                           "this is bundle %s, not the one that was asked for by its SHA-256; "
                           "do not use it",
                           predictor->sha256);
    if (status == UMD_OK)
        status = check_signature(predictor, options->public_keys);
    if (status == UMD_OK)
        status = umdi_manifest_parse(&predictor->arena, predictor->manifest_text,
                                     &predictor->manifest);
    return status;
}

/* The files that are there are those that the manifest lists, with the sizes it says. */
static umd_status check_listing(const umd_predictor *predictor)
{
    const umdi_manifest *manifest = &predictor->manifest;
    for (size_t i = 0; i < predictor->container.count; i++) {
        const umdi_entry *entry = &predictor->container.entries[i];
        const umdi_file *file = umdi_manifest_file(manifest, entry->name);
        if (umdi_equal(entry->name, "manifest.json") || umdi_equal(entry->name, "manifest.sig"))
            continue;
        if (file == NULL)
            return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                             "'%s' is in the bundle, but its manifest does not list it; remove it",
                             entry->name.text);
        if (file->size != entry->size)
            return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                             "'%s' has %llu bytes, its manifest says %llu: the bundle is truncated "
                             "or altered; fetch it again",
                             entry->name.text, (unsigned long long)entry->size,
                             (unsigned long long)file->size);
    }
    for (size_t i = 0; i < manifest->file_count; i++)
        if (umdi_container_find(&predictor->container, manifest->files[i].name) == NULL)
            return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%s' is missing from the bundle",
                             manifest->files[i].name.text);
    return UMD_OK;
}

static umd_status choose_variant(umd_predictor *predictor, const char *name)
{
    const umdi_manifest *manifest = &predictor->manifest;
    predictor->variant = umdi_manifest_variant(
        manifest, name != NULL ? umdi_of(name) : manifest->default_variant);
    if (predictor->variant == NULL)
        return umdi_fail(UMD_ERROR_USAGE,
                         "the bundle has no variant '%.60s'; leave it out for '%s'", name,
                         manifest->default_variant.text);
    return UMD_OK;
}

/* Whether products of unsigned and signed bytes can saturate here: on x86-64 without VNNI. */
static bool needs_u8u8(void)
{
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[8192];
    bool found = false, has_vnni = false;
    if (file == NULL)
        return true;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = strncmp(line, "flags", 5) == 0;
    fclose(file);
    for (char *rest = NULL, *word = found ? strtok_r(line, " \t\n", &rest) : NULL; word != NULL;
         word = strtok_r(NULL, " \t\n", &rest))
        has_vnni = has_vnni || strcmp(word, "avx512_vnni") == 0 || strcmp(word, "avx_vnni") == 0;
    return !has_vnni;
#else
    return false;
#endif
}

static umd_status open_graphs(umd_predictor *predictor)
{
    umd_status status = UMD_OK;
    for (size_t part = 0; part < UMDI_PARTS && status == UMD_OK; part++) {
        umdi_text name = predictor->variant->graphs[part];
        uint8_t *bytes;
        size_t size;
        UMDI_TRY(umdi_read_file(predictor, name, &bytes, &size));
        status = umdi_graph_open(&predictor->graphs[part], &predictor->runtime,
                                 &predictor->manifest, (enum umdi_part)part, name, bytes, size);
        umdi_delete(&predictor->allocator, bytes);
    }
    return status;
}

static umd_status read_tokenizer(umd_predictor *predictor)
{
    uint8_t *bytes;
    size_t size;
    umd_status status;
    UMDI_TRY(umdi_read_file(predictor, predictor->manifest.tokenizer, &bytes, &size));
    umdi_text source = {(const char *)bytes, size};
    status = umdi_tokenizer_parse(&predictor->tokenizer, &predictor->arena, source,
                                  (size_t)predictor->manifest.max_length);
    umdi_delete(&predictor->allocator, bytes);
    return status;
}

static umd_status read_ood(umd_predictor *predictor)
{
    const umdi_manifest *manifest = &predictor->manifest;
    for (size_t i = 0; i < manifest->task_count; i++) {
        const umdi_task *task = &manifest->tasks[i];
        uint8_t *bytes;
        size_t size;
        umd_status status;
        if (task->ood.file.text == NULL)
            continue;
        if (manifest->preprocessing.height < MIN_SIDE || manifest->preprocessing.width < MIN_SIDE)
            return umdi_fail(UMD_ERROR_MANIFEST, "manifest.json: out_of_distribution needs images "
                             "of at least %d x %d pixels", MIN_SIDE, MIN_SIDE);
        if (predictor->ood == NULL)
            predictor->ood = umdi_arena_new(&predictor->arena, manifest->task_count,
                                            sizeof *predictor->ood);
        if (predictor->ood == NULL)
            return UMD_ERROR_OUT_OF_MEMORY;
        UMDI_TRY(umdi_read_file(predictor, task->ood.file, &bytes, &size));
        status = umdi_ood_load(&predictor->arena, bytes, size, task->name, &predictor->ood[i]);
        umdi_delete(&predictor->allocator, bytes);
        if (status != UMD_OK)
            return status;
    }
    return UMD_OK;
}

static umd_status load(umd_predictor *predictor, const umd_open_options *options)
{
    const char *const paths[] = {"", "native", "u8u8"};
    bool is_int8, u8u8;
    UMDI_TRY(read_manifest(predictor, options));
    UMDI_TRY(check_listing(predictor));
    UMDI_TRY(choose_variant(predictor, options->variant));
    UMDI_TRY(read_tokenizer(predictor));
    is_int8 = predictor->variant->name.length >= 4 &&
              memcmp(predictor->variant->name.text, "int8", 4) == 0;
    u8u8 = predictor->variant->may_saturate && needs_u8u8();
    predictor->int8_path = paths[is_int8 + u8u8];
    UMDI_TRY(umdi_runtime_open(&predictor->runtime, options->onnxruntime,
                               options->threads != 0 ? options->threads : 1, u8u8));
    UMDI_TRY(open_graphs(predictor));
    UMDI_TRY(read_ood(predictor));
    return umdi_values_init(predictor, &predictor->no_values);
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
        status = load(predictor, &options);
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
