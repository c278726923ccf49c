/* Texts after the text encoder, and the cache of those that devices ask again and again. */
#include <string.h>

#include "predictor.h"

umd_status umdi_compose(const umd_predictor *predictor, umdi_text prompt, umdi_text text,
                        umdi_text *out)
{
    umdi_text first = umdi_strip(prompt), second = umdi_strip(text);
    char *whole = umdi_new(&predictor->allocator, first.length + second.length + 2, 1);
    size_t length = first.length;
    if (whole == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    memcpy(whole, first.text, first.length);
    if (first.length != 0 && second.length != 0)
        whole[length++] = ' ';
    memcpy(whole + length, second.text, second.length);
    out->text = whole;
    out->length = length + second.length;
    return UMD_OK;
}

void umdi_features_free(umd_predictor *predictor, umdi_features *features)
{
    const umdi_runtime *runtime = &predictor->runtime;
    if (features == NULL || atomic_fetch_sub(&features->users, 1) != 1)
        return;
    umdi_value_free(runtime, &features->ids_value);
    umdi_value_free(runtime, &features->mask_value);
    umdi_value_free(runtime, &features->tokens.value);
    umdi_value_free(runtime, &features->embedding.value);
    umdi_delete(&predictor->allocator, features->ids);
    umdi_delete(&predictor->allocator, features->mask);
    umdi_delete(&predictor->allocator, features);
}

static umd_status run_text(umd_predictor *predictor, umdi_text text, umdi_control *control,
                           bool wants_embedding, umdi_features *features)
{
    static const char *const names[] = {"text_tokens", "text_embedding"};
    size_t room = (size_t)predictor->manifest.max_length;
    const OrtValue *inputs[2];
    umdi_tensor outputs[2] = {0};
    int64_t shape[2] = {1, 0};
    features->ids = umdi_new(&predictor->allocator, room, sizeof *features->ids);
    features->mask = umdi_new(&predictor->allocator, room, sizeof *features->mask);
    if (features->ids == NULL || features->mask == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    UMDI_TRY(umdi_tokenize(&predictor->tokenizer, &predictor->allocator, text, features->ids,
                           &features->length));
    for (size_t i = 0; i < features->length; i++)
        features->mask[i] = 1;
    shape[1] = (int64_t)features->length;
    UMDI_TRY(umdi_tensor_wrap(&predictor->runtime, features->ids,
                              features->length * sizeof(int64_t), shape, 2, UMDI_ORT_INT64,
                              &features->ids_value));
    UMDI_TRY(umdi_tensor_wrap(&predictor->runtime, features->mask,
                              features->length * sizeof(int64_t), shape, 2, UMDI_ORT_INT64,
                              &features->mask_value));
    inputs[0] = features->ids_value;
    inputs[1] = features->mask_value;
    UMDI_TRY(umdi_graph_run(&predictor->graphs[UMDI_TEXT], control, inputs, names,
                            wants_embedding ? 2 : 1, outputs));
    features->tokens = outputs[0];
    features->embedding = outputs[1];
    return UMD_OK;
}

/* FNV-1a: so that a text is compared with few others. */
static uint64_t mark_of(umdi_text text)
{
    uint64_t mark = 0xcbf29ce484222325u;
    for (size_t i = 0; i < text.length; i++)
        mark = (mark ^ (unsigned char)text.text[i]) * 0x100000001b3u;
    return mark;
}

static umdi_features *take_cached(umd_predictor *predictor, umdi_text text)
{
    const uint64_t mark = mark_of(text);
    umdi_features *found = NULL;
    pthread_mutex_lock(&predictor->lock);
    for (size_t i = 0; i < UMDI_CACHED_TEXTS && found == NULL; i++) {
        umdi_cached *cached = &predictor->cache[i];
        if (cached->features == NULL || cached->mark != mark || cached->length != text.length ||
            memcmp(cached->text, text.text, text.length) != 0)
            continue;
        found = cached->features;
        cached->used = ++predictor->step;
        atomic_fetch_add(&found->users, 1);
    }
    pthread_mutex_unlock(&predictor->lock);
    return found;
}

/* Keep the text in place of the one that has not been used for longest. */
static void cache(umd_predictor *predictor, umdi_text text, umdi_features *features)
{
    char *copy = umdi_new(&predictor->allocator, text.length + 1, 1), *old_text;
    umdi_cached *oldest = predictor->cache;
    umdi_features *old;
    if (copy == NULL)
        return; /* then it is computed again */
    memcpy(copy, text.text, text.length);
    atomic_fetch_add(&features->users, 1);
    pthread_mutex_lock(&predictor->lock);
    for (size_t i = 1; i < UMDI_CACHED_TEXTS; i++)
        if (predictor->cache[i].used < oldest->used)
            oldest = &predictor->cache[i];
    old = oldest->features;
    old_text = oldest->text;
    oldest->text = copy;
    oldest->length = text.length;
    oldest->mark = mark_of(text);
    oldest->features = features;
    oldest->used = ++predictor->step;
    pthread_mutex_unlock(&predictor->lock);
    umdi_delete(&predictor->allocator, old_text);
    umdi_features_free(predictor, old);
}

umd_status umdi_encode_text(umd_predictor *predictor, umdi_text text, enum umdi_text_use use,
                            umdi_control *control, umdi_features **out)
{
    umdi_features *features = use == UMDI_TEXT_KEPT ? take_cached(predictor, text) : NULL;
    umd_status status;
    *out = features;
    if (features != NULL)
        return UMD_OK;
    features = umdi_new(&predictor->allocator, 1, sizeof *features);
    if (features == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    atomic_init(&features->users, 1);
    status = run_text(predictor, text, control, use == UMDI_TEXT_EMBEDDED, features);
    if (status != UMD_OK) {
        umdi_features_free(predictor, features);
        return status;
    }
    /* Two threads may both come here; both have computed the same bits. */
    if (use == UMDI_TEXT_KEPT)
        cache(predictor, text, features);
    *out = features;
    return UMD_OK;
}
