/* Pixels of any type to 8 bits. */
#ifndef UMDI_WINDOW_H
#define UMDI_WINDOW_H

#include "base.h"

typedef struct umdi_window {
    umd_pixels pixels;
    size_t stride;
    uint32_t channels;
    uint32_t row_values;
    int64_t low; /* of the integer windows */
    int64_t high;
} umdi_window;

/* Check the pixels and look for their smallest and largest value where that is needed. */
umd_status umdi_window_init(umdi_window *window, const umd_pixels *pixels);

/* Row `row` as 8-bit values: `row` numbers, or a pointer to the caller's own pixels. */
const uint8_t *umdi_window_row(const umdi_window *window, uint32_t row, uint8_t *buffer);

#endif
