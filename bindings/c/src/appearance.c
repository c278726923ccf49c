#include "appearance.h"

#include <math.h>
#include <stdlib.h>

#define FAR 4
#define STEP 2 /* every second row and column is looked at */

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
