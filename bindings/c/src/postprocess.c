#include "postprocess.h"

#include <math.h>

#define SUM_LANES 8
#define SUM_BLOCK 128

/* 8 lanes in blocks of at most 128. */
double umdi_sum(const double *values, size_t count)
{
    double lanes[SUM_LANES], total = 0;
    size_t i = 0, half;
    if (count < SUM_LANES) {
        for (; i < count; i++)
            total += values[i];
        return total;
    }
    if (count > SUM_BLOCK) {
        half = count / 2;
        half -= half % SUM_LANES;
        return umdi_sum(values, half) + umdi_sum(values + half, count - half);
    }
    for (; i < SUM_LANES; i++)
        lanes[i] = values[i];
    for (; i < count - count % SUM_LANES; i++)
        lanes[i % SUM_LANES] += values[i];
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
            ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    for (; i < count; i++)
        total += values[i];
    return total;
}

static double sigmoid(double x)
{
    /* Two-sided, so that exp never overflows. */
    double decay = exp(-fabs(x));
    return (x >= 0 ? 1.0 : decay) / (1.0 + decay);
}

/* The answers that the task does not list are in the sum of the softmax. */
void umdi_shares(const umdi_task *task, const float *logits, size_t count, double *shares)
{
    double largest = -HUGE_VAL, total;
    for (size_t i = 0; i < count; i++) {
        shares[i] = logits[i];
        if (task->temperature != 1.0)
            shares[i] /= task->temperature;
        if (task->scale != NULL) {
            shares[i] *= task->scale[i];
            shares[i] += task->bias[i];
        }
        largest = shares[i] > largest ? shares[i] : largest;
    }
    if (task->has_other && task->other > largest)
        largest = task->other;
    for (size_t i = 0; i < count; i++)
        shares[i] = task->is_sigmoid ? sigmoid(shares[i]) : exp(shares[i] - largest);
    if (task->is_sigmoid)
        return;
    total = umdi_sum(shares, count);
    if (task->has_other)
        total += exp(task->other - largest);
    for (size_t i = 0; i < count; i++)
        shares[i] /= total;
}

void umdi_probabilities(const umdi_task *task, double *shares, size_t count)
{
    const double shift = task->has_platt ? exp(-task->platt[1]) : 1;
    for (size_t i = 0; i < count && task->has_platt; i++) {
        double right = pow(shares[i], task->platt[0]);
        double wrong = pow(1.0 - shares[i], task->platt[0]) * shift;
        shares[i] = right / (right + wrong);
    }
}

double umdi_other_share(const double *shares, size_t count)
{
    double left = 1.0 - umdi_sum(shares, count);
    return left > 0 ? left : 0;
}

double umdi_confidence(const umdi_task *task, const double *probabilities, size_t count)
{
    double total = 0, highest = 0;
    for (size_t i = 0; i < count; i++) {
        double absent = 1.0 - probabilities[i];
        total += probabilities[i] > absent ? probabilities[i] : absent;
        highest = probabilities[i] > highest ? probabilities[i] : highest;
    }
    return task->multi_label ? total / (double)count : highest;
}

void umdi_most_probable(const double *probabilities, size_t count, size_t wanted, size_t *order)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        size_t place = used;
        if (used == wanted && !(probabilities[i] > probabilities[order[used - 1]]))
            continue;
        if (used < wanted)
            used++;
        else
            place--;
        for (; place > 0 && probabilities[i] > probabilities[order[place - 1]]; place--)
            order[place] = order[place - 1];
        order[place] = i;
    }
}
