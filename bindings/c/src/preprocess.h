/* From pixels to `pixel_values`, bit for bit as `umd_edge/_preprocess.py` does it. */
#ifndef UMDI_PREPROCESS_H
#define UMDI_PREPROCESS_H

#include "manifest.h"

/* Called now and then during long work; another status than UMD_OK ends it. */
typedef umd_status (*umdi_check_function)(void *context);

/* Window, resize and normalise into (channels, height, width) float32. */
umd_status umdi_preprocess(const umdi_preprocessing *spec, const umd_allocator *allocator,
                           const umd_pixels *pixels, umdi_check_function check, void *context,
                           float *values);

#endif
