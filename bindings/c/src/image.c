/* Encoding an image once, and what an encoded image and a text have in common. */
#include <stdio.h>
#include <string.h>

#include "predictor.h"
#include "preprocess.h"

static umd_status go_on(void *context)
{
    (void)context;
    return UMD_OK;
}

static size_t pixel_values(const umd_predictor *predictor)
{
    const umdi_preprocessing *spec = &predictor->manifest.preprocessing;
    return (size_t)spec->channels * (size_t)spec->height * (size_t)spec->width;
}

/* Tell the room that is needed, and whether it is there. */
static umd_status check_room(const void *values, size_t *count, size_t needed, bool *is_query)
{
    size_t room;
    if (count == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "count is NULL; give the room at the buffer");
    room = *count;
    *count = needed;
    *is_query = values == NULL;
    if (values != NULL && room < needed)
        return umdi_fail(UMD_ERROR_BUFFER_TOO_SMALL, "the buffer has room for %zu; %zu are needed",
                         room, needed);
    return UMD_OK;
}

umd_status umd_preprocess(umd_predictor *predictor, const umd_pixels *pixels, float *values,
                          size_t *count)
{
    bool is_query = true;
    if (predictor == NULL || pixels == NULL)
        return umdi_missing("the predictor or the pixels");
    UMDI_TRY(check_room(values, count, pixel_values(predictor), &is_query));
    if (is_query)
        return UMD_OK;
    return umdi_preprocess(&predictor->manifest.preprocessing, &predictor->allocator, pixels, go_on,
                           NULL, NULL, values);
}

umd_status umd_tokenize(umd_predictor *predictor, const char *text, int64_t *ids, size_t *count)
{
    size_t room, used = 0;
    int64_t *own;
    bool is_query = true;
    umd_status status;
    if (predictor == NULL || text == NULL)
        return umdi_missing("the predictor or the text");
    UMDI_TRY(umdi_check_text(umdi_of(text), "text"));
    room = (size_t)predictor->manifest.max_length;
    own = umdi_new(&predictor->allocator, room, sizeof *own);
    if (own == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    status = umdi_tokenize(&predictor->tokenizer, &predictor->allocator, umdi_of(text), own, &used);
    if (status == UMD_OK)
        status = check_room(ids, count, used, &is_query);
    if (status == UMD_OK && !is_query)
        memcpy(ids, own, used * sizeof *own);
    umdi_delete(&predictor->allocator, own);
    return status;
}

static umd_status copy_text(const umd_predictor *predictor, const char *text, char **out)
{
    if (text == NULL)
        return UMD_OK;
    if (umdi_characters(umdi_of(text)) == SIZE_MAX)
        return umdi_fail(UMD_ERROR_IMAGE_INPUT, "a DICOM value is not UTF-8; convert it");
    *out = umdi_new(&predictor->allocator, strlen(text) + 1, 1);
    if (*out == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    memcpy(*out, text, strlen(text));
    return UMD_OK;
}

/* How far the image is from those of each task, by what it looks like and what the graph sees. */
static umd_status score_image(umd_image *image, const umdi_picture *picture)
{
    umd_predictor *predictor = image->predictor;
    const umdi_preprocessing *spec = &predictor->manifest.preprocessing;
    const umdi_manifest *manifest = &predictor->manifest;
    size_t width = image->tokens.rank == 3 ? (size_t)image->tokens.shape[2] : 0;
    double appearance[UMDI_APPEARANCE];
    double *statistics = umdi_new(&predictor->allocator, width, 4 * sizeof *statistics);
    umd_status status = UMD_OK;
    image->ood_scores = umdi_new(&predictor->allocator, manifest->task_count,
                                 sizeof *image->ood_scores);
    if (statistics == NULL || image->ood_scores == NULL) {
        umdi_delete(&predictor->allocator, statistics);
        return UMD_ERROR_OUT_OF_MEMORY;
    }
    umdi_token_statistics(image->tokens.data, (size_t)image->tokens.shape[1], width, statistics);
    umdi_appearance(picture->levels, picture->channels, (size_t)spec->height, (size_t)spec->width,
                    appearance);
    for (size_t i = 0; i < manifest->task_count && status == UMD_OK; i++) {
        const umdi_ood_model *model = &predictor->ood[i];
        if (model->centre != NULL && model->width != 2 * width)
            status = umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                               "the out-of-distribution arrays of the bundle were fitted on tokens "
                               "of another width than its vision graph gives; fit them again");
        else if (model->centre != NULL)
            image->ood_scores[i] = umdi_ood_image(model, &manifest->tasks[i].ood, statistics,
                                                  appearance, statistics + 2 * width);
    }
    umdi_delete(&predictor->allocator, statistics);
    return status;
}

static umd_status run_vision(umd_image *image, const umd_pixels *pixels, umdi_control *control,
                             umdi_picture *picture, float *values)
{
    static const char *const names[] = {"image_tokens", "image_embedding"};
    umd_predictor *predictor = image->predictor;
    const umdi_preprocessing *spec = &predictor->manifest.preprocessing;
    const int64_t shape[4] = {1, spec->channels, spec->height, spec->width};
    OrtValue *input = NULL;
    umdi_tensor outputs[2];
    umd_status status;
    UMDI_TRY(umdi_preprocess(spec, &predictor->allocator, pixels, umdi_control_check, control,
                             picture, values));
    UMDI_TRY(umdi_tensor_wrap(&predictor->runtime, values, pixel_values(predictor) * sizeof(float),
                              shape, 4, UMDI_ORT_FLOAT, &input));
    status = umdi_graph_run(&predictor->graphs[UMDI_VISION], control,
                            (const OrtValue *const[]){input}, names, 2, outputs);
    umdi_value_free(&predictor->runtime, &input);
    if (status != UMD_OK)
        return status;
    image->tokens = outputs[0];
    image->embedding = outputs[1];
    atomic_store(&predictor->embedding_size, umdi_tensor_size(&image->embedding));
    return picture != NULL ? score_image(image, picture) : UMD_OK;
}

static umd_status encode(umd_image *image, const umd_pixels *given, const umd_call *call)
{
    umd_predictor *predictor = image->predictor;
    umd_pixels pixels;
    umdi_control control;
    umdi_picture picture = {NULL, 0};
    float *values;
    umd_status status;
    UMDI_TRY(umdi_take(&pixels, sizeof pixels, given, "umd_pixels"));
    UMDI_TRY(copy_text(predictor, pixels.dicom_modality, &image->facts[UMDI_MODALITY]));
    UMDI_TRY(copy_text(predictor, pixels.body_part, &image->facts[UMDI_BODY_PART]));
    UMDI_TRY(copy_text(predictor, pixels.view, &image->facts[UMDI_VIEW]));
    UMDI_TRY(copy_text(predictor, pixels.burned_in_annotation, &image->facts[UMDI_BURNED_IN]));
    values = umdi_new(&predictor->allocator, pixel_values(predictor), sizeof *values);
    if (values != NULL && predictor->ood != NULL)
        picture.levels = umdi_new(&predictor->allocator, pixel_values(predictor), 3);
    if (values == NULL || (predictor->ood != NULL && picture.levels == NULL)) {
        umdi_delete(&predictor->allocator, values);
        return UMD_ERROR_OUT_OF_MEMORY;
    }
    status = umdi_control_begin(&control, &predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = run_vision(image, given, &control, picture.levels != NULL ? &picture : NULL,
                            values);
    umdi_control_end(&control);
    umdi_delete(&predictor->allocator, picture.levels);
    umdi_delete(&predictor->allocator, values);
    return status;
}

umd_status umd_encode(umd_predictor *predictor, const umd_pixels *pixels, const umd_call *call,
                      umd_image **out)
{
    umd_image *image;
    umd_status status;
    if (out != NULL)
        *out = NULL;
    if (predictor == NULL || pixels == NULL || out == NULL)
        return umdi_missing("the predictor, the pixels or out");
    image = umdi_new(&predictor->allocator, 1, sizeof *image);
    if (image == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    image->predictor = predictor;
    atomic_fetch_add(&predictor->users, 1);
    status = encode(image, pixels, call);
    if (status == UMD_OK)
        *out = image;
    else
        umd_image_free(image);
    return status;
}

void umd_image_free(umd_image *image)
{
    umd_predictor *predictor;
    if (image == NULL)
        return;
    predictor = image->predictor;
    umdi_value_free(&predictor->runtime, &image->tokens.value);
    umdi_value_free(&predictor->runtime, &image->embedding.value);
    umdi_delete(&predictor->allocator, image->ood_scores);
    for (size_t i = 0; i < UMDI_FACTS; i++)
        umdi_delete(&predictor->allocator, image->facts[i]);
    umdi_delete(&predictor->allocator, image);
    umdi_release(predictor);
}

static umd_status copy_embedding(const umdi_tensor *embedding, float *values, size_t *count)
{
    size_t size = umdi_tensor_size(embedding);
    bool is_query = true;
    UMDI_TRY(check_room(values, count, size, &is_query));
    if (!is_query)
        memcpy(values, embedding->data, size * sizeof *values);
    return UMD_OK;
}

umd_status umd_embed_image(umd_image *image, float *values, size_t *count)
{
    if (image == NULL)
        return umdi_missing("the image");
    return copy_embedding(&image->embedding, values, count);
}

umd_status umd_embed_text(umd_predictor *predictor, const char *text, const umd_call *call,
                          float *values, size_t *count)
{
    umdi_control control;
    umdi_features *features = NULL;
    umd_status status;
    if (predictor == NULL || text == NULL)
        return umdi_missing("the predictor or the text");
    UMDI_TRY(umdi_check_text(umdi_of(text), "text"));
    status = umdi_control_begin(&control, &predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = umdi_encode_text(predictor, umdi_of(text), UMDI_TEXT_EMBEDDED, &control, &features);
    if (status == UMD_OK) {
        atomic_store(&predictor->embedding_size, umdi_tensor_size(&features->embedding));
        status = copy_embedding(&features->embedding, values, count);
    }
    umdi_control_end(&control);
    umdi_features_free(predictor, features);
    return status;
}

static bool is_allowed(const umdi_texts *allowed, const char *value)
{
    if (!allowed->given || value == NULL)
        return true;
    for (size_t i = 0; i < allowed->count; i++)
        if (umdi_equal_folded(allowed->items[i], umdi_of(value)))
            return true;
    return false;
}

void umdi_outside(const umd_image *image, const umdi_task *task, char reason[UMDI_REASON_BYTES])
{
    static const char *const tags[UMDI_FACTS] = {
        "Modality (0008,0060)", "BodyPartExamined (0018,0015)", "ViewPosition (0018,5101)",
        "BurnedInAnnotation (0028,0301)"};
    reason[0] = '\0';
    for (size_t i = 0; i < UMDI_FACTS; i++) {
        if (is_allowed(&task->applies_to[i], image->facts[i]))
            continue;
        snprintf(reason, UMDI_REASON_BYTES,
                 "%s of the DICOM header is none of those for which task '%.100s' is meant",
                 tags[i], task->name.text);
        return;
    }
}

umd_status umdi_fuse(const umd_image *image, const umdi_features *text, const umdi_values *values,
                     const char *output, umdi_control *control, umdi_tensor *out)
{
    const OrtValue *inputs[UMDI_FUSION_INPUTS] = {image->tokens.value, text->tokens.value,
                                                  text->mask_value, values->numbers_value,
                                                  values->mask_value};
    return umdi_graph_run(&image->predictor->graphs[UMDI_FUSION], control, inputs, &output, 1, out);
}
