/* Asking and classifying: checks, text, fusion, decision. */
#include <math.h>
#include <string.h>

#include "result.h"

/* Whether a share that was asked for is one, or 0 for none. */
static bool is_share(double value)
{
    return value >= 0 && value < 1;
}

/* Refuse what no label of the task can reach, before anything is computed. */
static umd_status check_operating(const umdi_task *task, const umd_classify_options *options)
{
    double sensitivity = options->sensitivity, specificity = options->specificity;
    bool reached = false;
    if (!is_share(sensitivity) || !is_share(specificity))
        return umdi_fail(UMD_ERROR_USAGE, "sensitivity %g, specificity %g given; a number above 0 "
                         "and below 1 is allowed, 0 for none", sensitivity, specificity);
    if (sensitivity > 0 && specificity > 0)
        return umdi_fail(UMD_ERROR_USAGE, "give either a sensitivity or a specificity, not both");
    if (sensitivity <= 0 && specificity <= 0)
        return UMD_OK;
    if (task->curves == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "task '%.60s' of this bundle has no operating curves; fit "
                         "them with `umd-edge-export trust` on labelled records", task->name.text);
    for (size_t i = 0; i < task->outputs.count && !reached; i++)
        if (task->curves[i].count != 0)
            umdi_curve_point(&task->curves[i], sensitivity, specificity, &reached);
    if (reached)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_USAGE, "no label of task '%.60s' can promise %s %g; its validation "
                     "records are too few", task->name.text,
                     sensitivity > 0 ? "sensitivity" : "specificity",
                     sensitivity > 0 ? sensitivity : specificity);
}

/* Each label with a curve is decided on its own, at the point that was asked for. */
static void decide_at(umd_result *result, const umd_classify_options *options)
{
    const umdi_task *task = result->task;
    bool asked = options->sensitivity > 0 || options->specificity > 0;
    for (uint32_t i = 0; i < result->count && asked; i++) {
        umd_item *item = &result->items[i];
        const umdi_curve *curve = &task->curves[i];
        bool reached;
        size_t point;
        if (curve->count == 0)
            continue;
        point = umdi_curve_point(curve, options->sensitivity, options->specificity, &reached);
        item->threshold = curve->thresholds[point];
        item->sensitivity = curve->sensitivities[point];
        item->specificity = curve->specificities[point];
        item->positive = item->probability >= item->threshold;
        item->point = reached ? UMD_POINT_REACHED : UMD_POINT_BEST;
    }
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
static umd_status decide(umd_result *result, const umd_image *image, umdi_text text,
                         enum umdi_text_use use, const umdi_values *values, umdi_control *control)
{
    umd_predictor *predictor = result->predictor;
    double start = umdi_now_ms(), ready;
    umdi_features *features;
    umdi_tensor logits;
    umd_status status;
    UMDI_TRY(umdi_check_text(text, "text"));
    UMDI_TRY(umdi_encode_text(predictor, text, use, control, &features));
    ready = umdi_now_ms();
    status = umdi_fuse(image, features, values, result->task->output_name.text, control, &logits);
    umdi_features_free(predictor, features);
    if (status != UMD_OK)
        return status;
    status = check_logits(result->task, &logits);
    if (status == UMD_OK)
        status = umdi_result_fill(result, logits.data);
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
    UMDI_TRY(umdi_result_new(image, task, &result));
    status = UMD_OK;
    if (result->status == UMD_RESULT_OK) {
        status = umdi_compose(image->predictor, task->prompt, umdi_of(question), &text);
        if (status == UMD_OK)
            status = decide(result, image, text, UMDI_TEXT_KEPT, &image->predictor->no_values,
                            control);
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
        status = check_operating(task, options);
    if (status == UMD_OK)
        status = classify_text(predictor, task, options->text, &text);
    if (status == UMD_OK)
        status = umdi_values_fill(predictor, task, options->values, options->value_count, &values);
    if (status == UMD_OK && result->status == UMD_RESULT_OK)
        status = decide(result, image, text,
                        options->text == NULL ? UMDI_TEXT_KEPT : UMDI_TEXT_ONCE, &values, control);
    if (status == UMD_OK)
        decide_at(result, options);
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
    UMDI_TRY(umdi_result_new(image, task, &result));
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
