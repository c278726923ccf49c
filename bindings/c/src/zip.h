/* The strict zip of a bundle, and of its golden vectors: entries stored, one after the other. */
#ifndef UMDI_ZIP_H
#define UMDI_ZIP_H

#include <stdio.h>

#include "container.h"

/* Bytes that are read from a file or lie in memory. */
typedef struct umdi_source {
    FILE *file;
    const uint8_t *bytes;
    uint64_t size;
} umdi_source;

bool umdi_source_read(umdi_source *source, uint64_t offset, void *target, size_t size);

/* Fill `entries` and `count`; everything but the strict form is refused. */
umd_status umdi_zip_index(umdi_container *container, umdi_source *source);

uint32_t umdi_crc32(const uint8_t *bytes, size_t size);

#endif
