/* From logits to items, a status and prediction sets. */
#include "result.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "postprocess.h"

#define ALTERNATIVES 5

umd_status umdi_result_new(umd_image *image, const umdi_task *task, umd_result **out)
{
    umd_predictor *predictor = image->predictor;
    umd_result *result = umdi_new(&predictor->allocator, 1, sizeof *result);
    if (result == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    result->predictor = predictor;
    result->task = task;
    result->ood_score = NAN;
    atomic_fetch_add(&predictor->users, 1);
    result->has_image_score = image->ood_scores != NULL && task->ood.file.text != NULL;
    if (result->has_image_score)
        result->image_score = image->ood_scores[task - predictor->manifest.tasks];
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
    umdi_delete(&predictor->allocator, result->shares);
    umdi_delete(&predictor->allocator, result);
    umdi_release(predictor);
}

static void abstain(umd_result *result, double confidence)
{
    const umdi_task *task = result->task;
    if (!task->has_abstain || confidence >= task->abstain)
        return;
    result->status = UMD_RESULT_ABSTAIN;
    snprintf(result->reason, sizeof result->reason, "the %s is below the task's threshold of %g",
             task->multi_label ? "mean certainty of the labels" : "highest probability",
             task->abstain);
}

static void far_off(umd_result *result, umdi_ood_score score)
{
    static const char *const reasons[UMDI_OOD_PARTS] = {
        "what the vision encoder sees in it is", "its grey levels, edges and colours are",
        "the energy of the task's outputs is"};
    result->status = UMD_RESULT_OUT_OF_DISTRIBUTION;
    snprintf(result->reason, sizeof result->reason,
             "the image is unlike those that the task was fitted on: %s %.2f times as far from them "
             "as the threshold allows",
             reasons[score.part], score.value);
}

/* The answer and its alternatives. Few of many answers are listed: only those go through the last
 * step of the scaling. */
static void list_answers(umd_result *result, const float *logits)
{
    const umdi_task *task = result->task;
    size_t order[ALTERNATIVES + 1] = {0};
    umdi_most_probable(result->shares, task->outputs.count, result->count, order);
    for (uint32_t i = 0; i < result->count; i++) {
        umd_item *item = &result->items[i];
        item->output = (uint32_t)order[i];
        item->name = task->outputs.items[order[i]].text;
        item->probability = result->shares[order[i]];
        umdi_probabilities(task, &item->probability, 1);
        item->logit = logits[order[i]];
        item->positive = i == 0;
    }
}

/* All labels in their order; the confidence in them comes back. */
static double list_labels(umd_result *result, const float *logits, double *probabilities)
{
    const umdi_task *task = result->task;
    size_t outputs = task->outputs.count, first = 0;
    memcpy(probabilities, result->shares, outputs * sizeof *probabilities);
    umdi_probabilities(task, probabilities, outputs);
    umdi_most_probable(probabilities, outputs, 1, &first);
    for (uint32_t i = 0; i < result->count; i++) {
        umd_item *item = &result->items[i];
        item->output = i;
        item->name = task->outputs.items[i].text;
        item->probability = probabilities[i];
        item->logit = logits[i];
        item->positive = task->multi_label ? probabilities[i] >= task->operating_points[i]
                                           : i == first;
    }
    return umdi_confidence(task, probabilities, outputs);
}

umd_status umdi_result_fill(umd_result *result, const float *logits)
{
    const umdi_task *task = result->task;
    const umd_allocator *allocator = &result->predictor->allocator;
    size_t outputs = task->outputs.count;
    size_t ranked = outputs < ALTERNATIVES + 1 ? outputs : ALTERNATIVES + 1;
    umdi_ood_score score = result->image_score;
    double *scratch = umdi_new(allocator, outputs, sizeof *scratch), confidence;
    result->shares = umdi_new(allocator, outputs, sizeof *result->shares);
    result->count = (uint32_t)(task->kind == UMD_VQA ? ranked : outputs);
    result->items = umdi_new(allocator, result->count, sizeof *result->items);
    if (scratch == NULL || result->shares == NULL || result->items == NULL) {
        umdi_delete(allocator, scratch);
        return UMD_ERROR_OUT_OF_MEMORY;
    }
    if (result->has_image_score) {
        score = umdi_ood_whole(&task->ood, result->image_score, logits, outputs, task->multi_label,
                               scratch);
        result->ood_score = score.value;
    }
    umdi_shares(task, logits, outputs, result->shares);
    if (task->has_other)
        result->other_share = umdi_other_share(result->shares, outputs);
    if (task->kind == UMD_VQA) {
        list_answers(result, logits);
        confidence = result->items[0].probability;
    } else {
        confidence = list_labels(result, logits, scratch);
    }
    umdi_delete(allocator, scratch);
    if (result->ood_score > 1.0)
        far_off(result, score);
    else
        abstain(result, confidence);
    return UMD_OK;
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
    facts.ood_score = result->ood_score;
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

static bool is_in(const umdi_conformal *conformal, const umdi_limits *limits, size_t row,
                  double share, bool *complete)
{
    double limit = umdi_limit(conformal, limits, row);
    *complete = *complete || isnan(limit);
    return isnan(limit) || share >= limit;
}

/* The states of every label, in the task's order. */
static size_t label_states(const umd_result *result, size_t row, umd_member *members,
                           umd_set *facts)
{
    const umdi_task *task = result->task;
    const umdi_conformal *conformal = &task->conformal;
    bool complete = false;
    facts->n = UINT32_MAX;
    for (size_t i = 0; i < task->outputs.count; i++) {
        const umdi_limits *present = &conformal->present[i], *absent = &conformal->absent[i];
        double share = result->shares[i];
        umdi_probabilities(task, &share, 1);
        members[i].output = (uint32_t)i;
        members[i].states = is_in(conformal, present, row, share, &complete) ? UMD_PRESENT : 0;
        if (is_in(conformal, absent, row, 1.0 - share, &complete))
            members[i].states |= UMD_ABSENT;
        facts->n = present->n < facts->n ? present->n : facts->n;
        facts->n = absent->n < facts->n ? absent->n : facts->n;
    }
    facts->complete = complete;
    return task->outputs.count;
}

/* The outputs that may be right, the most probable first. */
static umd_status right_outputs(const umd_result *result, size_t row, umd_member *members,
                                umd_set *facts, size_t *used)
{
    const umdi_conformal *conformal = &result->task->conformal;
    const umd_allocator *allocator = &result->predictor->allocator;
    size_t outputs = result->task->outputs.count;
    size_t *order = umdi_new(allocator, outputs, sizeof *order);
    double *probabilities = umdi_new(allocator, outputs, sizeof *probabilities);
    bool complete = false;
    if (order == NULL || probabilities == NULL) {
        umdi_delete(allocator, order);
        umdi_delete(allocator, probabilities);
        return UMD_ERROR_OUT_OF_MEMORY;
    }
    memcpy(probabilities, result->shares, outputs * sizeof *probabilities);
    umdi_probabilities(result->task, probabilities, outputs);
    umdi_most_probable(probabilities, outputs, outputs, order);
    *used = 0;
    for (size_t i = 0; i < outputs; i++) {
        if (!is_in(conformal, &conformal->any_output, row, probabilities[order[i]], &complete))
            break;
        members[(*used)++] = (umd_member){(uint32_t)order[i], UMD_PRESENT};
    }
    umdi_delete(allocator, order);
    umdi_delete(allocator, probabilities);
    if (conformal->has_other && result->task->has_other) {
        bool unknown = false;
        facts->other = is_in(conformal, &conformal->other, row, result->other_share, &unknown);
    }
    facts->n = conformal->any_output.n;
    facts->complete = complete;
    return UMD_OK;
}

umd_status umd_get_set(const umd_result *result, double coverage, umd_set *set,
                       umd_member *members, size_t *count)
{
    const umdi_conformal *conformal;
    umd_set facts;
    umd_member *own;
    size_t used = 0, row;
    umd_status status = UMD_OK;
    if (result == NULL || set == NULL || count == NULL)
        return umdi_missing("the result, the set or the count");
    conformal = &result->task->conformal;
    if (!(coverage > 0 && coverage < 1))
        return umdi_fail(UMD_ERROR_USAGE, "coverage %g given; a number above 0 and below 1 is "
                         "needed", coverage);
    if (conformal->coverage_count == 0)
        return umdi_fail(UMD_ERROR_USAGE, "task '%.60s' of this bundle has no conformal thresholds; "
                         "fit them with `umd-edge-export trust` on labelled records",
                         result->task->name.text);
    if (result->shares == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "the result has no items, so nothing to choose from; look "
                         "at its status");
    memset(&facts, 0, sizeof facts);
    facts.other = -1;
    own = umdi_new(&result->predictor->allocator, result->task->outputs.count, sizeof *own);
    if (own == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    row = umdi_conformal_row(conformal, coverage);
    if (conformal->by_class)
        used = label_states(result, row, own, &facts);
    else
        status = right_outputs(result, row, own, &facts, &used);
    if (status == UMD_OK)
        status = umdi_give(set, &facts, sizeof facts, "umd_set");
    if (status == UMD_OK && members != NULL && *count < used)
        status = umdi_fail(UMD_ERROR_BUFFER_TOO_SMALL, "room for %zu members given; %zu are needed",
                           *count, used);
    else if (status == UMD_OK && members != NULL)
        memcpy(members, own, used * sizeof *own);
    if (status == UMD_OK || status == UMD_ERROR_BUFFER_TOO_SMALL)
        *count = used;
    umdi_delete(&result->predictor->allocator, own);
    return status;
}
