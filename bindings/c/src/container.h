/* Where a bundle's bytes lie: a directory, or the strict zip of `umd_edge/_container.py`, in a file
 * or in memory. */
#ifndef UMDI_CONTAINER_H
#define UMDI_CONTAINER_H

#include "base.h"

#define UMDI_MAX_FILE_BYTES (2ull << 30)
#define UMDI_MAX_FILES 256

typedef struct umdi_entry {
    umdi_text name;
    uint64_t size;
    uint64_t offset; /* in the zip */
    uint32_t crc;
} umdi_entry;

typedef struct umdi_container {
    umdi_arena *arena;
    const char *path;     /* NULL: in memory */
    const uint8_t *bytes; /* of a zip in memory */
    uint64_t size;        /* of the zip */
    bool is_directory;
    size_t count;
    umdi_entry *entries;
} umdi_container;

/* Whether every file system reads the name alike and it stays inside the bundle. */
bool umdi_is_safe_path(umdi_text name);

/* Read names and sizes. `path` is copied into the arena. */
umd_status umdi_container_open(umdi_container *container, umdi_arena *arena, const char *path);
umd_status umdi_container_open_memory(umdi_container *container, umdi_arena *arena,
                                      const void *bytes, size_t size);

const umdi_entry *umdi_container_find(const umdi_container *container, umdi_text name);

/* All bytes of a file, to be released with umdi_delete; one NUL stands behind them. */
umd_status umdi_container_read(const umdi_container *container, const umdi_entry *entry,
                               uint8_t **bytes);

#endif
