/* What a test in another language cannot do to the library: run it in many threads, take its memory
 * away, watch its memory, and do all of that under a sanitiser.
 *
 *     umd_edge_test vectors     BUNDLE ONNXRUNTIME VECTORS [VARIANT]
 *     umd_edge_test threads     BUNDLE ONNXRUNTIME THREADS RUNS
 *     umd_edge_test allocations BUNDLE ONNXRUNTIME
 *     umd_edge_test memory      BUNDLE ONNXRUNTIME RUNS
 *     umd_edge_test hostile     ONNXRUNTIME FILE...
 *
 * Exit code 0: as it should be; 1: not, with the reason on standard error; 2: wrong arguments.
 *
 * A file of vectors, in the processor's byte order, has for each: the uint32 width, height, channels,
 * bytes per value, length of the task's name and of the text; name, text and pixels; the uint32
 * count of tokens, and their int64 ids; the uint32 count of pixel values, and their float32; the
 * uint32 count of items, and for each the uint32 output, the float32 logit and the double
 * probability. A vector of an empty task is a question. Logits must be equal to the bit, and of the
 * variant `fp32` to 1e-6. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "umd_edge.h"

#define SIDE 97
#define QUESTION "is there a pleural effusion in the x-ray?"

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, umd_last_error());
    return 1;
}

static umd_status open_variant(const char *bundle, const char *onnxruntime, const char *variant,
                               const umd_allocator *allocator, umd_predictor **out)
{
    umd_open_options options;
    umd_open_options_init(&options, sizeof options);
    options.onnxruntime = onnxruntime;
    options.variant = variant;
    options.allocator = allocator;
    return umd_open(bundle, &options, out);
}

static umd_status open_bundle(const char *bundle, const char *onnxruntime,
                              const umd_allocator *allocator, umd_predictor **out)
{
    return open_variant(bundle, onnxruntime, NULL, allocator, out);
}

static umd_pixels picture(uint8_t *bytes, unsigned seed)
{
    umd_pixels pixels;
    umd_pixels_init(&pixels, sizeof pixels);
    for (unsigned i = 0; i < SIDE * SIDE * 3; i++)
        bytes[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
    pixels.data = bytes;
    pixels.size = SIDE * SIDE * 3;
    pixels.width = pixels.height = SIDE;
    pixels.photometric = UMD_RGB;
    return pixels;
}

static const char *classification_of(umd_predictor *predictor)
{
    umd_task task;
    umd_task_init(&task, sizeof task);
    for (uint32_t i = 0; umd_get_task(predictor, i, &task) == UMD_OK; i++)
        if (task.kind == UMD_CLASSIFICATION)
            return task.name;
    return NULL;
}

/* The probability of the first item of an answer and of a classification. */
static umd_status run_once(umd_predictor *predictor, const umd_pixels *pixels,
                           double probabilities[2])
{
    umd_image *image = NULL;
    umd_result *results[2] = {NULL, NULL};
    umd_item item;
    umd_status status = umd_encode(predictor, pixels, NULL, &image);
    umd_item_init(&item, sizeof item);
    if (status == UMD_OK)
        status = umd_ask(image, QUESTION, NULL, NULL, &results[0]);
    if (status == UMD_OK)
        status = umd_classify(image, classification_of(predictor), NULL, NULL, &results[1]);
    for (int i = 0; i < 2 && status == UMD_OK; i++) {
        status = umd_get_item(results[i], 0, &item);
        probabilities[i] = item.probability;
    }
    umd_result_free(results[0]);
    umd_result_free(results[1]);
    umd_image_free(image);
    return status;
}

/* ---- vectors ---- */

typedef struct vector {
    uint32_t head[6];
    char *task;
    char *text;
    uint8_t *pixels;
    size_t pixel_bytes;
} vector;

static void *read_bytes(FILE *file, size_t size)
{
    char *bytes = calloc(size + 1, 1);
    if (bytes != NULL && fread(bytes, 1, size, file) != size) {
        free(bytes);
        bytes = NULL;
    }
    return bytes;
}

static uint32_t read_count(FILE *file)
{
    uint32_t count = 0;
    return fread(&count, sizeof count, 1, file) == 1 ? count : 0;
}

static umd_pixels describe(const vector *v)
{
    umd_pixels pixels;
    umd_pixels_init(&pixels, sizeof pixels);
    pixels.data = v->pixels;
    pixels.size = v->pixel_bytes;
    pixels.width = v->head[0];
    pixels.height = v->head[1];
    pixels.photometric = v->head[2] == 3 ? UMD_RGB : UMD_MONOCHROME2;
    pixels.type = v->head[3] == 2 ? UMD_UINT16 : UMD_UINT8;
    return pixels;
}

static bool check_tokens(umd_predictor *predictor, const vector *v, FILE *file)
{
    size_t wanted = read_count(file), count = wanted;
    int64_t *stored = read_bytes(file, wanted * sizeof *stored);
    int64_t *ids = calloc(wanted + 1, sizeof *ids);
    bool equal = wanted == 0 || (umd_tokenize(predictor, v->text, ids, &count) == UMD_OK &&
                                 count == wanted && stored != NULL &&
                                 memcmp(ids, stored, wanted * sizeof *ids) == 0);
    free(stored);
    free(ids);
    return equal;
}

static bool check_pixels(umd_predictor *predictor, const vector *v, FILE *file)
{
    size_t wanted = read_count(file), count = wanted;
    umd_pixels pixels = describe(v);
    float *stored = read_bytes(file, wanted * sizeof *stored);
    float *values = calloc(wanted + 1, sizeof *values);
    bool equal = umd_preprocess(predictor, &pixels, values, &count) == UMD_OK && count == wanted &&
                 stored != NULL && memcmp(values, stored, wanted * sizeof *values) == 0;
    free(stored);
    free(values);
    return equal;
}

static bool is_item(const umd_item *item, FILE *file, double tolerance)
{
    uint32_t output = read_count(file);
    float logit = NAN;
    double probability = NAN;
    if (fread(&logit, sizeof logit, 1, file) != 1 ||
        fread(&probability, sizeof probability, 1, file) != 1)
        return false;
    /* exp may differ in its last bits between C libraries and numpy. */
    return item->output == output && fabs((double)item->logit - (double)logit) <= tolerance &&
           fabs(item->probability - probability) <= 1e-14 * probability + tolerance;
}

static double tolerance_of(umd_predictor *predictor)
{
    umd_description facts;
    umd_description_init(&facts, sizeof facts);
    if (umd_describe(predictor, &facts) != UMD_OK)
        return NAN;
    return strcmp(facts.variant, "fp32") == 0 ? 1e-6 : 0;
}

static bool check_items(umd_predictor *predictor, const vector *v, FILE *file)
{
    umd_pixels pixels = describe(v);
    umd_image *image = NULL;
    umd_result *result = NULL;
    umd_item item;
    uint32_t wanted = read_count(file);
    bool equal = umd_encode(predictor, &pixels, NULL, &image) == UMD_OK;
    umd_item_init(&item, sizeof item);
    if (equal)
        equal = (v->task[0] == '\0' ? umd_ask(image, v->text, NULL, NULL, &result)
                                    : umd_classify(image, v->task, NULL, NULL, &result)) == UMD_OK;
    for (uint32_t i = 0; i < wanted; i++) {
        equal = equal && umd_get_item(result, i, &item) == UMD_OK;
        equal = is_item(&item, file, tolerance_of(predictor)) && equal;
    }
    umd_result_free(result);
    umd_image_free(image);
    return equal;
}

static bool check_vector(umd_predictor *predictor, vector *v, FILE *file)
{
    bool good;
    v->pixel_bytes = (size_t)v->head[0] * v->head[1] * v->head[2] * v->head[3];
    v->task = read_bytes(file, v->head[4]);
    v->text = read_bytes(file, v->head[5]);
    v->pixels = read_bytes(file, v->pixel_bytes);
    good = v->task != NULL && v->text != NULL && v->pixels != NULL;
    good = good && check_tokens(predictor, v, file);
    good = good && check_pixels(predictor, v, file);
    good = good && check_items(predictor, v, file);
    free(v->task);
    free(v->text);
    free(v->pixels);
    return good;
}

static int run_vectors(char **arguments)
{
    umd_predictor *predictor = NULL;
    FILE *file = fopen(arguments[2], "rb");
    vector v;
    int checked = 0, failed = 0;
    if (file == NULL ||
        open_variant(arguments[0], arguments[1], arguments[3], NULL, &predictor) != UMD_OK)
        return fail("open");
    if (umd_selftest(predictor, NULL, NULL) != UMD_OK)
        failed = fail("self-test");
    while (failed == 0 && fread(v.head, sizeof v.head, 1, file) == 1) {
        checked++;
        if (!check_vector(predictor, &v, file)) {
            fprintf(stderr, "vector %d differs\n", checked);
            failed = 1;
        }
    }
    fclose(file);
    umd_close(predictor);
    printf("%d vectors\n", checked);
    return failed != 0 || checked == 0;
}

/* ---- threads ---- */

typedef struct job {
    umd_predictor *predictor;
    const umd_pixels *pixels;
    const double *wanted;
    int runs;
    atomic_int *differences;
} job;

static void *run_job(void *argument)
{
    job *own = argument;
    for (int i = 0; i < own->runs; i++) {
        double probabilities[2] = {0, 0};
        if (run_once(own->predictor, own->pixels, probabilities) != UMD_OK ||
            memcmp(probabilities, own->wanted, sizeof probabilities) != 0)
            atomic_fetch_add(own->differences, 1);
    }
    return NULL;
}

static int run_threads(char **arguments)
{
    static uint8_t bytes[SIDE * SIDE * 3];
    umd_pixels pixels = picture(bytes, 1);
    umd_predictor *predictor = NULL;
    pthread_t threads[64];
    double wanted[2];
    atomic_int differences = 0;
    int count = atoi(arguments[2]);
    job own = {NULL, &pixels, wanted, atoi(arguments[3]), &differences};
    if (count < 1 || count > 64)
        return 2;
    if (open_bundle(arguments[0], arguments[1], NULL, &predictor) != UMD_OK ||
        run_once(predictor, &pixels, wanted) != UMD_OK)
        return fail("run");
    own.predictor = predictor;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, run_job, &own) != 0)
            return fail("thread");
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    umd_close(predictor);
    printf("%d differences\n", atomic_load(&differences));
    return atomic_load(&differences) != 0;
}

/* ---- allocations ---- */

typedef struct meter {
    long count;   /* of allocations so far */
    long refused; /* the one that fails; 0: none */
    long held;
} meter;

static void *metered_allocate(void *context, size_t size)
{
    meter *m = context;
    if (++m->count == m->refused)
        return NULL;
    m->held++;
    return malloc(size);
}

static void metered_release(void *context, void *memory)
{
    ((meter *)context)->held--;
    free(memory);
}

enum { CALLS = 13 };

/* Every function that allocates, once; a call that fails leaves the others to be tried. */
static void call_all(umd_predictor *predictor, const umd_pixels *pixels,
                     const umd_allocator *allocator, umd_status statuses[CALLS])
{
    static const char *const texts[] = {"chest", "a lesion of the skin"};
    static const umd_value age = {"age", NULL, 61};
    umd_image *image = NULL, *images[2];
    umd_result *results[4] = {NULL};
    umd_cancel *cancel = NULL;
    umd_match matches[2];
    umd_member members[64];
    umd_status each[2];
    umd_classify_options options;
    umd_call call;
    umd_set set;
    float values[4096];
    size_t count = 4096, member_count = 64;
    umd_status *status = statuses;
    umd_classify_options_init(&options, sizeof options);
    umd_call_init(&call, sizeof call);
    umd_set_init(&set, sizeof set);
    options.text = "fever";
    options.values = &age;
    options.value_count = 1;
    *status++ = umd_encode(predictor, pixels, NULL, &image);
    images[0] = images[1] = image;
    *status++ = umd_cancel_create(allocator, &cancel);
    call.cancel = cancel;
    call.deadline_ms = 1e6;
    *status++ = umd_ask(image, QUESTION, NULL, &call, &results[0]);
    *status++ = umd_classify(image, classification_of(predictor), &options, NULL, &results[1]);
    *status++ = umd_get_set(results[0], 0.9, &set, members, &member_count);
    member_count = 64;
    *status++ = umd_get_set(results[1], 0.9, &set, members, &member_count);
    *status++ = umd_ask_batch(images, texts, 2, NULL, NULL, each, results + 2);
    *status++ = umd_embed_image(image, values, &count);
    *status++ = umd_embed_text(predictor, texts[0], NULL, values, &count);
    *status++ = umd_rank_texts(image, texts, 2, NULL, UMD_RANK_TWO_STAGE, 0, NULL, matches);
    *status++ = umd_rank_images(texts[0], images, 2, NULL, UMD_RANK_FUSION, 0, NULL, matches);
    *status++ = umd_preprocess(predictor, pixels, NULL, &count);
    *status++ = umd_selftest(predictor, NULL, NULL);
    for (int i = 0; i < 4; i++)
        umd_result_free(results[i]);
    umd_cancel_free(cancel);
    umd_image_free(image);
}

static umd_status run_metered(char **arguments, const umd_pixels *pixels, meter *m,
                              umd_status statuses[CALLS])
{
    umd_allocator allocator = {metered_allocate, metered_release, m};
    umd_predictor *predictor = NULL;
    umd_status status = open_bundle(arguments[0], arguments[1], &allocator, &predictor);
    if (status == UMD_OK)
        call_all(predictor, pixels, &allocator, statuses);
    umd_close(predictor);
    return status;
}

/* Whether what failed did so for want of memory, or for want of what memory had refused before. */
static bool is_told(umd_status status, umd_status wanted, bool is_refused)
{
    return status == wanted || status == UMD_ERROR_OUT_OF_MEMORY ||
           (status == UMD_ERROR_USAGE && is_refused);
}

/* Each allocation fails once, in turn: a status comes back and nothing is left behind. */
static int run_allocations(char **arguments)
{
    static uint8_t bytes[SIDE * SIDE * 3];
    umd_pixels pixels = picture(bytes, 2);
    umd_status wanted[CALLS];
    meter whole = {0, 0, 0};
    long tolerated = 0, good = 0;
    if (run_metered(arguments, &pixels, &whole, wanted) != UMD_OK || whole.held != 0)
        return fail("run");
    for (int k = 0; k < CALLS; k++)
        good += wanted[k] == UMD_OK;
    for (long i = 1; i <= whole.count; i++) {
        meter m = {0, i, 0};
        umd_status statuses[CALLS], status = run_metered(arguments, &pixels, &m, statuses);
        bool is_refused = status != UMD_OK, is_good = m.held == 0;
        is_good = is_good && (status == UMD_OK || status == UMD_ERROR_OUT_OF_MEMORY);
        for (int k = 0; k < CALLS && status == UMD_OK && is_good; k++) {
            is_good = is_told(statuses[k], wanted[k], is_refused);
            is_refused = is_refused || statuses[k] == UMD_ERROR_OUT_OF_MEMORY;
        }
        if (!is_good) {
            fprintf(stderr, "allocation %ld: %ld pieces held\n", i, m.held);
            return fail("allocation");
        }
        tolerated += !is_refused; /* a text that could not be cached */
    }
    printf("%ld allocations, %ld done without, %ld calls\n", whole.count, tolerated, good);
    return tolerated > 8;
}

/* ---- memory ---- */

static long resident_kb(void)
{
    char line[256];
    long kb = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kb = atol(line + 6);
    if (file != NULL)
        fclose(file);
    return kb;
}

static int run_memory(char **arguments)
{
    static uint8_t bytes[SIDE * SIDE * 3];
    umd_pixels pixels = picture(bytes, 3);
    umd_predictor *predictor = NULL;
    int runs = atoi(arguments[2]);
    double probabilities[2];
    long start = 0;
    if (open_bundle(arguments[0], arguments[1], NULL, &predictor) != UMD_OK)
        return fail("open");
    for (int i = 0; i < runs; i++) {
        if (run_once(predictor, &pixels, probabilities) != UMD_OK)
            return fail("run");
        if (i == runs / 10)
            start = resident_kb();
    }
    printf("%ld kB, then %ld kB\n", start, resident_kb());
    umd_close(predictor);
    return resident_kb() - start > 1024;
}

/* ---- hostile files: any status will do, as long as one comes back ---- */

static int run_hostile(char **arguments)
{
    for (char **path = arguments + 1; *path != NULL; path++) {
        umd_predictor *predictor = NULL;
        umd_status status = open_bundle(*path, arguments[0], NULL, &predictor);
        if (status == UMD_OK)
            status = umd_selftest(predictor, NULL, NULL);
        umd_close(predictor);
        printf("%s\n", umd_status_name(status));
    }
    return 0;
}

int main(int count, char **arguments)
{
    static const struct {
        const char *name;
        int (*run)(char **arguments);
        int least;
    } commands[] = {{"vectors", run_vectors, 3},
                    {"threads", run_threads, 4},
                    {"allocations", run_allocations, 2},
                    {"memory", run_memory, 3},
                    {"hostile", run_hostile, 2}};
    for (size_t i = 0; count > 1 && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(arguments[1], commands[i].name) == 0 && count >= commands[i].least + 2)
            return commands[i].run(arguments + 2);
    fprintf(stderr, "see the head of umd_edge_test.c\n");
    return 2;
}
