#include "manifest.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "container.h"
#include "fields.h"
#include "task.h"

#define FORMAT_VERSION 1
#define MAX_ITEMS 1024 /* of tasks, structured fields and variants; a bundle has a few */

static const char *const none[] = {NULL};

static umd_status check_items(const umdi_json *value, const char *path, enum umdi_json_type type)
{
    UMDI_TRY(umdi_check_type(value, path, type));
    if (value->count > MAX_ITEMS)
        return umdi_bad_field(path, "more than 1024 items; this library reads no more");
    return UMD_OK;
}

/* Looked at before anything else: a newer format may have any other keys. */
static umd_status check_version(const umdi_json *top)
{
    const umdi_json *version = umdi_json_get(top, "format_version");
    const umdi_json *needs = umdi_json_get(top, "requires");
    if (version == NULL)
        return umdi_bad_field("format_version", "missing; this is not a umd-edge manifest");
    if (version->type != UMDI_INTEGER || version->number < 1)
        return umdi_bad_field("format_version", "a positive integer is needed");
    if (version->number != FORMAT_VERSION)
        return umdi_fail(UMD_ERROR_BUNDLE_VERSION,
                         "the bundle has format_version %.0f; this library reads %d only. Install "
                         "a umd-edge that reads that version",
                         version->number, FORMAT_VERSION);
    if (needs != NULL && needs->type == UMDI_ARRAY)
        for (needs = needs->items; needs != NULL; needs = needs->next)
            if (needs->type == UMDI_STRING)
                return umdi_fail(UMD_ERROR_BUNDLE_VERSION,
                                 "the bundle requires '%.60s', which this library does not know; "
                                 "install a newer one",
                                 needs->string.text);
    return UMD_OK;
}

static umd_status read_intended_use(umdi_arena *arena, const umdi_json *value,
                                    umdi_manifest *manifest)
{
    static const char *const needed[] = {"statement", "not_a_medical_device", NULL};
    static const char *const optional[] = {"users", "population", "limits", NULL};
    const umdi_json *item;
    umdi_text text, *texts;
    size_t count;
    UMDI_TRY(umdi_check_object(value, "intended_use", needed, optional));
    if (umdi_json_get(value, "not_a_medical_device")->type != UMDI_TRUE)
        return umdi_bad_field("intended_use.not_a_medical_device",
                              "true is the only value allowed");
    if ((item = umdi_json_get(value, "population")) != NULL)
        UMDI_TRY(umdi_read_text(item, "intended_use.population", &text));
    if ((item = umdi_json_get(value, "users")) != NULL)
        UMDI_TRY(umdi_read_texts(arena, item, "intended_use.users", &texts, &count));
    if ((item = umdi_json_get(value, "limits")) != NULL)
        UMDI_TRY(umdi_read_texts(arena, item, "intended_use.limits", &texts, &count));
    return umdi_read_filled(umdi_json_get(value, "statement"), "intended_use.statement",
                            &manifest->statement);
}

static umd_status read_numbers(const umdi_json *list, const char *path, size_t count,
                               double numbers[3])
{
    size_t i = 0;
    if (list == NULL || list->type != UMDI_ARRAY || list->count != count)
        return umdi_bad_field(path, "one number per channel is needed");
    for (const umdi_json *item = list->items; item != NULL; item = item->next)
        UMDI_TRY(umdi_read_number(item, path, &numbers[i++]));
    return UMD_OK;
}

static umd_status read_preprocessing(const umdi_json *value, umdi_preprocessing *spec)
{
    static const char *const needed[] = {"height",           "width", "channels",
                                         "coefficient_bits", "mean",  "std",
                                         NULL};
    int64_t height, width, channels, bits;
    UMDI_TRY(umdi_check_object(value, "preprocessing", needed, none));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "height"), "preprocessing.height", 8, 4096,
                               &height));
    UMDI_TRY(
        umdi_read_integer(umdi_json_get(value, "width"), "preprocessing.width", 8, 4096, &width));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "channels"), "preprocessing.channels", 1, 3,
                               &channels));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "coefficient_bits"),
                               "preprocessing.coefficient_bits", 8, 24, &bits));
    if (channels == 2)
        return umdi_bad_field("preprocessing.channels", "1 or 3 allowed");
    spec->height = (int32_t)height;
    spec->width = (int32_t)width;
    spec->channels = (int32_t)channels;
    spec->bits = (int32_t)bits;
    UMDI_TRY(read_numbers(umdi_json_get(value, "mean"), "preprocessing.mean", (size_t)channels,
                          spec->mean));
    UMDI_TRY(read_numbers(umdi_json_get(value, "std"), "preprocessing.std", (size_t)channels,
                          spec->std));
    for (int64_t i = 0; i < channels; i++)
        if (!(spec->std[i] > 0))
            return umdi_bad_field("preprocessing.std", "positive numbers are needed");
    return UMD_OK;
}

static umd_status read_tokenizer(const umdi_json *value, umdi_manifest *manifest)
{
    static const char *const needed[] = {"file", "max_length", NULL};
    int64_t length;
    UMDI_TRY(umdi_check_object(value, "tokenizer", needed, none));
    UMDI_TRY(umdi_read_path(umdi_json_get(value, "file"), "tokenizer.file", &manifest->tokenizer));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "max_length"), "tokenizer.max_length", 4, 4096,
                               &length));
    manifest->max_length = (int32_t)length;
    return UMD_OK;
}

static umd_status read_fields(umdi_arena *arena, const umdi_json *list, umdi_manifest *manifest)
{
    char path[UMDI_MAX_PATH];
    UMDI_TRY(check_items(list, "structured_fields", UMDI_ARRAY));
    manifest->fields = umdi_arena_new(arena, list->count, sizeof *manifest->fields);
    if (manifest->fields == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = list->items; item != NULL; item = item->next) {
        umdi_field *field = &manifest->fields[manifest->field_count];
        snprintf(path, sizeof path, "structured_fields[%zu]", manifest->field_count);
        UMDI_TRY(umdi_field_parse(arena, item, path, field));
        for (size_t i = 0; i < manifest->field_count; i++)
            if (umdi_compare(manifest->fields[i].name, field->name) == 0)
                return umdi_bad_field("structured_fields", "names must differ");
        manifest->field_count++;
    }
    if (manifest->field_count == 0)
        return umdi_bad_field("structured_fields", "at least one field is needed");
    return UMD_OK;
}

static umd_status read_tasks(umdi_arena *arena, const umdi_json *list, umdi_manifest *manifest)
{
    char path[UMDI_MAX_PATH];
    UMDI_TRY(check_items(list, "tasks", UMDI_ARRAY));
    manifest->tasks = umdi_arena_new(arena, list->count, sizeof *manifest->tasks);
    if (manifest->tasks == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = list->items; item != NULL; item = item->next) {
        umdi_task *task = &manifest->tasks[manifest->task_count];
        snprintf(path, sizeof path, "tasks[%zu]", manifest->task_count);
        UMDI_TRY(umdi_task_parse(arena, item, path, manifest, task));
        for (size_t i = 0; i < manifest->task_count; i++)
            if (umdi_compare(manifest->tasks[i].output_name, task->output_name) == 0)
                return umdi_bad_field("tasks", "names must differ");
        manifest->task_count++;
    }
    if (manifest->task_count == 0)
        return umdi_bad_field("tasks", "at least one task is needed");
    return UMD_OK;
}

static umd_status read_variant(const umdi_json *value, umdi_variant *variant)
{
    static const char *const needed[] = {"graphs", "golden_tolerance", NULL};
    static const char *const optional[] = {"notes", NULL};
    static const char *const parts[] = {"vision", "text", "fusion", NULL};
    const umdi_json *graphs = umdi_json_get(value, "graphs");
    const umdi_json *notes = umdi_json_get(value, "notes");
    const umdi_json *bits = umdi_json_get(notes, "weight_bits");
    variant->name = value->key;
    if (!umdi_is_name(variant->name))
        return umdi_bad_field("variants", "a name such as 'int8' is needed");
    UMDI_TRY(umdi_check_object(value, "variants", needed, optional));
    UMDI_TRY(umdi_check_object(graphs, "variants.graphs", parts, none));
    for (size_t i = 0; i < UMDI_PARTS; i++)
        UMDI_TRY(umdi_read_path(umdi_json_get(graphs, parts[i]), "variants.graphs",
                                &variant->graphs[i]));
    UMDI_TRY(umdi_read_number(umdi_json_get(value, "golden_tolerance"),
                              "variants.golden_tolerance", &variant->tolerance));
    if (variant->tolerance < 0)
        return umdi_bad_field("variants.golden_tolerance", "a number of at least 0 is needed");
    if (notes != NULL)
        UMDI_TRY(umdi_check_type(notes, "variants.notes", UMDI_OBJECT));
    variant->weight_bits = 8; /* where the notes do not say */
    if (bits != NULL && bits->type == UMDI_INTEGER && bits->number >= 2 && bits->number <= 8)
        variant->weight_bits = (int)bits->number;
    variant->may_saturate =
        variant->name.length >= 4 && memcmp(variant->name.text, "int8", 4) == 0 &&
        (bits == NULL || bits->type != UMDI_INTEGER || bits->number >= 8);
    return UMD_OK;
}

static umd_status read_variants(umdi_arena *arena, const umdi_json *top, umdi_manifest *manifest)
{
    const umdi_json *object = umdi_json_get(top, "variants");
    UMDI_TRY(check_items(object, "variants", UMDI_OBJECT));
    manifest->variants = umdi_arena_new(arena, object->count, sizeof *manifest->variants);
    if (manifest->variants == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = object->items; item != NULL; item = item->next)
        UMDI_TRY(read_variant(item, &manifest->variants[manifest->variant_count++]));
    UMDI_TRY(umdi_read_filled(umdi_json_get(top, "default_variant"), "default_variant",
                              &manifest->default_variant));
    if (umdi_manifest_variant(manifest, manifest->default_variant) == NULL)
        return umdi_bad_field("default_variant", "must be one of the variants");
    return UMD_OK;
}

static umd_status read_file(const umdi_json *value, umdi_file *file)
{
    static const char *const needed[] = {"size", "sha256", NULL};
    int64_t size;
    file->name = value->key;
    if (!umdi_is_safe_path(file->name))
        return umdi_bad_field("files", "a path inside the bundle is needed");
    UMDI_TRY(umdi_check_object(value, "files", needed, none));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "size"), "files.size", 0, UMDI_MAX_FILE_BYTES,
                               &size));
    file->size = (uint64_t)size;
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "sha256"), "files.sha256", &file->sha256));
    if (!umdi_is_sha256(file->sha256))
        return umdi_bad_field("files.sha256", "64 hexadecimal digits are needed");
    return UMD_OK;
}

static umd_status read_files(umdi_arena *arena, const umdi_json *object, umdi_manifest *manifest)
{
    UMDI_TRY(umdi_check_type(object, "files", UMDI_OBJECT));
    if (object->count > UMDI_MAX_FILES)
        return umdi_bad_field("files", "at most 256 files are allowed");
    manifest->files = umdi_arena_new(arena, object->count, sizeof *manifest->files);
    if (manifest->files == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = object->items; item != NULL; item = item->next) {
        umdi_file *file = &manifest->files[manifest->file_count];
        UMDI_TRY(read_file(item, file));
        for (size_t i = 0; i < manifest->file_count; i++)
            if (umdi_equal_folded(manifest->files[i].name, file->name))
                return umdi_bad_field("files", "two paths differ in upper and lower case only");
        if (umdi_equal_folded(file->name, umdi_of("manifest.json")) ||
            umdi_equal_folded(file->name, umdi_of("manifest.sig")))
            return umdi_bad_field("files", "manifest.json and manifest.sig are not listed");
        manifest->file_count++;
    }
    return UMD_OK;
}

static umd_status check_used(const umdi_manifest *manifest)
{
    bool known = umdi_manifest_file(manifest, manifest->tokenizer) != NULL &&
                 umdi_manifest_file(manifest, manifest->golden) != NULL;
    for (size_t i = 0; i < manifest->variant_count; i++)
        for (size_t part = 0; part < UMDI_PARTS; part++)
            known = known &&
                    umdi_manifest_file(manifest, manifest->variants[i].graphs[part]) != NULL;
    return known ? UMD_OK : umdi_bad_field("files", "a file is used but not listed");
}

static umd_status read_facts(umdi_arena *arena, const umdi_json *top, umdi_manifest *manifest)
{
    umdi_text created, *texts;
    size_t count;
    int64_t opset;
    UMDI_TRY(umdi_read_text(umdi_json_get(top, "name"), "name", &manifest->name));
    if (!umdi_is_name(manifest->name))
        return umdi_bad_field("name", "a value such as 'umd-edge-default' is needed");
    UMDI_TRY(umdi_read_text(umdi_json_get(top, "version"), "version", &manifest->version));
    if (!umdi_is_version(manifest->version))
        return umdi_bad_field("version", "a value such as '1.0.0' is needed");
    UMDI_TRY(umdi_read_text(umdi_json_get(top, "created"), "created", &created));
    if (!umdi_is_date(created))
        return umdi_bad_field("created", "a value such as '2026-01-31T12:00:00Z' is needed");
    UMDI_TRY(umdi_read_integer(umdi_json_get(top, "opset"), "opset", 17, 20, &opset));
    UMDI_TRY(umdi_check_type(umdi_json_get(top, "provenance"), "provenance", UMDI_OBJECT));
    UMDI_TRY(umdi_check_type(umdi_json_get(top, "extensions"), "extensions", UMDI_OBJECT));
    return umdi_read_texts(arena, umdi_json_get(top, "requires"), "requires", &texts, &count);
}

umd_status umdi_manifest_parse(umdi_arena *arena, umdi_text source, umdi_manifest *manifest)
{
    static const char *const needed[] = {
        "format_version", "requires",   "name",      "version",           "created",
        "intended_use",   "preprocessing", "tokenizer", "structured_fields", "tasks",
        "variants",       "default_variant", "opset", "golden",           "files",
        "provenance",     "extensions", NULL};
    static const char *const golden[] = {"file", NULL};
    umdi_json *top;
    memset(manifest, 0, sizeof *manifest);
    if (source.length > UMDI_MAX_MANIFEST_BYTES)
        return umdi_fail(UMD_ERROR_MANIFEST, "manifest.json: at most %u bytes are allowed",
                         UMDI_MAX_MANIFEST_BYTES);
    UMDI_TRY(umdi_json_parse(arena, source, UMD_ERROR_MANIFEST, "manifest.json", &top));
    UMDI_TRY(check_version(top));
    UMDI_TRY(umdi_check_object(top, "top level", needed, none));
    UMDI_TRY(read_facts(arena, top, manifest));
    UMDI_TRY(read_intended_use(arena, umdi_json_get(top, "intended_use"), manifest));
    UMDI_TRY(read_preprocessing(umdi_json_get(top, "preprocessing"), &manifest->preprocessing));
    UMDI_TRY(read_tokenizer(umdi_json_get(top, "tokenizer"), manifest));
    UMDI_TRY(read_fields(arena, umdi_json_get(top, "structured_fields"), manifest));
    UMDI_TRY(read_tasks(arena, umdi_json_get(top, "tasks"), manifest));
    UMDI_TRY(read_variants(arena, top, manifest));
    UMDI_TRY(umdi_check_object(umdi_json_get(top, "golden"), "golden", golden, none));
    UMDI_TRY(umdi_read_path(umdi_json_get(umdi_json_get(top, "golden"), "file"), "golden.file",
                            &manifest->golden));
    UMDI_TRY(read_files(arena, umdi_json_get(top, "files"), manifest));
    return check_used(manifest);
}

const umdi_file *umdi_manifest_file(const umdi_manifest *manifest, umdi_text name)
{
    for (size_t i = 0; i < manifest->file_count; i++)
        if (umdi_compare(manifest->files[i].name, name) == 0)
            return &manifest->files[i];
    return NULL;
}

const umdi_variant *umdi_manifest_variant(const umdi_manifest *manifest, umdi_text name)
{
    for (size_t i = 0; i < manifest->variant_count; i++)
        if (umdi_compare(manifest->variants[i].name, name) == 0)
            return &manifest->variants[i];
    return NULL;
}
