#include "ood.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fields.h"
#include "npy.h"
#include "postprocess.h"

#define LANES 16 /* that a compiler keeps in registers */
#define FAR 4
#define MAX_NAME 200
#define STEP 2 /* every second row and column is looked at */

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

/* ---- statistics of a picture ---- */

typedef struct planes {
    const uint8_t *picture;
    uint32_t channels;
    size_t rows, columns, stride; /* of what is looked at; bytes from one full row to the next */
} planes;

static const uint8_t *at(const planes *p, size_t y, size_t x)
{
    return p->picture + y * STEP * p->stride + x * STEP * p->channels;
}

static int grey(const planes *p, size_t y, size_t x)
{
    const uint8_t *v = at(p, y, x);
    return p->channels == 1 ? v[0] : (77 * v[0] + 150 * v[1] + 29 * v[2] + 128) >> 8;
}

/* Red minus green (0) or green minus blue (1). */
static int tint(const planes *p, int which, size_t y, size_t x)
{
    const uint8_t *v = at(p, y, x) + which;
    return v[0] - v[1];
}

static double log_of(double value)
{
    return log(value + 0.01);
}

/* Mean absolute difference of grey levels to those `down` rows and `right` columns on. */
static double step(const planes *p, size_t down, size_t right)
{
    int64_t total = 0;
    size_t rows = p->rows - down, columns = p->columns - right;
    for (size_t y = 0; y < rows; y++)
        for (size_t x = 0; x < columns; x++)
            total += abs(grey(p, y + down, x + right) - grey(p, y, x));
    return (double)total / (double)(rows * columns) / 255.0;
}

static double tint_step(const planes *p, int which)
{
    int64_t total = 0;
    for (size_t y = 0; y < p->rows; y++)
        for (size_t x = 0; x + 1 < p->columns; x++)
            total += abs(tint(p, which, y, x + 1) - tint(p, which, y, x));
    return (double)total / (double)(p->rows * (p->columns - 1)) / 255.0;
}

/* Levels: how many of each, their moments and where they lie. */
static void levels(const planes *p, double out[UMDI_APPEARANCE])
{
    int64_t counts[256] = {0}, coarse[16] = {0}, sums[3] = {0}, inner = 0, upper = 0, left = 0;
    size_t size = p->rows * p->columns, top = p->rows / 4, side = p->columns / 4, middle;
    size_t half_rows = p->rows / 2, half_columns = p->columns / 2;
    double mean, variance, spread, central, entropy = 0, n = (double)size;
    for (size_t y = 0; y < p->rows; y++) {
        for (size_t x = 0; x < p->columns; x++) {
            int level = grey(p, y, x);
            counts[level]++;
            upper += y < half_rows ? level : 0;
            left += x < half_columns ? level : 0;
            if (y >= top && y < p->rows - top && x >= side && x < p->columns - side)
                inner += level;
        }
    }
    for (int64_t level = 0; level < 256; level++) {
        sums[0] += counts[level] * level;
        sums[1] += counts[level] * level * level;
        sums[2] += counts[level] * level * level * level;
        coarse[level / 16] += counts[level];
    }
    mean = (double)sums[0] / n;
    variance = (double)(sums[1] * (int64_t)size - sums[0] * sums[0]) / (double)(size * size);
    spread = sqrt(variance) / 255.0;
    central = (double)sums[2] / n - 3.0 * mean * variance - mean * mean * mean;
    for (int i = 0; i < 16; i++)
        if (coarse[i] > 0)
            entropy += (double)coarse[i] / n * log((double)coarse[i] / n);
    middle = (p->rows - 2 * top) * (p->columns - 2 * side);
    out[0] = mean / 255.0;
    out[1] = log_of(spread);
    out[2] = central / (255.0 * 255.0 * 255.0) /
             ((spread + 0.02) * (spread + 0.02) * (spread + 0.02));
    out[3] = -entropy;
    out[4] = log_of((double)coarse[0] / n);
    out[5] = log_of((double)coarse[15] / n);
    out[10] = ((double)inner / (double)middle -
               (double)(sums[0] - inner) / (double)(size - middle)) /
              255.0;
    out[11] = ((double)upper / (double)half_rows -
               (double)(sums[0] - upper) / (double)(p->rows - half_rows)) /
              (double)p->columns / 255.0;
    out[12] = ((double)left / (double)half_columns -
               (double)(sums[0] - left) / (double)(p->columns - half_columns)) /
              (double)p->rows / 255.0;
}

static void colours(const planes *p, double out[UMDI_APPEARANCE])
{
    int64_t sums[2] = {0}, sizes[2] = {0};
    double n = (double)(p->rows * p->columns);
    out[14] = out[15] = 0.0;
    out[13] = out[16] = log_of(0.0);
    if (p->channels == 1)
        return;
    for (int which = 0; which < 2; which++) {
        for (size_t y = 0; y < p->rows; y++) {
            for (size_t x = 0; x < p->columns; x++) {
                int value = tint(p, which, y, x);
                sums[which] += value;
                sizes[which] += abs(value);
            }
        }
        out[14 + which] = (double)sums[which] / n / 255.0;
    }
    out[13] = log_of((double)sizes[0] / n / 255.0 + (double)sizes[1] / n / 255.0);
    out[16] = log_of(tint_step(p, 0) + tint_step(p, 1));
}

void umdi_appearance(const uint8_t *picture, uint32_t channels, size_t height, size_t width,
                     double statistics[UMDI_APPEARANCE])
{
    planes p = {picture, channels, (height + 1) / STEP, (width + 1) / STEP, width * channels};
    levels(&p, statistics);
    statistics[6] = log_of(step(&p, 0, 1));
    statistics[7] = log_of(step(&p, 1, 0));
    statistics[8] = log_of(step(&p, 0, FAR));
    statistics[9] = log_of(step(&p, FAR, 0));
    colours(&p, statistics);
}

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
