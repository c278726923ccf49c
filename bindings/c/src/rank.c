/* Ranking texts for an image and images for a text; see `umd_edge/_rank.py`. */
#include <math.h>
#include <string.h>

#include "predictor.h"

#define CANDIDATES 16
#define MAX_COUNT (1u << 20)

typedef struct ranking {
    umd_predictor *predictor;
    const umdi_task *task;
    umdi_control *control;
    int32_t method;
    uint32_t candidates;
} ranking;

static double dot(const umdi_tensor *a, const umdi_tensor *b, size_t size)
{
    double total = 0;
    for (size_t i = 0; i < size; i++)
        total += (double)a->data[i] * (double)b->data[i];
    return total;
}

static umd_status cosine(const umdi_tensor *image, const umdi_tensor *text, float *score)
{
    size_t size = umdi_tensor_size(image);
    double length;
    if (umdi_tensor_size(text) != size)
        return umdi_fail(UMD_ERROR_INFERENCE, "embeddings of images and texts differ in length");
    length = sqrt(dot(image, image, size)) * sqrt(dot(text, text, size));
    if (!isfinite(length) || !(length > 0))
        return umdi_fail(UMD_ERROR_INFERENCE, "an embedding is zero or not finite; run the "
                                              "self-test on this machine");
    *score = (float)(dot(image, text, size) / length);
    return UMD_OK;
}

static umd_status match(const ranking *r, const umd_image *image, const umdi_features *text,
                        float *logit)
{
    umdi_tensor out;
    UMDI_TRY(umdi_fuse(image, text, &r->predictor->no_values, "match_logit", r->control, &out));
    *logit = umdi_tensor_size(&out) == 1 ? out.data[0] : NAN;
    umdi_value_free(&r->predictor->runtime, &out.value);
    if (!isfinite(*logit))
        return umdi_fail(UMD_ERROR_INFERENCE,
                         "a match logit is not finite; run the self-test on this machine");
    return UMD_OK;
}

/* The best first; of equal ones the one given first. */
static int by_score(const void *left, const void *right)
{
    const umd_match *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static int by_logit(const void *left, const void *right)
{
    const umd_match *a = left, *b = right;
    if (a->match_logit != b->match_logit)
        return a->match_logit > b->match_logit ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static umd_status begin(ranking *r, umd_predictor *predictor, const char *task, int32_t method,
                        uint32_t candidates, uint32_t count)
{
    r->predictor = predictor;
    r->method = method;
    r->candidates = candidates != 0 ? candidates : CANDIDATES;
    if (method < UMD_RANK_TWO_STAGE || method > UMD_RANK_FUSION)
        return umdi_fail(UMD_ERROR_USAGE, "method %d given; use one of UMD_RANK_", method);
    if (count == 0 || count > MAX_COUNT)
        return umdi_fail(UMD_ERROR_USAGE, "%u items given; 1..%u can be ranked at once", count,
                         MAX_COUNT);
    return umdi_find_task(predictor, task, UMD_RETRIEVAL, &r->task);
}

static umd_status encode(const ranking *r, const char *given, umdi_features **out)
{
    umdi_text text = {NULL, 0};
    umd_status status;
    *out = NULL;
    if (given == NULL)
        return umdi_missing("a text");
    UMDI_TRY(umdi_check_text(umdi_of(given), "text"));
    UMDI_TRY(umdi_compose(r->predictor, r->task->prompt, umdi_of(given), &text));
    status = umdi_encode_text(r->predictor, text, UMDI_TEXT_EMBEDDED, r->control, out);
    umdi_delete(&r->predictor->allocator, (void *)(uintptr_t)text.text);
    return status;
}

/* How many of the first matches the fusion is run for. */
static uint32_t fused_count(const ranking *r, uint32_t count)
{
    if (r->method == UMD_RANK_EMBEDDING)
        return 0;
    return r->method == UMD_RANK_FUSION || r->candidates > count ? count : r->candidates;
}

static umd_status rank(const ranking *r, umd_image *const *images, uint32_t image_count,
                       umdi_features *const *texts, uint32_t text_count, umd_match *matches)
{
    uint32_t count = image_count == 1 ? text_count : image_count, fused = fused_count(r, count);
    bool many_images = image_count > 1;
    for (uint32_t i = 0; i < count; i++) {
        const umd_image *image = images[many_images ? i : 0];
        const umdi_features *text = texts[many_images ? 0 : i];
        matches[i].index = i;
        matches[i].match_logit = NAN;
        UMDI_TRY(cosine(&image->embedding, &text->embedding, &matches[i].score));
    }
    umdi_sort(matches, count, sizeof *matches, by_score);
    for (uint32_t i = 0; i < fused; i++) {
        uint32_t index = matches[i].index;
        UMDI_TRY(match(r, images[many_images ? index : 0], texts[many_images ? 0 : index],
                       &matches[i].match_logit));
    }
    umdi_sort(matches, fused, sizeof *matches, by_logit);
    return UMD_OK;
}

static umd_status rank_texts(ranking *r, umd_image *image, const char *const *texts, uint32_t count,
                             umd_match *matches)
{
    const umd_allocator *allocator = &r->predictor->allocator;
    umdi_features **features = umdi_new(allocator, count, sizeof *features);
    umd_status status = features != NULL ? UMD_OK : UMD_ERROR_OUT_OF_MEMORY;
    for (uint32_t i = 0; i < count && status == UMD_OK; i++)
        status = encode(r, texts[i], &features[i]);
    if (status == UMD_OK)
        status = rank(r, &image, 1, features, count, matches);
    for (uint32_t i = 0; i < count && features != NULL; i++)
        umdi_features_free(r->predictor, features[i]);
    umdi_delete(allocator, features);
    return status;
}

umd_status umd_rank_texts(umd_image *image, const char *const *texts, uint32_t count,
                          const char *task, int32_t method, uint32_t candidates,
                          const umd_call *call, umd_match *matches)
{
    ranking r = {0};
    umdi_control control;
    umd_status status;
    if (image == NULL || texts == NULL || matches == NULL)
        return umdi_missing("the image, the texts or the matches");
    UMDI_TRY(begin(&r, image->predictor, task, method, candidates, count));
    r.control = &control;
    status = umdi_control_begin(&control, &r.predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = rank_texts(&r, image, texts, count, matches);
    umdi_control_end(&control);
    return status;
}

umd_status umd_rank_images(const char *text, umd_image *const *images, uint32_t count,
                           const char *task, int32_t method, uint32_t candidates,
                           const umd_call *call, umd_match *matches)
{
    ranking r = {0};
    umdi_control control;
    umdi_features *features = NULL;
    umd_status status;
    if (images == NULL || matches == NULL || count == 0 || images[0] == NULL)
        return umdi_missing("the images or the matches");
    for (uint32_t i = 1; i < count; i++)
        if (images[i] == NULL || images[i]->predictor != images[0]->predictor)
            return umdi_fail(UMD_ERROR_USAGE, "image number %u is NULL or of another predictor", i);
    UMDI_TRY(begin(&r, images[0]->predictor, task, method, candidates, count));
    r.control = &control;
    status = umdi_control_begin(&control, &r.predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = encode(&r, text, &features);
    if (status == UMD_OK)
        status = rank(&r, images, count, &features, 1, matches);
    umdi_features_free(r.predictor, features);
    umdi_control_end(&control);
    return status;
}
