/* Time of the library's calls over that of the same runs of ONNX Runtime made bare, interleaved.
 *
 *     c_overhead BUNDLE ONNXRUNTIME TASK RUNS
 *
 * Prints for each call the median of RUNS ratios of neighbours, and their quartiles. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bindings/c/src/predictor.h"
#include "../bindings/c/src/preprocess.h"

#define WIDTH 640
#define HEIGHT 480

typedef struct bench {
    umd_predictor *predictor;
    umd_image *image;
    umd_pixels pixels;
    const char *task;
    char question[64];
    unsigned number; /* of the question */
    umdi_features *features; /* of the text that a bare fusion reads */
    float *values;   /* `pixel_values` */
    int64_t *ids;
    int64_t *mask;
} bench;

static void need(umd_status status)
{
    if (status == UMD_OK)
        return;
    fprintf(stderr, "%s\n", umd_last_error());
    exit(1);
}

static OrtValue *wrap(bench *b, void *data, size_t bytes, const int64_t *shape, size_t rank,
                      int type)
{
    OrtValue *value = NULL;
    need(umdi_tensor_wrap(&b->predictor->runtime, data, bytes, shape, rank, type, &value));
    return value;
}

static void bare(bench *b, enum umdi_part part, const OrtValue *const *inputs, size_t input_count,
                 const char *const *input_names, const char *const *names, size_t count)
{
    OrtValue *outputs[2] = {NULL, NULL};
    const umdi_ort *ort = &b->predictor->runtime.ort;
    OrtStatus *status = ort->Run(b->predictor->graphs[part].session, NULL, input_names, inputs,
                                 input_count, names, count, outputs);
    if (status != NULL) {
        fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
        exit(1);
    }
    for (size_t i = 0; i < count; i++)
        umdi_value_free(&b->predictor->runtime, &outputs[i]);
}

/* Text tokens as long as those of the call beside it, made before either is timed. */
static void prepare_text(bench *b, umdi_text text)
{
    umdi_control control;
    umdi_features_free(b->predictor, b->features);
    need(umdi_control_begin(&control, &b->predictor->runtime.ort, NULL));
    need(umdi_encode_text(b->predictor, text, UMDI_TEXT_ONCE, &control, &b->features));
    umdi_control_end(&control);
}

/* A question that was not asked before, so that no cache knows it. */
static void next_question(bench *b)
{
    snprintf(b->question, sizeof b->question, "is there a lesion number %u in the chest?",
             b->number++ % 1000);
    prepare_text(b, umdi_of(b->question));
}

static void next_prompt(bench *b)
{
    const umdi_task *spec = NULL;
    need(umdi_find_task(b->predictor, b->task, UMD_CLASSIFICATION, &spec));
    prepare_text(b, spec->prompt);
}

static void bare_text(bench *b)
{
    static const char *const names[] = {"text_tokens"};
    static const char *const in[] = {"input_ids", "attention_mask"};
    size_t count = (size_t)b->predictor->manifest.max_length;
    need(umd_tokenize(b->predictor, b->question, b->ids, &count));
    const int64_t shape[2] = {1, (int64_t)count};
    OrtValue *inputs[2] = {wrap(b, b->ids, count * 8, shape, 2, UMDI_ORT_INT64),
                           wrap(b, b->mask, count * 8, shape, 2, UMDI_ORT_INT64)};
    bare(b, UMDI_TEXT, (const OrtValue *const *)inputs, 2, in, names, 1);
    umdi_value_free(&b->predictor->runtime, &inputs[0]);
    umdi_value_free(&b->predictor->runtime, &inputs[1]);
}

static void bare_fusion(bench *b, int32_t kind, const char *task)
{
    static const char *const in[] = {"image_tokens", "text_tokens", "attention_mask",
                                     "structured_values", "structured_mask"};
    const umdi_task *spec = NULL;
    const umdi_values *values = &b->predictor->no_values;
    need(umdi_find_task(b->predictor, task, kind, &spec));
    const OrtValue *const inputs[] = {b->image->tokens.value, b->features->tokens.value,
                                      b->features->mask_value, values->numbers_value,
                                      values->mask_value};
    const char *const names[] = {spec->output_name.text};
    bare(b, UMDI_FUSION, inputs, 5, in, names, 1);
}

static void ask_bare(bench *b)
{
    bare_text(b);
    bare_fusion(b, UMD_VQA, NULL);
}

static void ask(bench *b)
{
    umd_result *result;
    need(umd_ask(b->image, b->question, NULL, NULL, &result));
    umd_result_free(result);
}

static void classify_bare(bench *b)
{
    bare_fusion(b, UMD_CLASSIFICATION, b->task);
}

static void classify(bench *b)
{
    umd_result *result;
    need(umd_classify(b->image, b->task, NULL, NULL, &result));
    umd_result_free(result);
}

static void encode_bare(bench *b)
{
    static const char *const names[] = {"image_tokens", "image_embedding"};
    static const char *const in[] = {"pixel_values"};
    const umdi_preprocessing *spec = &b->predictor->manifest.preprocessing;
    const int64_t shape[4] = {1, spec->channels, spec->height, spec->width};
    size_t count = (size_t)(shape[1] * shape[2] * shape[3]);
    need(umd_preprocess(b->predictor, &b->pixels, b->values, &count));
    OrtValue *input = wrap(b, b->values, count * sizeof(float), shape, 4, UMDI_ORT_FLOAT);
    bare(b, UMDI_VISION, (const OrtValue *const[]){input}, 1, in, names, 2);
    umdi_value_free(&b->predictor->runtime, &input);
}

static void encode(bench *b)
{
    umd_image *image;
    need(umd_encode(b->predictor, &b->pixels, NULL, &image));
    umd_image_free(image);
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double timed(bench *b, void (*run)(bench *))
{
    double start = umdi_now_ms();
    run(b);
    return umdi_now_ms() - start;
}

static void measure(bench *b, const char *name, void (*prepare)(bench *), void (*ours)(bench *),
                    void (*theirs)(bench *), int runs)
{
    double *ratios = calloc((size_t)runs, sizeof *ratios);
    if (ratios == NULL)
        exit(1);
    for (int i = -10; i < runs; i++) {
        double own, other;
        prepare(b);
        if (i % 2 == 0) { /* neither has always the warmer caches */
            other = timed(b, theirs);
            own = timed(b, ours);
        } else {
            own = timed(b, ours);
            other = timed(b, theirs);
        }
        if (i >= 0)
            ratios[i] = own / other;
    }
    qsort(ratios, (size_t)runs, sizeof *ratios, compare);
    printf("{\"call\": \"%s\", \"ratio\": %.4f, \"low\": %.4f, \"high\": %.4f, \"runs\": %d}\n",
           name, ratios[runs / 2], ratios[runs / 4], ratios[runs * 3 / 4], runs);
    free(ratios);
}

int main(int count, char **arguments)
{
    static uint8_t frame[WIDTH * HEIGHT];
    umd_open_options options;
    bench b;
    int runs = count == 5 ? atoi(arguments[4]) : 0;
    if (runs < 4) {
        fprintf(stderr, "usage: c_overhead BUNDLE ONNXRUNTIME TASK RUNS\n");
        return 2;
    }
    memset(&b, 0, sizeof b);
    umd_open_options_init(&options, sizeof options);
    options.onnxruntime = arguments[2];
    need(umd_open(arguments[1], &options, &b.predictor));
    for (size_t i = 0; i < sizeof frame; i++)
        frame[i] = (uint8_t)(i * 2654435761u >> 13);
    umd_pixels_init(&b.pixels, sizeof b.pixels);
    b.pixels.data = frame;
    b.pixels.size = sizeof frame;
    b.pixels.width = WIDTH;
    b.pixels.height = HEIGHT;
    b.task = arguments[3];
    const umdi_manifest *manifest = &b.predictor->manifest;
    b.values = calloc((size_t)(manifest->preprocessing.channels * manifest->preprocessing.height *
                               manifest->preprocessing.width), sizeof(float));
    b.ids = calloc((size_t)manifest->max_length, sizeof(int64_t));
    b.mask = calloc((size_t)manifest->max_length, sizeof(int64_t));
    if (b.values == NULL || b.ids == NULL || b.mask == NULL)
        return 1;
    for (int i = 0; i < manifest->max_length; i++)
        b.mask[i] = 1;
    need(umd_encode(b.predictor, &b.pixels, NULL, &b.image));
    measure(&b, "encode a 640 x 480 frame", next_prompt, encode, encode_bare, runs);
    measure(&b, "ask a new question", next_question, ask, ask_bare, runs);
    measure(&b, "classify", next_prompt, classify, classify_bare, runs);
    return 0;
}
