/* A result: what was computed of one image, and the items that a caller reads. */
#ifndef UMDI_RESULT_H
#define UMDI_RESULT_H

#include "predictor.h"

struct umd_result {
    umd_predictor *predictor;
    const umdi_task *task;
    int32_t status;
    bool has_image_score;
    umdi_ood_score image_score;
    char reason[UMDI_REASON_BYTES];
    uint32_t count;
    umd_item *items;
    double *shares;     /* of all outputs; NULL where nothing was computed */
    double other_share; /* of the answers that the task does not list */
    double ood_score;   /* NAN: not known */
    double text_ms;
    double fusion_ms;
    double total_ms;
};

/* An empty result of a task, which says where the image is outside its intended use. */
umd_status umdi_result_new(umd_image *image, const umdi_task *task, umd_result **out);

/* Items and status, from the logits of the task. */
umd_status umdi_result_fill(umd_result *result, const float *logits);

#endif
