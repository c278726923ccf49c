/* From logits to probabilities and decisions, as `umd_edge/_postprocess.py` does it. */
#ifndef UMDI_POSTPROCESS_H
#define UMDI_POSTPROCESS_H

#include "manifest.h"

/* Summed in the order of numpy, so that the last bit agrees. */
double umdi_sum(const double *values, size_t count);

/* `count` shares: of the logits after the task's scaling a softmax, or a sigmoid of each. */
void umdi_shares(const umdi_task *task, const float *logits, size_t count, double *shares);

/* From shares to probabilities, in place: the last step of the scaling, which keeps their order. */
void umdi_probabilities(const umdi_task *task, double *shares, size_t count);

/* What the threshold `abstain` is compared with: the highest probability; of a multi-label task the
 * mean of the more probable one of presence and absence. */
double umdi_confidence(const umdi_task *task, const double *probabilities, size_t count);

/* Share of the answers that the task does not know. */
double umdi_other_share(const double *shares, size_t count);

/* Numbers of the `wanted` highest values, the highest first; of equal ones the first. */
void umdi_most_probable(const double *probabilities, size_t count, size_t wanted, size_t *order);

#endif
