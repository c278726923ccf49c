/* From pixels to `pixel_values`, bit for bit as `umd_edge/_preprocess.py` does it. */
#ifndef UMDI_PREPROCESS_H
#define UMDI_PREPROCESS_H

#include "manifest.h"

/* Called now and then during long work; another status than UMD_OK ends it. */
typedef umd_status (*umdi_check_function)(void *context);

/* The resized image before it is normalised; `levels` has room for height * width * 3. */
typedef struct umdi_picture {
    uint8_t *levels;   /* interleaved */
    uint32_t channels; /* 1 or 3 */
} umdi_picture;

/* Window, resize and normalise into (channels, height, width) float32; `picture` may be NULL. */
umd_status umdi_preprocess(const umdi_preprocessing *spec, const umd_allocator *allocator,
                           const umd_pixels *pixels, umdi_check_function check, void *context,
                           umdi_picture *picture, float *values);

#endif
