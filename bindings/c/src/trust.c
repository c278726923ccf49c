#include "trust.h"

#include <math.h>
#include <stdio.h>

#include "fields.h"

#define MAX_POINTS 200
#define MAX_COUNT 1e9
/* 19 / 20 of 19 positives are the 0.95 that was asked for. */
#define SLACK 1e-9

static const char *const nothing[] = {NULL};

/* A list of at most `most` numbers in 0..1, nulls at its end where they are allowed (NAN then). */
static umd_status read_shares(umdi_arena *arena, const umdi_json *value, const char *path,
                              size_t most, bool may_be_null, double **out, size_t *count)
{
    size_t used = 0;
    if (value == NULL || value->type != UMDI_ARRAY || value->count > most)
        return umdi_bad_field(path, "a list of at most 200 numbers is needed");
    *out = umdi_arena_new(arena, value->count, sizeof **out);
    if (*out == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = value->items; item != NULL; item = item->next) {
        bool is_null = may_be_null && item->type == UMDI_NULL;
        bool is_number = item->type == UMDI_INTEGER || item->type == UMDI_REAL;
        if (!is_null && !(is_number && item->number >= 0 && item->number <= 1))
            return umdi_bad_field(path, "numbers in 0..1 are needed");
        if (is_number && used > 0 && isnan((*out)[used - 1]))
            return umdi_bad_field(path, "null from some point on is needed");
        (*out)[used++] = is_null ? NAN : item->number;
    }
    *count = used;
    return UMD_OK;
}

static bool is_monotone(const double *values, size_t count, double sign)
{
    for (size_t i = 1; i < count; i++)
        if (sign * values[i] < sign * values[i - 1])
            return false;
    return true;
}

static umd_status read_count(const umdi_json *value, const char *path, double low, uint32_t *out)
{
    int64_t number;
    UMDI_TRY(umdi_read_integer(value, path, low, MAX_COUNT, &number));
    *out = (uint32_t)number;
    return UMD_OK;
}

static umd_status read_curve(umdi_arena *arena, const umdi_json *value, const char *path,
                             umdi_curve *curve)
{
    static const char *const needed[] = {"thresholds", "sensitivities", "specificities",
                                         "n_positive", "n_negative",    NULL};
    double **columns[] = {&curve->thresholds, &curve->sensitivities, &curve->specificities};
    size_t counts[3];
    UMDI_TRY(umdi_check_object(value, path, needed, nothing));
    for (size_t i = 0; i < 3; i++)
        UMDI_TRY(read_shares(arena, umdi_json_get(value, needed[i]), path, MAX_POINTS, false,
                             columns[i], &counts[i]));
    if (counts[0] == 0 || counts[0] != counts[1] || counts[0] != counts[2])
        return umdi_bad_field(path, "its columns must have one length, at least 1");
    if (!is_monotone(curve->thresholds, counts[0], 1) ||
        !is_monotone(curve->sensitivities, counts[0], -1) ||
        !is_monotone(curve->specificities, counts[0], 1))
        return umdi_bad_field(path, "thresholds and specificities must rise, sensitivities fall");
    curve->count = counts[0];
    UMDI_TRY(read_count(umdi_json_get(value, "n_positive"), path, 1, &curve->n_positive));
    return read_count(umdi_json_get(value, "n_negative"), path, 1, &curve->n_negative);
}

umd_status umdi_curves_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                             const umdi_text *outputs, size_t count, umdi_curve **curves)
{
    *curves = NULL;
    if (value == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_type(value, path, UMDI_OBJECT));
    *curves = umdi_arena_new(arena, count, sizeof **curves);
    if (*curves == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = value->items; item != NULL; item = item->next) {
        size_t i = 0;
        while (i < count && umdi_compare(outputs[i], item->key) != 0)
            i++;
        if (i == count)
            return umdi_bad_field(path, "operating curves of an unknown output");
        UMDI_TRY(read_curve(arena, item, path, &(*curves)[i]));
    }
    if (value->items == NULL)
        *curves = NULL;
    return UMD_OK;
}

static umd_status read_limits(umdi_arena *arena, const umdi_json *n, const umdi_json *thresholds,
                              const char *path, size_t coverages, umdi_limits *limits)
{
    size_t count, known = 0;
    UMDI_TRY(read_count(n, path, 0, &limits->n));
    UMDI_TRY(read_shares(arena, thresholds, path, MAX_POINTS, true, &limits->thresholds, &count));
    if (count != coverages)
        return umdi_bad_field(path, "one threshold for each coverage is needed");
    while (known < count && !isnan(limits->thresholds[known]))
        known++;
    return is_monotone(limits->thresholds, known, -1)
               ? UMD_OK
               : umdi_bad_field(path, "thresholds must fall with the coverage");
}

static umd_status read_state(umdi_arena *arena, const umdi_json *value, const char *path,
                             size_t coverages, umdi_limits *limits)
{
    static const char *const needed[] = {"n", "thresholds", NULL};
    UMDI_TRY(umdi_check_object(value, path, needed, nothing));
    return read_limits(arena, umdi_json_get(value, "n"), umdi_json_get(value, "thresholds"), path,
                       coverages, limits);
}

static umd_status read_labels(umdi_arena *arena, const umdi_json *value, const char *path,
                              const umdi_text *outputs, size_t count, umdi_conformal *conformal)
{
    static const char *const states[] = {"present", "absent", NULL};
    UMDI_TRY(umdi_check_type(value, path, UMDI_OBJECT));
    conformal->present = umdi_arena_new(arena, count, sizeof *conformal->present);
    conformal->absent = umdi_arena_new(arena, count, sizeof *conformal->absent);
    if (conformal->present == NULL || conformal->absent == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (value->count != count)
        return umdi_bad_field(path, "one entry for each label is needed");
    for (size_t i = 0; i < count; i++) {
        const umdi_json *label = umdi_json_get(value, outputs[i].text);
        size_t coverages = conformal->coverage_count;
        UMDI_TRY(umdi_check_object(label, path, states, nothing));
        UMDI_TRY(read_state(arena, umdi_json_get(label, "present"), path, coverages,
                            &conformal->present[i]));
        UMDI_TRY(read_state(arena, umdi_json_get(label, "absent"), path, coverages,
                            &conformal->absent[i]));
    }
    return UMD_OK;
}

umd_status umdi_conformal_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                                const umdi_text *outputs, size_t count, umdi_conformal *conformal)
{
    static const char *const any[] = {"method", "coverages", "n", "thresholds", NULL};
    static const char *const other[] = {"other", NULL};
    static const char *const by_class[] = {"method", "coverages", "labels", NULL};
    umdi_text method;
    if (value == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_type(value, path, UMDI_OBJECT));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "method"), path, &method));
    conformal->by_class = umdi_equal(method, "lac_by_class");
    if (!conformal->by_class && !umdi_equal(method, "lac"))
        return umdi_bad_field(path, "conformal.method: lac or lac_by_class is needed");
    UMDI_TRY(umdi_check_object(value, path, conformal->by_class ? by_class : any,
                               conformal->by_class ? nothing : other));
    UMDI_TRY(read_shares(arena, umdi_json_get(value, "coverages"), path, MAX_POINTS, false,
                         &conformal->coverages, &conformal->coverage_count));
    if (conformal->coverage_count == 0)
        return umdi_bad_field(path, "at least one coverage is needed");
    for (size_t i = 1; i < conformal->coverage_count; i++)
        if (!(conformal->coverages[i] > conformal->coverages[i - 1]))
            return umdi_bad_field(path, "coverages must rise");
    if (conformal->by_class)
        return read_labels(arena, umdi_json_get(value, "labels"), path, outputs, count, conformal);
    if (umdi_json_get(value, "other") != NULL) {
        conformal->has_other = true;
        UMDI_TRY(read_state(arena, umdi_json_get(value, "other"), path, conformal->coverage_count,
                            &conformal->other));
    }
    return read_limits(arena, umdi_json_get(value, "n"), umdi_json_get(value, "thresholds"), path,
                       conformal->coverage_count, &conformal->any_output);
}

size_t umdi_curve_point(const umdi_curve *curve, double sensitivity, double specificity,
                        bool *reached)
{
    size_t found = curve->count;
    for (size_t i = 0; i < curve->count; i++) {
        if (sensitivity > 0 && curve->sensitivities[i] >= sensitivity - SLACK)
            found = i; /* the last one */
        if (specificity > 0 && found == curve->count &&
            curve->specificities[i] >= specificity - SLACK)
            found = i; /* the first one */
    }
    *reached = found < curve->count;
    if (*reached)
        return found;
    /* The best that there is: the last of the most sensitive points, the first specific one. */
    if (sensitivity > 0) {
        for (found = 0; found + 1 < curve->count; found++)
            if (curve->sensitivities[found + 1] < curve->sensitivities[0])
                break;
        return found;
    }
    for (found = curve->count - 1; found > 0; found--)
        if (curve->specificities[found - 1] < curve->specificities[curve->count - 1])
            break;
    return found;
}

size_t umdi_conformal_row(const umdi_conformal *conformal, double coverage)
{
    size_t row = 0;
    while (row < conformal->coverage_count && !(conformal->coverages[row] >= coverage - SLACK))
        row++;
    return row;
}

double umdi_limit(const umdi_conformal *conformal, const umdi_limits *limits, size_t row)
{
    return row < conformal->coverage_count ? limits->thresholds[row] : NAN;
}
