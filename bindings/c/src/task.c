#include "task.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fields.h"

static const char *const nothing[] = {NULL};

static bool contains(const umdi_text *texts, size_t count, umdi_text wanted)
{
    for (size_t i = 0; i < count; i++)
        if (umdi_compare(texts[i], wanted) == 0)
            return true;
    return false;
}

umd_status umdi_field_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                            umdi_field *field)
{
    static const char *const needed[] = {"name", "kind", NULL};
    static const char *const optional[] = {"unit", "mean", "std", "categories", NULL};
    static const char *const kinds[] = {"binary", "numeric", "categorical"};
    const umdi_json *item;
    umdi_text kind;
    size_t index = 0;
    UMDI_TRY(umdi_check_object(value, path, needed, optional));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "name"), path, &field->name));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "kind"), path, &kind));
    while (index < UMDI_COUNT(kinds) && !umdi_equal(kind, kinds[index]))
        index++;
    if (index == UMDI_COUNT(kinds))
        return umdi_bad_field(path, "the kind is none of binary, numeric, categorical");
    field->kind = (enum umdi_field_kind)index;
    field->unit = umdi_of("");
    field->mean = 0.0;
    field->std = 1.0;
    if ((item = umdi_json_get(value, "unit")) != NULL)
        UMDI_TRY(umdi_read_text(item, path, &field->unit));
    if ((item = umdi_json_get(value, "mean")) != NULL)
        UMDI_TRY(umdi_read_number(item, path, &field->mean));
    if ((item = umdi_json_get(value, "std")) != NULL)
        UMDI_TRY(umdi_read_number(item, path, &field->std));
    if ((item = umdi_json_get(value, "categories")) != NULL)
        UMDI_TRY(umdi_read_texts(arena, item, path, &field->categories, &field->category_count));
    if (!(field->std > 0))
        return umdi_bad_field(path, "std must be positive");
    if ((field->kind == UMDI_CATEGORICAL) != (field->category_count != 0))
        return umdi_bad_field(path, "categories belong to a categorical field, and only there");
    return UMD_OK;
}

/* Whether a record path names free text: by its last part. */
static bool is_text_path(umdi_text path)
{
    static const char *const names[] = {"text",       "caption",  "note",        "findings",
                                        "impression", "question", "note_masked", "findings_masked"};
    size_t start = path.length;
    while (start > 0 && path.text[start - 1] != '.')
        start--;
    umdi_text last = {path.text + start, path.length - start};
    for (size_t i = 0; i < UMDI_COUNT(names); i++)
        if (umdi_equal(last, names[i]))
            return true;
    return false;
}

static umd_status read_reads(umdi_arena *arena, const umdi_json *value, const char *path,
                             const umdi_manifest *manifest, umdi_task *task)
{
    umdi_text *reads = NULL;
    size_t count = 0;
    task->reads_field = umdi_arena_new(arena, manifest->field_count, sizeof *task->reads_field);
    if (task->reads_field == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (value != NULL)
        UMDI_TRY(umdi_read_texts(arena, value, path, &reads, &count));
    for (size_t i = 0; i < count; i++) {
        bool known = is_text_path(reads[i]);
        task->reads_text = task->reads_text || known;
        for (size_t k = 0; k < manifest->field_count && !known; k++) {
            known = contains(&manifest->fields[k].name, 1, reads[i]);
            task->reads_field[k] = task->reads_field[k] || known;
        }
        if (!known)
            return umdi_bad_field(path, "it reads a value that is not in structured_fields");
    }
    for (size_t k = 0; k < manifest->field_count; k++)
        task->field_count += task->reads_field[k];
    return UMD_OK;
}

/* What only training and evaluation use is checked and dropped. */
static umd_status check_rest(const umdi_json *value, const char *path)
{
    static const char *const needed[] = {"field", NULL};
    static const char *const optional[] = {"map", "absent", "on_unmapped", NULL};
    const umdi_json *target = umdi_json_get(value, "target"), *item;
    umdi_text text;
    if ((item = umdi_json_get(value, "select")) != NULL) {
        UMDI_TRY(umdi_check_type(item, path, UMDI_OBJECT));
        for (item = item->items; item != NULL; item = item->next)
            UMDI_TRY(umdi_check_type(item, path, UMDI_ARRAY));
    }
    if ((item = umdi_json_get(value, "group")) != NULL)
        UMDI_TRY(umdi_read_text(item, path, &text));
    if (target == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_object(target, path, needed, optional));
    UMDI_TRY(umdi_read_text(umdi_json_get(target, "field"), path, &text));
    if (text.length == 0)
        return umdi_bad_field(path, "target.field: a record path is needed");
    if ((item = umdi_json_get(target, "map")) != NULL) {
        UMDI_TRY(umdi_check_type(item, path, UMDI_OBJECT));
        for (item = item->items; item != NULL; item = item->next)
            if (item->type != UMDI_STRING && item->type != UMDI_NULL)
                return umdi_bad_field(path, "target.map: strings or nulls are needed");
    }
    if ((item = umdi_json_get(target, "absent")) != NULL &&
        (item->type != UMDI_STRING ||
         (!umdi_equal(item->string, "negative") && !umdi_equal(item->string, "unknown") &&
          !umdi_equal(item->string, "error"))))
        return umdi_bad_field(path, "target.absent: negative, unknown or error allowed");
    if ((item = umdi_json_get(target, "on_unmapped")) != NULL &&
        (item->type != UMDI_STRING ||
         (!umdi_equal(item->string, "error") && !umdi_equal(item->string, "drop"))))
        return umdi_bad_field(path, "target.on_unmapped: error or drop allowed");
    return UMD_OK;
}

/* One finite number for each output. */
static umd_status read_vector(umdi_arena *arena, const umdi_json *value, const char *path,
                              size_t count, double **out)
{
    size_t i = 0;
    if (value == NULL || value->type != UMDI_ARRAY || value->count != count)
        return umdi_bad_field(
            path, "scale and bias need one number for each output, both or neither");
    *out = umdi_arena_new(arena, count, sizeof **out);
    if (*out == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = value->items; item != NULL; item = item->next) {
        UMDI_TRY(umdi_read_number(item, path, &(*out)[i]));
        if (!isfinite((*out)[i++]))
            return umdi_bad_field(path, "scale must be above 0 and bias finite");
    }
    return UMD_OK;
}

static umd_status read_scaling(umdi_arena *arena, const umdi_json *value, const char *path,
                               umdi_task *task)
{
    const umdi_json *scale = umdi_json_get(value, "scale"), *bias = umdi_json_get(value, "bias");
    if (scale == NULL && bias == NULL)
        return UMD_OK;
    UMDI_TRY(read_vector(arena, scale, path, task->outputs.count, &task->scale));
    UMDI_TRY(read_vector(arena, bias, path, task->outputs.count, &task->bias));
    for (size_t i = 0; i < task->outputs.count; i++)
        if (!(task->scale[i] > 0))
            return umdi_bad_field(path, "scale must be above 0 and bias finite");
    return UMD_OK;
}

/* The answers that are not listed, and the last step. */
static umd_status read_rest(const umdi_json *value, const char *path, umdi_task *task)
{
    static const char *const needed[] = {"a", "b", NULL};
    const umdi_json *other = umdi_json_get(value, "other"), *platt = umdi_json_get(value, "platt");
    if (other != NULL) {
        task->has_other = true;
        UMDI_TRY(umdi_read_number(other, path, &task->other));
        if (task->is_sigmoid || !isfinite(task->other))
            return umdi_bad_field(path, "probability.other belongs to a softmax, and is finite");
    }
    if (platt == NULL)
        return UMD_OK;
    task->has_platt = true;
    UMDI_TRY(umdi_check_object(platt, path, needed, nothing));
    UMDI_TRY(umdi_read_number(umdi_json_get(platt, "a"), path, &task->platt[0]));
    UMDI_TRY(umdi_read_number(umdi_json_get(platt, "b"), path, &task->platt[1]));
    if (!(task->platt[0] > 0) || !isfinite(task->platt[0]) || !isfinite(task->platt[1]))
        return umdi_bad_field(path, "probability.platt: a must be above 0, and both finite");
    return UMD_OK;
}

static umd_status read_probability(umdi_arena *arena, const umdi_json *value, const char *path,
                                   umdi_task *task)
{
    static const char *const needed[] = {"kind", NULL};
    static const char *const optional[] = {"temperature", "scale", "bias", "other", "platt",
                                           NULL};
    const umdi_json *temperature;
    umdi_text kind;
    task->temperature = 1.0;
    if (value == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_object(value, path, needed, optional));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "kind"), path, &kind));
    task->is_sigmoid = umdi_equal(kind, "sigmoid");
    if (!task->is_sigmoid && !umdi_equal(kind, "softmax"))
        return umdi_bad_field(path, "probability.kind: softmax or sigmoid");
    if ((temperature = umdi_json_get(value, "temperature")) != NULL)
        UMDI_TRY(umdi_read_number(temperature, path, &task->temperature));
    if (!(task->temperature > 0))
        return umdi_bad_field(path, "probability.temperature: above 0 allowed");
    UMDI_TRY(read_rest(value, path, task));
    return read_scaling(arena, value, path, task);
}

static umd_status read_points(umdi_arena *arena, const umdi_json *points,
                              const umdi_json *thresholds, const char *path, umdi_task *task)
{
    task->operating_points = umdi_arena_new(arena, task->outputs.count, sizeof(double));
    if (task->operating_points == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < task->outputs.count; i++)
        task->operating_points[i] = 0.5;
    if (points != NULL) {
        UMDI_TRY(umdi_read_numbers(points, path));
        for (const umdi_json *item = points->items; item != NULL; item = item->next) {
            size_t i = 0;
            while (i < task->outputs.count && !contains(&task->outputs.items[i], 1, item->key))
                i++;
            if (i == task->outputs.count)
                return umdi_bad_field(path, "operating points of an unknown output");
            task->operating_points[i] = item->number;
        }
    }
    if (thresholds == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_read_numbers(thresholds, path));
    for (const umdi_json *item = thresholds->items; item != NULL; item = item->next) {
        if (!umdi_equal(item->key, "abstain"))
            return umdi_bad_field(path, "unknown thresholds; abstain is allowed");
        task->has_abstain = true;
        task->abstain = item->number;
    }
    return UMD_OK;
}

static umd_status read_applies(umdi_arena *arena, const umdi_json *value, const char *path,
                               umdi_task *task)
{
    static const char *const names[] = {"dicom_modality", "body_part", "view",
                                        "burned_in_annotation", NULL};
    umdi_text *no = umdi_arena_new(arena, 1, sizeof *no);
    if (no == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    *no = umdi_of("NO"); /* text in the picture, unless the task says otherwise */
    task->applies_to[UMDI_BURNED_IN] = (umdi_texts){no, 1, true};
    if (value == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_object(value, path, nothing, names));
    for (size_t i = 0; i < UMDI_FACTS; i++) {
        const umdi_json *item = umdi_json_get(value, names[i]);
        umdi_texts *texts = &task->applies_to[i];
        if (item == NULL)
            continue;
        texts->given = true;
        UMDI_TRY(umdi_read_texts(arena, item, path, &texts->items, &texts->count));
    }
    return UMD_OK;
}

static umd_status read_name(umdi_arena *arena, const umdi_json *value, const char *path,
                            umdi_task *task)
{
    char *output;
    UMDI_TRY(umdi_read_text(value, path, &task->name));
    if (task->name.length == 0)
        return umdi_bad_field(path, "a task needs a name");
    output = umdi_arena_new(arena, task->name.length + 8, 1);
    if (output == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    memcpy(output, "logits_", 7);
    for (size_t i = 0; i < task->name.length; i++) {
        char c = task->name.text[i];
        bool letter = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (!letter && c != '-')
            return umdi_bad_field(path, "a name holds ASCII letters, digits and '-' only");
        output[7 + i] = c == '-' ? '_' : c;
    }
    task->output_name.text = output;
    task->output_name.length = task->name.length + 7;
    return UMD_OK;
}

static umd_status read_outputs(umdi_arena *arena, const umdi_json *value, const char *path,
                               umdi_task *task)
{
    const umdi_json *labels = umdi_json_get(value, "labels");
    const umdi_json *answers = umdi_json_get(value, "answers");
    const umdi_json *own = task->kind == UMD_VQA ? answers : labels;
    if ((task->kind == UMD_VQA ? labels : answers) != NULL ||
        (own == NULL && task->kind != UMD_RETRIEVAL))
        return umdi_bad_field(path, "answers belong to a vqa task, labels to the others");
    if (own != NULL)
        UMDI_TRY(umdi_read_texts(arena, own, path, &task->outputs.items, &task->outputs.count));
    if (task->kind != UMD_RETRIEVAL && task->outputs.count == 0)
        return umdi_bad_field(path, "at least one label or answer is needed");
    return UMD_OK;
}

static int compare_texts(const void *left, const void *right)
{
    const umdi_text *a = left, *b = right;
    return umdi_compare(*a, *b);
}

/* No two outputs may be equal. */
static umd_status check_outputs(umdi_arena *arena, const char *path, const umdi_task *task)
{
    size_t count = task->outputs.count;
    umdi_text *sorted = umdi_new(&arena->allocator, count, sizeof *sorted);
    bool differ = true;
    if (sorted == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    memcpy(sorted, task->outputs.items, count * sizeof *sorted);
    umdi_sort(sorted, count, sizeof *sorted, compare_texts);
    for (size_t i = 1; i < count; i++)
        differ = differ && umdi_compare(sorted[i - 1], sorted[i]) != 0;
    umdi_delete(&arena->allocator, sorted);
    return differ ? UMD_OK : umdi_bad_field(path, "labels or answers occur twice");
}

umd_status umdi_task_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                           const umdi_manifest *manifest, umdi_task *task)
{
    static const char *const needed[] = {"name", "kind", NULL};
    static const char *const optional[] = {"labels", "answers",     "multi_label",      "prompt",
                                           "select", "reads",       "target",           "group",
                                           "probability", "operating_points", "thresholds",
                                           "applies_to",  "operating_curves", "conformal",
                                           "out_of_distribution", NULL};
    static const char *const kinds[] = {"classification", "vqa", "retrieval"};
    const umdi_json *item;
    umdi_text kind;
    UMDI_TRY(umdi_check_object(value, path, needed, optional));
    UMDI_TRY(read_name(arena, umdi_json_get(value, "name"), path, task));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "kind"), path, &kind));
    while (task->kind < 3 && !umdi_equal(kind, kinds[task->kind]))
        task->kind++;
    if (++task->kind > UMD_RETRIEVAL)
        return umdi_bad_field(path, "the kind is none of classification, vqa, retrieval");
    if ((item = umdi_json_get(value, "multi_label")) != NULL) {
        if (item->type != UMDI_TRUE && item->type != UMDI_FALSE)
            return umdi_bad_field(path, "multi_label: true or false is needed");
        task->multi_label = item->type == UMDI_TRUE;
    }
    task->prompt = umdi_of("");
    if ((item = umdi_json_get(value, "prompt")) != NULL)
        UMDI_TRY(umdi_read_text(item, path, &task->prompt));
    if (task->kind == UMD_CLASSIFICATION && umdi_strip(task->prompt).length == 0)
        return umdi_bad_field(path, "a classification task needs a prompt");
    UMDI_TRY(read_outputs(arena, value, path, task));
    if (task->outputs.count > 1)
        UMDI_TRY(check_outputs(arena, path, task));
    UMDI_TRY(read_probability(arena, umdi_json_get(value, "probability"), path, task));
    UMDI_TRY(read_reads(arena, umdi_json_get(value, "reads"), path, manifest, task));
    UMDI_TRY(read_points(arena, umdi_json_get(value, "operating_points"),
                         umdi_json_get(value, "thresholds"), path, task));
    UMDI_TRY(umdi_curves_parse(arena, umdi_json_get(value, "operating_curves"), path,
                               task->outputs.items, task->outputs.count, &task->curves));
    UMDI_TRY(umdi_conformal_parse(arena, umdi_json_get(value, "conformal"), path,
                                  task->outputs.items, task->outputs.count, &task->conformal));
    UMDI_TRY(umdi_ood_parse(umdi_json_get(value, "out_of_distribution"), path, &task->ood));
    if (task->conformal.coverage_count != 0 && task->conformal.by_class != task->multi_label)
        return umdi_bad_field(path, "conformal: multi-label tasks need lac_by_class, others lac");
    UMDI_TRY(read_applies(arena, umdi_json_get(value, "applies_to"), path, task));
    return check_rest(value, path);
}
