/* From the place of a bundle to a predictor: what is checked, in which order, before it is used. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>

#include "predictor.h"
#include "signature.h"
#include "tensorrt.h"
#include "worker.h"

#define MIN_SIDE 16 /* of images that are looked at for what they are like */

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

static umd_status choose_variant(umd_predictor *predictor, const char *name,
                                 enum umdi_provider provider)
{
    const umdi_manifest *manifest = &predictor->manifest;
    if (name == NULL && provider == UMDI_TENSORRT)
        return umdi_tensorrt_variant(manifest, &predictor->variant);
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

/* Models of the tasks whose scores lie in that file. */
static umd_status read_ood_file(umd_predictor *predictor, umdi_text name)
{
    const umdi_manifest *manifest = &predictor->manifest;
    uint8_t *bytes;
    size_t size;
    umd_status status = UMD_OK;
    UMDI_TRY(umdi_read_file(predictor, name, &bytes, &size));
    for (size_t i = 0; i < manifest->task_count && status == UMD_OK; i++) {
        const umdi_task *task = &manifest->tasks[i];
        if (task->ood.file.text != NULL && umdi_compare(task->ood.file, name) == 0)
            status = umdi_ood_load(&predictor->arena, bytes, size, task->name, &predictor->ood[i]);
    }
    umdi_delete(&predictor->allocator, bytes);
    return status;
}

static umd_status read_ood(umd_predictor *predictor)
{
    const umdi_manifest *manifest = &predictor->manifest;
    for (size_t i = 0; i < manifest->task_count; i++) {
        const umdi_task *task = &manifest->tasks[i];
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
        if (predictor->ood[i].centre == NULL)
            UMDI_TRY(read_ood_file(predictor, task->ood.file));
    }
    return UMD_OK;
}

typedef struct opening {
    umd_predictor *predictor;
    umdi_runtime_options options;
    enum umdi_part part;
    uint8_t *bytes; /* of the part's graph */
    size_t size;
} opening;

static umd_status open_runtime(void *argument)
{
    opening *o = argument;
    return umdi_runtime_open(&o->predictor->runtime, &o->options);
}

static umd_status read_graph(opening *o)
{
    return umdi_read_file(o->predictor, o->predictor->variant->graphs[o->part], &o->bytes,
                          &o->size);
}

static umd_status open_graph(void *argument)
{
    opening *o = argument;
    umd_predictor *predictor = o->predictor;
    return umdi_graph_open(&predictor->graphs[o->part], &predictor->runtime, &predictor->manifest,
                           predictor->variant, o->part, o->bytes, o->size);
}

static umd_status open_others(opening largest)
{
    opening o = largest;
    for (size_t part = 0; part < UMDI_PARTS; part++) {
        umd_status status;
        if (part == (size_t)largest.part)
            continue;
        o.part = (enum umdi_part)part;
        UMDI_TRY(read_graph(&o));
        status = open_graph(&o);
        umdi_delete(&o.predictor->allocator, o.bytes);
        UMDI_TRY(status);
    }
    return UMD_OK;
}

static enum umdi_part largest_graph(const umd_predictor *predictor)
{
    enum umdi_part largest = UMDI_VISION;
    uint64_t most = 0;
    for (size_t part = 0; part < UMDI_PARTS; part++) {
        const umdi_file *file =
            umdi_manifest_file(&predictor->manifest, predictor->variant->graphs[part]);
        if (file != NULL && file->size > most) {
            most = file->size;
            largest = (enum umdi_part)part;
        }
    }
    return largest;
}

/* What needs no ONNX Runtime: done while a worker loads it. */
static umd_status read_others(opening *o)
{
    UMDI_TRY(read_tokenizer(o->predictor));
    UMDI_TRY(read_ood(o->predictor));
    return read_graph(o);
}

/* ONNX Runtime takes most of the time that opening takes, and one core for it: the largest graph is
 * opened beside the others. Not so where TensorRT builds: it measures kernels, alone on its GPU. */
static umd_status open_all(opening *o)
{
    umdi_worker worker;
    umd_status status, other;
    umdi_ort_silence();
    umdi_worker_start(&worker, open_runtime, o);
    status = read_others(o);
    other = umdi_worker_join(&worker);
    if (status == UMD_OK && other == UMD_OK && o->options.provider != UMDI_CPU) {
        other = open_graph(o);
        status = other == UMD_OK ? open_others(*o) : other;
    } else if (status == UMD_OK && other == UMD_OK) {
        umdi_worker_start(&worker, open_graph, o);
        status = open_others(*o);
        other = umdi_worker_join(&worker);
    }
    umdi_delete(&o->predictor->allocator, o->bytes);
    return status != UMD_OK ? status : other;
}

/* Engines are files that no signature covers, and a device runs what they say. */
static umd_status check_engines(const umd_open_options *options, enum umdi_provider provider)
{
    if (options->engines != NULL && provider != UMDI_TENSORRT)
        return umdi_fail(UMD_ERROR_USAGE, "engines are of the provider 'tensorrt' alone; leave "
                         "umd_open_options.engines out, or name the provider");
    if (options->trust_engines != 0 && options->trust_engines != 1)
        return umdi_fail(UMD_ERROR_USAGE, "trust_engines %d given; 0 or 1 is allowed",
                         options->trust_engines);
    if (options->engines != NULL && options->public_keys != NULL && options->trust_engines == 0)
        return umdi_fail(UMD_ERROR_USAGE,
                         "the bundle must be signed, and engines are not: set trust_engines to 1 "
                         "where nobody but this program can write into their folder");
    return UMD_OK;
}

umd_status umdi_load(umd_predictor *predictor, const umd_open_options *options)
{
    static const char *const paths[] = {"", "native", "u8u8"};
    opening o = {predictor, {options->onnxruntime, 1, false, UMDI_CPU, options->engines},
                 UMDI_VISION, NULL, 0};
    umdi_runtime_options *r = &o.options;
    bool is_int8;
    UMDI_TRY(umdi_provider_find(options->provider, &r->provider));
    UMDI_TRY(check_engines(options, r->provider));
    UMDI_TRY(read_manifest(predictor, options));
    UMDI_TRY(check_listing(predictor));
    UMDI_TRY(choose_variant(predictor, options->variant, r->provider));
    is_int8 = predictor->variant->name.length >= 4 &&
              memcmp(predictor->variant->name.text, "int8", 4) == 0;
    r->u8u8 = r->provider == UMDI_CPU && predictor->variant->may_saturate && needs_u8u8();
    predictor->int8_path = paths[is_int8 + r->u8u8];
    if (options->threads != 0)
        r->threads = options->threads;
    if (r->provider == UMDI_TENSORRT)
        umdi_log(predictor, UMD_LOG_INFO, "opening TensorRT; building its engines takes minutes");
    o.part = largest_graph(predictor);
    UMDI_TRY(open_all(&o));
    predictor->runtime.options.library = predictor->runtime.options.engines = NULL;
    return umdi_values_init(predictor, &predictor->no_values);
}
