/* What export fitted on validation records: operating curves and prediction sets, as
 * `umd_edge/_trust_curves.py` and `umd_edge/_trust_sets.py` read and use them. */
#ifndef UMDI_TRUST_H
#define UMDI_TRUST_H

#include "json.h"

/* Sensitivity and specificity of one label by threshold; `count` 0: the label has no curve. */
typedef struct umdi_curve {
    size_t count;
    double *thresholds;    /* rising */
    double *sensitivities; /* falling */
    double *specificities; /* rising */
    uint32_t n_positive;
    uint32_t n_negative;
} umdi_curve;

/* From which probability on an output is in the set; NAN: so few records exclude nothing. */
typedef struct umdi_limits {
    uint32_t n;
    double *thresholds; /* one for each coverage, falling */
} umdi_limits;

typedef struct umdi_conformal {
    size_t coverage_count; /* 0: the task has none */
    double *coverages;     /* rising */
    bool by_class;
    umdi_limits any_output; /* unless by_class */
    bool has_other;         /* answers that are not listed have their own thresholds */
    umdi_limits other;
    umdi_limits *present;   /* one for each output */
    umdi_limits *absent;
} umdi_conformal;

/* `outputs` are the task's; `*curves` becomes one curve for each of them, or NULL. */
umd_status umdi_curves_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                             const umdi_text *outputs, size_t count, umdi_curve **curves);
umd_status umdi_conformal_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                                const umdi_text *outputs, size_t count, umdi_conformal *conformal);

/* Number of the point for a sensitivity, or else a specificity (the other one is 0); `*reached` is
 * false where none reaches it and this is the best one. */
size_t umdi_curve_point(const umdi_curve *curve, double sensitivity, double specificity,
                        bool *reached);

/* Number of the next higher coverage of the grid, or `coverage_count` above the last. */
size_t umdi_conformal_row(const umdi_conformal *conformal, double coverage);

/* The threshold of a row; NAN where nothing can be excluded. */
double umdi_limit(const umdi_conformal *conformal, const umdi_limits *limits, size_t row);

#endif
