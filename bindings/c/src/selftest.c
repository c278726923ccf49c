/* The known-answer test: golden inputs must give the stored outputs on this machine. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "json.h"
#include "npy.h"
#include "predictor.h"
#include "preprocess.h"
#include "saturation.h"

#define MAX_NAME 200

enum { IMAGE, PIXEL_VALUES, TEXTS, INPUT_IDS, ATTENTION_MASK, NUMBERS, MASK, INPUTS };

static const struct {
    const char *name;
    char type;
    size_t rank;
} wanted[INPUTS] = {
    {"image", 'u', 3},     {"pixel_values", 'f', 4},   {"texts", 'u', 1},
    {"input_ids", 'i', 2}, {"attention_mask", 'i', 2}, {"structured_values", 'f', 2},
    {"structured_mask", 'f', 2},
};

typedef struct selftest {
    umd_predictor *predictor;
    umdi_control *control;
    umdi_arena arena;
    umdi_container golden;
    uint8_t *bytes;
    umdi_array inputs[INPUTS];
    uint8_t *held[INPUTS];
    umd_selftest_report report;
} selftest;

static umd_status bad(const char *problem)
{
    return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                     "the bundle's golden file %s; fetch the bundle again", problem);
}

static umd_status read_array(const selftest *t, const char *name, uint8_t **bytes,
                             umdi_array *array)
{
    char file[MAX_NAME];
    const umdi_entry *entry;
    snprintf(file, sizeof file, "%s.npy", name);
    entry = umdi_container_find(&t->golden, umdi_of(file));
    if (entry == NULL)
        return bad("lacks an array");
    UMDI_TRY(umdi_container_read(&t->golden, entry, bytes));
    return umdi_npy_parse(*bytes, (size_t)entry->size, array) ? UMD_OK
                                                              : bad("holds an unreadable array");
}

static umd_status read_golden(selftest *t)
{
    const umdi_preprocessing *spec = &t->predictor->manifest.preprocessing;
    const umdi_array *inputs = t->inputs;
    size_t size, batch;
    umd_status status;
    UMDI_TRY(umdi_read_file(t->predictor, t->predictor->manifest.golden, &t->bytes, &size));
    status = umdi_container_open_memory(&t->golden, &t->arena, t->bytes, size);
    if (status == UMD_ERROR_OUT_OF_MEMORY)
        return status;
    if (status != UMD_OK)
        return bad("is not a zip that only stores, which is all that this library reads");
    for (size_t i = 0; i < INPUTS; i++) {
        UMDI_TRY(read_array(t, wanted[i].name, &t->held[i], &t->inputs[i]));
        if (inputs[i].type != wanted[i].type || inputs[i].rank != wanted[i].rank)
            return bad("holds inputs of a wrong form");
    }
    batch = inputs[INPUT_IDS].shape[0];
    if (inputs[IMAGE].shape[2] != 3 || batch == 0 ||
        inputs[PIXEL_VALUES].count !=
            (size_t)spec->channels * (size_t)spec->height * (size_t)spec->width ||
        inputs[ATTENTION_MASK].shape[0] != batch ||
        inputs[ATTENTION_MASK].shape[1] != inputs[INPUT_IDS].shape[1] ||
        inputs[NUMBERS].shape[0] != batch || inputs[MASK].shape[0] != batch ||
        inputs[NUMBERS].shape[1] != t->predictor->manifest.field_count ||
        inputs[MASK].shape[1] != t->predictor->manifest.field_count)
        return bad("holds inputs of a wrong form");
    return UMD_OK;
}

static umd_status failed(const selftest *t, const char *name, double difference, double tolerance)
{
    return umdi_fail(UMD_ERROR_SELF_TEST,
                     "the self-test failed on this machine: %.120s by %.3g (at most %.3g). Do not "
                     "use the bundle here; report it with the processor and ONNX Runtime %.40s",
                     name, difference, tolerance, t->predictor->runtime.ort.version);
}

static umd_status go_on(void *context)
{
    (void)context;
    return UMD_OK;
}

static umd_status check_pixels(selftest *t)
{
    const umdi_array *image = &t->inputs[IMAGE], *stored = &t->inputs[PIXEL_VALUES];
    const umd_allocator *allocator = &t->predictor->allocator;
    float *values = umdi_new(allocator, stored->count, sizeof *values);
    umd_pixels pixels;
    umd_status status;
    if (values == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    umd_pixels_init(&pixels, sizeof pixels);
    pixels.data = image->data;
    pixels.size = image->count;
    pixels.height = (uint32_t)image->shape[0];
    pixels.width = (uint32_t)image->shape[1];
    pixels.photometric = UMD_RGB;
    if (image->shape[0] > UINT32_MAX || image->shape[1] > UINT32_MAX)
        status = bad("holds an image that is too large");
    else
        status = umdi_preprocess(&t->predictor->manifest.preprocessing, allocator, &pixels, go_on,
                                 NULL, NULL, values);
    if (status == UMD_OK && memcmp(values, stored->data, stored->count * sizeof *values) != 0)
        status = failed(t, "pixel_values", NAN, 0);
    umdi_delete(allocator, values);
    t->report.checks++;
    return status;
}

/* One row of `input_ids` and `attention_mask`: the tokens, then padding that does not count. */
static umd_status check_row(selftest *t, const umdi_json *text, size_t row, int64_t *ids)
{
    size_t length = t->inputs[INPUT_IDS].shape[1], count = 0;
    const int64_t *stored = (const int64_t *)t->inputs[INPUT_IDS].data + row * length;
    const int64_t *mask = (const int64_t *)t->inputs[ATTENTION_MASK].data + row * length;
    bool equal;
    if (text->type != UMDI_STRING)
        return bad("holds texts that are no JSON list");
    UMDI_TRY(umdi_tokenize(&t->predictor->tokenizer, &t->predictor->allocator, text->string, ids,
                           &count));
    equal = count <= length;
    for (size_t i = 0; i < length && equal; i++)
        equal = i < count ? stored[i] == ids[i] && mask[i] == 1 : mask[i] == 0;
    return equal ? UMD_OK : failed(t, "input_ids", NAN, 0);
}

static umd_status check_tokens(selftest *t)
{
    umdi_text source = {t->inputs[TEXTS].data, t->inputs[TEXTS].count};
    umdi_json *texts;
    int64_t *ids;
    umd_status status = UMD_OK;
    size_t row = 0;
    UMDI_TRY(
        umdi_json_parse(&t->arena, source, UMD_ERROR_BUNDLE_INTEGRITY, "golden texts", &texts));
    if (texts->type != UMDI_ARRAY || texts->count != t->inputs[INPUT_IDS].shape[0])
        return bad("holds texts that are no JSON list");
    ids = umdi_arena_new(&t->arena, (size_t)t->predictor->manifest.max_length, sizeof *ids);
    if (ids == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *text = texts->items; text != NULL && status == UMD_OK; text = text->next)
        status = check_row(t, text, row++, ids);
    t->report.checks += 2;
    return status;
}

/* Compare an output with the stored one. */
static umd_status compare(selftest *t, const char *output, const umdi_tensor *given)
{
    char name[MAX_NAME];
    umdi_array stored;
    uint8_t *bytes = NULL;
    double worst = 0, tolerance = t->report.tolerance;
    umd_status status;
    snprintf(name, sizeof name, "%.99s/%.99s", t->predictor->variant->name.text, output);
    status = read_array(t, name, &bytes, &stored);
    if (status == UMD_OK && (stored.type != 'f' || stored.count != umdi_tensor_size(given)))
        status = failed(t, name, INFINITY, tolerance);
    for (size_t i = 0; status == UMD_OK && i < stored.count; i++) {
        double difference =
            fabs((double)given->data[i] - (double)((const float *)stored.data)[i]);
        /* NaN on either side does not pass. */
        if (!(difference <= tolerance))
            status = failed(t, name, difference, tolerance);
        worst = difference > worst ? difference : worst;
    }
    if (worst > t->report.worst_difference)
        t->report.worst_difference = worst;
    t->report.checks++;
    umdi_delete(&t->predictor->allocator, bytes);
    return status;
}

static umd_status wrap(selftest *t, size_t input, OrtValue **out)
{
    const umdi_array *array = &t->inputs[input];
    bool is_float = array->type == 'f';
    int64_t shape[UMDI_NPY_RANK];
    void *data;
    for (size_t i = 0; i < array->rank; i++)
        shape[i] = (int64_t)array->shape[i];
    memcpy(&data, &array->data, sizeof data);
    return umdi_tensor_wrap(&t->predictor->runtime, data, array->count * (is_float ? 4 : 8), shape,
                            array->rank, is_float ? UMDI_ORT_FLOAT : UMDI_ORT_INT64, out);
}

/* Run a graph for one output after the other and compare each; keep the first one where wanted. */
static umd_status run_graph(selftest *t, enum umdi_part part, const OrtValue *const *inputs,
                            const char *const *names, size_t count, umdi_tensor *first)
{
    umd_status status = UMD_OK;
    for (size_t i = 0; i < count && status == UMD_OK; i++) {
        umdi_tensor output;
        UMDI_TRY(umdi_graph_run(&t->predictor->graphs[part], t->control, inputs, &names[i], 1,
                                &output));
        status = compare(t, names[i], &output);
        if (i == 0 && first != NULL)
            *first = output;
        else
            umdi_value_free(&t->predictor->runtime, &output.value);
    }
    return status;
}

/* The image's tokens, once for each text. */
static umd_status repeat(selftest *t, const umdi_tensor *tokens, OrtValue **out)
{
    size_t batch = t->inputs[INPUT_IDS].shape[0], size = umdi_tensor_size(tokens);
    const int64_t shape[3] = {(int64_t)batch, tokens->shape[1], tokens->shape[2]};
    float *copies;
    if (tokens->rank != 3)
        return failed(t, "image_tokens", INFINITY, 0);
    copies = umdi_arena_new(&t->arena, batch * size, sizeof *copies);
    if (copies == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < batch; i++)
        memcpy(copies + i * size, tokens->data, size * sizeof *copies);
    return umdi_tensor_wrap(&t->predictor->runtime, copies, batch * size * sizeof *copies, shape, 3,
                            UMDI_ORT_FLOAT, out);
}

static umd_status run_fusion(selftest *t, const OrtValue *const *inputs)
{
    static const char *const match[] = {"match_logit"};
    const umdi_manifest *manifest = &t->predictor->manifest;
    for (size_t i = 0; i < manifest->task_count; i++)
        if (manifest->tasks[i].kind != UMD_RETRIEVAL)
            UMDI_TRY(run_graph(t, UMDI_FUSION, inputs, &manifest->tasks[i].output_name.text, 1,
                               NULL));
    return run_graph(t, UMDI_FUSION, inputs, match, 1, NULL);
}

enum { V_PIXELS, V_IDS, V_TEXT_MASK, V_NUMBERS, V_MASK, V_IMAGE_TOKENS, VALUES };

static umd_status run_graphs(selftest *t)
{
    static const char *const vision[] = {"image_tokens", "image_embedding"};
    static const char *const text[] = {"text_tokens", "text_embedding"};
    const umdi_runtime *runtime = &t->predictor->runtime;
    static const size_t sources[] = {PIXEL_VALUES, INPUT_IDS, ATTENTION_MASK, NUMBERS, MASK};
    OrtValue *values[VALUES] = {NULL};
    umdi_tensor image_tokens = {0}, text_tokens = {0};
    umd_status status = UMD_OK;
    for (size_t i = 0; i < UMDI_COUNT(sources) && status == UMD_OK; i++)
        status = wrap(t, sources[i], &values[i]);
    if (status == UMD_OK)
        status = run_graph(t, UMDI_VISION, (const OrtValue *const[]){values[V_PIXELS]}, vision, 2,
                           &image_tokens);
    if (status == UMD_OK)
        status = run_graph(t, UMDI_TEXT,
                           (const OrtValue *const[]){values[V_IDS], values[V_TEXT_MASK]}, text, 2,
                           &text_tokens);
    if (status == UMD_OK)
        status = repeat(t, &image_tokens, &values[V_IMAGE_TOKENS]);
    if (status == UMD_OK)
        status = run_fusion(t, (const OrtValue *const[]){values[V_IMAGE_TOKENS], text_tokens.value,
                                                         values[V_TEXT_MASK], values[V_NUMBERS],
                                                         values[V_MASK]});
    umdi_value_free(runtime, &image_tokens.value);
    umdi_value_free(runtime, &text_tokens.value);
    for (size_t i = 0; i < VALUES; i++)
        umdi_value_free(runtime, &values[i]);
    return status;
}

static umd_status check_files(selftest *t)
{
    const umdi_manifest *manifest = &t->predictor->manifest;
    for (size_t i = 0; i < manifest->file_count; i++) {
        uint8_t *bytes;
        size_t size;
        UMDI_TRY(umdi_control_check(t->control));
        UMDI_TRY(umdi_read_file(t->predictor, manifest->files[i].name, &bytes, &size));
        umdi_delete(&t->predictor->allocator, bytes);
        t->report.files++;
    }
    return UMD_OK;
}

/* One exact check of 8-bit sums, where the processor computes such. */
static umd_status check_sums(selftest *t)
{
    double error;
    if (t->predictor->int8_path[0] == '\0')
        return UMD_OK;
    UMDI_TRY(umdi_saturation_error(&t->predictor->runtime, t->predictor->variant->weight_bits,
                                   &error));
    t->report.checks++;
    return error > 0 ? failed(t, "8-bit sums", error, 0) : UMD_OK;
}

static umd_status run(selftest *t)
{
    umd_status status;
    UMDI_TRY(check_files(t));
    UMDI_TRY(read_golden(t));
    UMDI_TRY(check_pixels(t));
    status = check_tokens(t);
    if (status != UMD_OK && status / 10 == UMD_ERROR_INPUT / 10)
        return bad("holds inputs of a wrong form");
    UMDI_TRY(status);
    UMDI_TRY(check_sums(t));
    return run_graphs(t);
}

umd_status umd_selftest(umd_predictor *predictor, const umd_call *call, umd_selftest_report *report)
{
    selftest t;
    umdi_control control;
    umd_status status, given = UMD_OK;
    if (predictor == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "the predictor is NULL; open a bundle first");
    memset(&t, 0, sizeof t);
    t.predictor = predictor;
    t.control = &control;
    t.report.tolerance = predictor->variant->tolerance;
    umdi_arena_init(&t.arena, &predictor->allocator);
    status = umdi_control_begin(&control, &predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = run(&t);
    umdi_control_end(&control);
    for (size_t i = 0; i < INPUTS; i++)
        umdi_delete(&predictor->allocator, t.held[i]);
    umdi_delete(&predictor->allocator, t.bytes);
    umdi_arena_free(&t.arena);
    if (status != UMD_OK)
        umdi_log(predictor, UMD_LOG_ERROR, umd_last_error());
    if (report != NULL)
        given = umdi_give(report, &t.report, sizeof t.report, "umd_selftest_report");
    return status != UMD_OK ? status : given;
}
