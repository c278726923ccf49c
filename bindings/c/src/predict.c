/* Asking and classifying: checks, text, fusion, decision. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "postprocess.h"
#include "predictor.h"

#define ALTERNATIVES 5

struct umd_result {
    umd_predictor *predictor;
    const umdi_task *task;
    int32_t status;
    char reason[UMDI_REASON_BYTES];
    uint32_t count;
    umd_item *items;
    double text_ms;
    double fusion_ms;
    double total_ms;
};

static umd_status new_result(umd_image *image, const umdi_task *task, umd_result **out)
{
    umd_predictor *predictor = image->predictor;
    umd_result *result = umdi_new(&predictor->allocator, 1, sizeof *result);
    if (result == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    result->predictor = predictor;
    result->task = task;
    atomic_fetch_add(&predictor->users, 1);
    umdi_outside(image, task, result->reason);
    if (result->reason[0] != '\0')
        result->status = UMD_RESULT_OUTSIDE_INTENDED_USE;
    *out = result;
    return UMD_OK;
}

void umd_result_free(umd_result *result)
{
    umd_predictor *predictor;
    if (result == NULL)
        return;
    predictor = result->predictor;
    umdi_delete(&predictor->allocator, result->items);
    umdi_delete(&predictor->allocator, result);
    umdi_release(predictor);
}

static void abstain(umd_result *result, double highest)
{
    const umdi_task *task = result->task;
    if (!task->has_abstain || highest >= task->abstain)
        return;
    result->status = UMD_RESULT_ABSTAIN;
    snprintf(result->reason, sizeof result->reason,
             "the highest probability is below the task's threshold of %g", task->abstain);
}

static void set_item(umd_result *result, uint32_t place, size_t output, const float *logits,
                     const double *probabilities, bool is_positive)
{
    umd_item *item = &result->items[place];
    item->output = (uint32_t)output;
    item->name = result->task->outputs.items[output].text;
    item->probability = probabilities[output];
    item->logit = logits[output];
    item->positive = is_positive;
}

/* All labels in their order, or the answer and its alternatives. */
static umd_status set_items(umd_result *result, const float *logits)
{
    const umdi_task *task = result->task;
    const umd_allocator *allocator = &result->predictor->allocator;
    size_t outputs = task->outputs.count, order[ALTERNATIVES + 1] = {0};
    size_t ranked = outputs < ALTERNATIVES + 1 ? outputs : ALTERNATIVES + 1;
    bool is_vqa = task->kind == UMD_VQA;
    double *probabilities = umdi_new(allocator, outputs, sizeof *probabilities);
    result->count = (uint32_t)(is_vqa ? ranked : outputs);
    result->items = umdi_new(allocator, result->count, sizeof *result->items);
    if (probabilities == NULL || result->items == NULL) {
        umdi_delete(allocator, probabilities);
        return UMD_ERROR_OUT_OF_MEMORY;
    }
    umdi_probabilities(task, logits, outputs, probabilities);
    umdi_most_probable(probabilities, outputs, ranked, order);
    for (uint32_t i = 0; i < result->count; i++) {
        size_t output = is_vqa ? order[i] : i;
        bool is_positive = output == order[0];
        if (task->multi_label && !is_vqa)
            is_positive = probabilities[i] >= task->operating_points[i];
        set_item(result, i, output, logits, probabilities, is_positive);
    }
    abstain(result, probabilities[order[0]]);
    umdi_delete(allocator, probabilities);
    return UMD_OK;
}

static umd_status check_logits(const umdi_task *task, const umdi_tensor *logits)
{
    size_t count = task->outputs.count;
    bool good = logits->rank == 2 && logits->shape[0] == 1 && logits->shape[1] == (int64_t)count;
    for (size_t i = 0; i < count && good; i++)
        good = isfinite(logits->data[i]);
    if (good)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_INFERENCE,
                     "'%.120s' is not %zu finite numbers; run the self-test on this machine",
                     task->output_name.text, count);
}

/* Text, fusion and decision of one sample into a result that is not outside its intended use. */
static umd_status decide(umd_result *result, const umd_image *image, umdi_text text, bool may_cache,
                         const umdi_values *values, umdi_control *control)
{
    umd_predictor *predictor = result->predictor;
    double start = umdi_now_ms(), ready;
    umdi_features *features;
    umdi_tensor logits;
    umd_status status;
    UMDI_TRY(umdi_check_text(text, "text"));
    UMDI_TRY(umdi_encode_text(predictor, text, may_cache, control, &features));
    ready = umdi_now_ms();
    status = umdi_fuse(image, features, values, result->task->output_name.text, control, &logits);
    umdi_features_free(predictor, features);
    if (status != UMD_OK)
        return status;
    status = check_logits(result->task, &logits);
    if (status == UMD_OK)
        status = set_items(result, logits.data);
    umdi_value_free(&predictor->runtime, &logits.value);
    result->text_ms = ready - start;
    result->total_ms = umdi_now_ms() - start;
    result->fusion_ms = result->total_ms - result->text_ms;
    return status;
}

static umd_status ask(umd_image *image, const char *question, const char *name,
                      umdi_control *control, umd_result **out)
{
    const umdi_task *task = NULL;
    umd_result *result;
    umdi_text text = {NULL, 0};
    umd_status status;
    *out = NULL;
    if (image == NULL || question == NULL)
        return umdi_missing("the image or the question");
    UMDI_TRY(umdi_find_task(image->predictor, name, UMD_VQA, &task));
    UMDI_TRY(umdi_check_text(umdi_of(question), "question"));
    UMDI_TRY(new_result(image, task, &result));
    status = UMD_OK;
    if (result->status == UMD_RESULT_OK) {
        status = umdi_compose(image->predictor, task->prompt, umdi_of(question), &text);
        if (status == UMD_OK)
            status = decide(result, image, text, true, &image->predictor->no_values, control);
        umdi_delete(&image->predictor->allocator, (void *)(uintptr_t)text.text);
    }
    if (status == UMD_OK)
        *out = result;
    else
        umd_result_free(result);
    return status;
}

umd_status umd_ask(umd_image *image, const char *question, const char *task, const umd_call *call,
                   umd_result **out)
{
    umdi_control control;
    umd_status status;
    if (out == NULL || image == NULL)
        return umdi_missing("the image or out");
    *out = NULL;
    status = umdi_control_begin(&control, &image->predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = ask(image, question, task, &control, out);
    umdi_control_end(&control);
    return status;
}

umd_status umd_ask_batch(umd_image *const *images, const char *const *questions, size_t count,
                         const char *task, const umd_call *call, umd_status *statuses,
                         umd_result **results)
{
    umdi_control control;
    umd_status status, first = UMD_OK;
    if (count == 0)
        return umdi_fail(UMD_ERROR_USAGE, "no question given; at least one is needed");
    if (images == NULL || images[0] == NULL || questions == NULL || statuses == NULL ||
        results == NULL)
        return umdi_missing("a list, or the first image,");
    memset(results, 0, count * sizeof *results);
    status = umdi_control_begin(&control, &images[0]->predictor->runtime.ort, call);
    for (size_t i = 0; i < count; i++) {
        statuses[i] = status != UMD_OK ? status
                                       : ask(images[i], questions[i], task, &control, &results[i]);
        if (first == UMD_OK)
            first = statuses[i];
    }
    umdi_control_end(&control);
    return first;
}

/* What the text encoder reads: the prompt alone, or with the text that was given behind it. */
static umd_status classify_text(const umd_predictor *predictor, const umdi_task *task,
                                const char *given, umdi_text *text)
{
    if (given != NULL && !task->reads_text)
        return umdi_fail(UMD_ERROR_TEXT_INPUT, "task '%.60s' reads no text; leave the text out",
                         task->name.text);
    if (given != NULL)
        UMDI_TRY(umdi_check_text(umdi_of(given), "text"));
    return umdi_compose(predictor, task->prompt, umdi_of(given != NULL ? given : ""), text);
}

static umd_status classify(umd_image *image, const umdi_task *task,
                           const umd_classify_options *options, umdi_control *control,
                           umd_result *result)
{
    umd_predictor *predictor = image->predictor;
    umdi_values values;
    umdi_text text = {NULL, 0};
    umd_status status = umdi_values_init(predictor, &values);
    if (status == UMD_OK)
        status = classify_text(predictor, task, options->text, &text);
    if (status == UMD_OK)
        status = umdi_values_fill(predictor, task, options->values, options->value_count, &values);
    if (status == UMD_OK && result->status == UMD_RESULT_OK)
        status = decide(result, image, text, options->text == NULL, &values, control);
    umdi_delete(&predictor->allocator, (void *)(uintptr_t)text.text);
    umdi_values_free(predictor, &values);
    return status;
}

umd_status umd_classify(umd_image *image, const char *name, const umd_classify_options *given,
                        const umd_call *call, umd_result **out)
{
    umd_classify_options options;
    umdi_control control;
    const umdi_task *task = NULL;
    umd_result *result;
    umd_status status;
    if (out != NULL)
        *out = NULL;
    if (out == NULL || image == NULL || name == NULL)
        return umdi_missing("the image, the task or out");
    UMDI_TRY(umdi_take(&options, sizeof options, given, "umd_classify_options"));
    UMDI_TRY(umdi_find_task(image->predictor, name, UMD_CLASSIFICATION, &task));
    UMDI_TRY(new_result(image, task, &result));
    status = umdi_control_begin(&control, &image->predictor->runtime.ort, call);
    if (status == UMD_OK)
        status = classify(image, task, &options, &control, result);
    umdi_control_end(&control);
    if (status == UMD_OK)
        *out = result;
    else
        umd_result_free(result);
    return status;
}

umd_status umd_get_result(const umd_result *result, umd_result_info *info)
{
    umd_result_info facts;
    if (result == NULL)
        return umdi_missing("the result");
    memset(&facts, 0, sizeof facts);
    facts.status = result->status;
    facts.reason = result->reason;
    facts.task = result->task->name.text;
    facts.count = result->count;
    facts.text_ms = result->text_ms;
    facts.fusion_ms = result->fusion_ms;
    facts.total_ms = result->total_ms;
    return umdi_give(info, &facts, sizeof facts, "umd_result_info");
}

umd_status umd_get_item(const umd_result *result, uint32_t index, umd_item *item)
{
    umd_item facts;
    if (result == NULL)
        return umdi_missing("the result");
    if (index >= result->count)
        return umdi_fail(UMD_ERROR_USAGE, "item number %u given; the result has %u", index,
                         result->count);
    facts = result->items[index];
    return umdi_give(item, &facts, sizeof facts, "umd_item");
}
