/* How far an image is from those that a task was fitted on, as `umd_edge/_ood.py` computes it; the
 * formulas stand in docs/bundle-format.md under `ood.npz`. */
#ifndef UMDI_OOD_H
#define UMDI_OOD_H

#include "appearance.h"
#include "container.h"
#include "json.h"

enum umdi_ood_part { UMDI_FEATURES, UMDI_LOOK, UMDI_ENERGY, UMDI_OOD_PARTS };

/* The task's `out_of_distribution`; `file.text` NULL: the task has none. */
typedef struct umdi_ood_spec {
    umdi_text file;
    double limits[UMDI_OOD_PARTS];
    double energy_centre;
} umdi_ood_spec;

/* Where a task's fitted images lie; `centre` NULL: nothing is known. */
typedef struct umdi_ood_model {
    size_t width; /* of the token statistics: twice that of a token */
    size_t rank;
    double *centre;
    double *scale;
    double *basis; /* (rank, width) */
    double *weights;
    double rest;
    double appearance_centre[UMDI_APPEARANCE];
    double whitening[UMDI_APPEARANCE * UMDI_APPEARANCE];
} umdi_ood_model;

typedef struct umdi_ood_score {
    double value; /* above 1.0 the image is out of distribution; 0 where nothing is known */
    int part;
} umdi_ood_score;

umd_status umdi_ood_parse(const umdi_json *value, const char *path, umdi_ood_spec *spec);

/* Read the arrays of one task from the bytes of its file. Fails with BUNDLE_INTEGRITY. */
umd_status umdi_ood_load(umdi_arena *arena, const uint8_t *bytes, size_t size, umdi_text task,
                         umdi_ood_model *model);

/* Mean, then standard deviation, of (count, width) tokens: 2 * width values. */
void umdi_token_statistics(const float *tokens, size_t count, size_t width, double *statistics);

/* The score of the two parts that the image alone gives. `scratch` has room for `model->width`. */
umdi_ood_score umdi_ood_image(const umdi_ood_model *model, const umdi_ood_spec *spec,
                              const double *tokens, const double *appearance, double *scratch);

/* The whole score, with the energy of a call's logits. */
umdi_ood_score umdi_ood_whole(const umdi_ood_spec *spec, umdi_ood_score image, const float *logits,
                              size_t count, bool multi_label, double *scratch);

#endif
