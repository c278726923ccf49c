/* Arrays of a golden file: a zip that only stores, of `.npy` files. */
#ifndef UMDI_NPY_H
#define UMDI_NPY_H

#include "base.h"

#define UMDI_NPY_RANK 4

typedef struct umdi_array {
    char type; /* 'f' float32, 'i' int64, 'u' uint8 */
    size_t rank;
    size_t shape[UMDI_NPY_RANK];
    size_t count; /* of values */
    const void *data;
} umdi_array;

/* Look at the bytes of a `.npy` file; the array points into them. False: not one that is known. */
bool umdi_npy_parse(const uint8_t *bytes, size_t size, umdi_array *array);

#endif
