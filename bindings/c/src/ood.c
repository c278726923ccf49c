#include "ood.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fields.h"
#include "npy.h"
#include "postprocess.h"

#define LANES 16 /* that a compiler keeps in registers */
#define MAX_NAME 200

static const char *const nothing[] = {NULL};

umd_status umdi_ood_parse(const umdi_json *value, const char *path, umdi_ood_spec *spec)
{
    static const char *const needed[] = {"method",   "file", "limits", "energy_centre",
                                         "quantile", "n",    NULL};
    static const char *const parts[] = {"features", "appearance", "energy", NULL};
    const umdi_json *limits;
    umdi_text method;
    double quantile;
    int64_t n;
    if (value == NULL)
        return UMD_OK;
    UMDI_TRY(umdi_check_object(value, path, needed, nothing));
    UMDI_TRY(umdi_read_text(umdi_json_get(value, "method"), path, &method));
    if (!umdi_equal(method, "mahalanobis"))
        return umdi_bad_field(path, "out_of_distribution.method: mahalanobis is the only one");
    UMDI_TRY(umdi_read_path(umdi_json_get(value, "file"), path, &spec->file));
    limits = umdi_json_get(value, "limits");
    UMDI_TRY(umdi_check_object(limits, path, parts, nothing));
    for (size_t i = 0; i < UMDI_OOD_PARTS; i++)
        UMDI_TRY(umdi_read_number(umdi_json_get(limits, parts[i]), path, &spec->limits[i]));
    UMDI_TRY(umdi_read_number(umdi_json_get(value, "energy_centre"), path, &spec->energy_centre));
    UMDI_TRY(umdi_read_number(umdi_json_get(value, "quantile"), path, &quantile));
    UMDI_TRY(umdi_read_integer(umdi_json_get(value, "n"), path, 1, 1e9, &n));
    if (!(spec->limits[UMDI_FEATURES] > 0) || !(spec->limits[UMDI_LOOK] > 0) ||
        !(spec->energy_centre < spec->limits[UMDI_ENERGY]) || !(quantile > 0 && quantile < 1))
        return umdi_bad_field(path, "out_of_distribution: limits of features and appearance above "
                                    "0, of the energy above its centre, and a quantile in 0..1 are "
                                    "needed");
    return UMD_OK;
}

/* ---- reading ---- */

typedef struct reader {
    umdi_arena *arena; /* of the model */
    umdi_container archive;
    umdi_text task;
} reader;

static umd_status bad(const reader *r, const char *problem)
{
    return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                     "the bundle's out-of-distribution arrays of task '%.60s' %s; fetch the bundle "
                     "again",
                     r->task.text, problem);
}

/* An array of float32 as doubles in the arena; `rank` axes, whose lengths are told. */
static umd_status read_array(const reader *r, const char *name, size_t rank, double **out,
                             size_t shape[2])
{
    char file[MAX_NAME];
    const umdi_entry *entry;
    umdi_array array;
    uint8_t *bytes;
    umd_status status = UMD_OK;
    snprintf(file, sizeof file, "%.120s/%s.npy", r->task.text, name);
    entry = umdi_container_find(&r->archive, umdi_of(file));
    if (entry == NULL)
        return bad(r, "lack one");
    UMDI_TRY(umdi_container_read(&r->archive, entry, &bytes));
    if (!umdi_npy_parse(bytes, (size_t)entry->size, &array) || array.type != 'f' ||
        array.rank != rank || array.count == 0)
        status = bad(r, "are not the float32 arrays that are needed");
    if (status == UMD_OK) {
        *out = umdi_arena_new(r->arena, array.count, sizeof **out);
        status = *out == NULL ? UMD_ERROR_OUT_OF_MEMORY : UMD_OK;
    }
    for (size_t i = 0; status == UMD_OK && i < array.count; i++) {
        float value;
        memcpy(&value, (const uint8_t *)array.data + i * sizeof value, sizeof value);
        (*out)[i] = value;
        if (!isfinite(value))
            status = bad(r, "hold numbers that are not finite");
    }
    for (size_t i = 0; status == UMD_OK && i < rank; i++)
        shape[i] = array.shape[i];
    umdi_delete(&r->arena->allocator, bytes);
    return status;
}

static umd_status read_model(const reader *r, umdi_ood_model *model)
{
    size_t n = UMDI_APPEARANCE, centre[2], scale[2], basis[2], weights[2], rest[2], look[2],
           whitening[2];
    double *rest_value, *look_centre, *matrix;
    UMDI_TRY(read_array(r, "centre", 1, &model->centre, centre));
    UMDI_TRY(read_array(r, "scale", 1, &model->scale, scale));
    UMDI_TRY(read_array(r, "basis", 2, &model->basis, basis));
    UMDI_TRY(read_array(r, "weights", 1, &model->weights, weights));
    UMDI_TRY(read_array(r, "rest", 1, &rest_value, rest));
    UMDI_TRY(read_array(r, "appearance_centre", 1, &look_centre, look));
    UMDI_TRY(read_array(r, "whitening", 2, &matrix, whitening));
    model->width = centre[0];
    model->rank = weights[0];
    if (scale[0] != model->width || basis[0] != model->rank || basis[1] != model->width ||
        rest[0] != 1 || look[0] != n || whitening[0] != n || whitening[1] != n ||
        model->width < 2)
        return bad(r, "have shapes that do not fit together");
    model->rest = rest_value[0];
    memcpy(model->appearance_centre, look_centre, n * sizeof *look_centre);
    memcpy(model->whitening, matrix, n * n * sizeof *matrix);
    for (size_t i = 0; i < model->rank; i++)
        if (model->weights[i] < 0)
            return bad(r, "hold weights below 0");
    return model->rest < 0 ? bad(r, "hold weights below 0") : UMD_OK;
}

umd_status umdi_ood_load(umdi_arena *arena, const uint8_t *bytes, size_t size, umdi_text task,
                         umdi_ood_model *model)
{
    reader r;
    umdi_arena listing;
    umd_status status;
    memset(&r, 0, sizeof r);
    r.arena = arena;
    r.task = task;
    umdi_arena_init(&listing, &arena->allocator);
    status = umdi_container_open_memory(&r.archive, &listing, bytes, size);
    if (status != UMD_OK && status != UMD_ERROR_OUT_OF_MEMORY)
        status = bad(&r, "are no zip that only stores, which is all that this library reads");
    if (status == UMD_OK)
        status = read_model(&r, model);
    umdi_arena_free(&listing);
    return status;
}

/* ---- statistics of the tokens ---- */

/* Of `n` neighbouring columns at most LANES, in float32 from the first token to the last, as numpy
 * sums the rows of a matrix. */
static inline void column_statistics(const float *tokens, size_t count, size_t width, size_t n,
                                     double *means, double *deviations)
{
    float sums[LANES] = {0}, squares[LANES] = {0};
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < n; i++)
            sums[i] += tokens[k * width + i];
    for (size_t i = 0; i < n; i++)
        sums[i] /= (float)count;
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < n; i++) {
            float away = tokens[k * width + i] - sums[i];
            squares[i] += away * away;
        }
    for (size_t i = 0; i < n; i++) {
        means[i] = sums[i];
        deviations[i] = sqrtf(squares[i] / (float)count);
    }
}

void umdi_token_statistics(const float *tokens, size_t count, size_t width, double *statistics)
{
    double *deviations = statistics + width;
    size_t i = 0;
    for (; i + LANES <= width; i += LANES)
        column_statistics(tokens + i, count, width, LANES, statistics + i, deviations + i);
    column_statistics(tokens + i, count, width, width - i, statistics + i, deviations + i);
}

/* ---- scores ---- */

/* Four sums beside each other: one alone waits for each addition. */
static double dot(const double *a, const double *b, size_t count)
{
    double lanes[4] = {0}, rest = 0;
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (size_t lane = 0; lane < 4; lane++)
            lanes[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++)
        rest += a[i] * b[i];
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest;
}

static double features_distance(const umdi_ood_model *model, const double *statistics,
                                double *scaled)
{
    double whole, along = 0, inside = 0, left;
    for (size_t i = 0; i < model->width; i++)
        scaled[i] = (statistics[i] - model->centre[i]) * model->scale[i];
    whole = dot(scaled, scaled, model->width);
    for (size_t row = 0; row < model->rank; row++) {
        double coordinate = dot(model->basis + row * model->width, scaled, model->width);
        along += coordinate * coordinate;
        inside += coordinate * coordinate * model->weights[row];
    }
    left = whole - along > 0 ? whole - along : 0;
    return sqrt(inside + left * model->rest);
}

static double appearance_distance(const umdi_ood_model *model, const double *statistics)
{
    double total = 0;
    for (size_t row = 0; row < UMDI_APPEARANCE; row++) {
        double turned = 0;
        for (size_t i = 0; i < UMDI_APPEARANCE; i++)
            turned += model->whitening[row * UMDI_APPEARANCE + i] *
                      (statistics[i] - model->appearance_centre[i]);
        total += turned * turned;
    }
    return sqrt(total);
}

umdi_ood_score umdi_ood_image(const umdi_ood_model *model, const umdi_ood_spec *spec,
                              const double *tokens, const double *appearance, double *scratch)
{
    umdi_ood_score score;
    double look = appearance_distance(model, appearance) / spec->limits[UMDI_LOOK];
    score.value = features_distance(model, tokens, scratch) / spec->limits[UMDI_FEATURES];
    score.part = UMDI_FEATURES;
    if (look > score.value) {
        score.value = look;
        score.part = UMDI_LOOK;
    }
    return score;
}

static double highest_of(const float *logits, size_t count)
{
    double highest = logits[0];
    for (size_t i = 1; i < count; i++)
        highest = logits[i] > highest ? logits[i] : highest;
    return highest;
}

static double energy_of(const float *logits, size_t count, bool multi_label, double *terms)
{
    const double highest = highest_of(logits, count);
    for (size_t i = 0; i < count; i++) {
        double z = logits[i];
        terms[i] = multi_label ? (z > 0 ? z : 0) + log1p(exp(-fabs(z))) : exp(z - highest);
    }
    return multi_label ? -umdi_sum(terms, count) : -(highest + log(umdi_sum(terms, count)));
}

umdi_ood_score umdi_ood_whole(const umdi_ood_spec *spec, umdi_ood_score image, const float *logits,
                              size_t count, bool multi_label, double *scratch)
{
    const double span = spec->limits[UMDI_ENERGY] - spec->energy_centre;
    double value;
    /* The energy is at most the negative highest logit: mostly that settles it. */
    if (!multi_label &&
        (-highest_of(logits, count) - spec->energy_centre) / span <= image.value)
        return image;
    value = (energy_of(logits, count, multi_label, scratch) - spec->energy_centre) / span;
    if (value > image.value) {
        image.value = value;
        image.part = UMDI_ENERGY;
    }
    return image;
}
