#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "zip.h"

#include <string.h>

#define LOCAL_BYTES 30
#define CENTRAL_BYTES 46
#define END_BYTES 22
#define MAX_NAME 200
#define UTF8_FLAG 0x800
#define MAX_DIRECTORY_BYTES ((UMDI_MAX_FILES + 2) * (CENTRAL_BYTES + MAX_NAME))
#define REPACK "pack it again with `zip -0 -X -D -r` or umd-edge-export"

bool umdi_source_read(umdi_source *source, uint64_t offset, void *target, size_t size)
{
    if (offset > source->size || size > source->size - offset)
        return false;
    if (size == 0)
        return true;
    if (source->file == NULL) {
        memcpy(target, source->bytes + offset, size);
        return true;
    }
    return fseeko(source->file, (off_t)offset, SEEK_SET) == 0 &&
           fread(target, 1, size, source->file) == size;
}

uint32_t umdi_crc32(const uint8_t *bytes, size_t size)
{
    uint32_t table[8][256], crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        table[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    for (; size >= 8; size -= 8, bytes += 8) {
        crc ^= bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
               (uint32_t)bytes[3] << 24;
        crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^ table[5][crc >> 16 & 255] ^
              table[4][crc >> 24] ^ table[3][bytes[4]] ^ table[2][bytes[5]] ^ table[1][bytes[6]] ^
              table[0][bytes[7]];
    }
    for (; size > 0; size--, bytes++)
        crc = crc >> 8 ^ table[0][(crc ^ *bytes) & 255];
    return ~crc;
}

static uint32_t u16(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8;
}

static uint32_t u32(const uint8_t *bytes)
{
    return u16(bytes) | u16(bytes + 2) << 16;
}

static umd_status bad(const umdi_container *container, const char *problem)
{
    return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%.300s' is no usable bundle: %s",
                     container->path != NULL ? container->path : "the memory given", problem);
}

static bool is_known(const umdi_container *container, umdi_text name)
{
    for (size_t i = 0; i < container->count; i++)
        if (umdi_equal_folded(container->entries[i].name, name))
            return true;
    return false;
}

/* The local header must repeat what the directory says. */
static bool matches_local(umdi_source *source, const uint8_t *central, umdi_text name,
                          uint64_t offset)
{
    uint8_t local[LOCAL_BYTES + MAX_NAME];
    if (!umdi_source_read(source, offset, local, LOCAL_BYTES + name.length))
        return false;
    return memcmp(local, "PK\3\4", 4) == 0 && memcmp(local + 6, central + 8, 4) == 0 &&
           memcmp(local + 14, central + 16, 14) == 0 && u16(local + 28) == 0 &&
           memcmp(local + LOCAL_BYTES, name.text, name.length) == 0;
}

/* One entry of the directory at `*position`; its data must lie at `*expected`. */
static umd_status add_entry(umdi_container *container, umdi_source *source,
                            const uint8_t *directory, size_t size, size_t *position,
                            uint64_t *expected)
{
    const uint8_t *central = directory + *position;
    umdi_text name = {(const char *)central + CENTRAL_BYTES, 0};
    umdi_entry *entry = &container->entries[container->count];
    uint32_t type;
    if (size - *position < CENTRAL_BYTES || memcmp(central, "PK\1\2", 4) != 0)
        return bad(container, "its directory is damaged");
    name.length = u16(central + 28);
    if (name.length > size - *position - CENTRAL_BYTES)
        return bad(container, "its directory ends early");
    if (!umdi_is_safe_path(name))
        return bad(container, "an entry has a name that may leave the bundle");
    if (is_known(container, name))
        return bad(container, "an entry occurs twice");
    type = u32(central + 38) >> 16 & 0xF000;
    if (type != 0 && type != 0x8000)
        return bad(container, "an entry is a link or a special file");
    if (u16(central + 10) != 0 || u32(central + 20) != u32(central + 24) ||
        (u16(central + 8) & ~(uint32_t)UTF8_FLAG) != 0 || u32(central + 30) != 0 ||
        u16(central + 34) != 0)
        return bad(container, "an entry is compressed, encrypted or has extra fields; " REPACK);
    if (u32(central + 42) != *expected)
        return bad(container, "an entry does not follow the one before it; " REPACK);
    if (!matches_local(source, central, name, *expected))
        return bad(container, "an entry differs between its header and the directory; " REPACK);
    entry->crc = u32(central + 16);
    entry->size = u32(central + 20);
    entry->offset = *expected + LOCAL_BYTES + name.length;
    entry->name.length = name.length;
    entry->name.text = umdi_arena_copy(container->arena, name.text, name.length);
    if (entry->name.text == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    *position += CENTRAL_BYTES + name.length;
    *expected = entry->offset + entry->size;
    container->count++;
    return UMD_OK;
}

umd_status umdi_zip_index(umdi_container *container, umdi_source *source)
{
    uint8_t end[END_BYTES], *directory;
    size_t size, position = 0;
    uint64_t offset, expected = 0;
    umd_status status = UMD_OK;
    if (source->size < END_BYTES ||
        !umdi_source_read(source, source->size - END_BYTES, end, END_BYTES) ||
        memcmp(end, "PK\5\6", 4) != 0)
        return bad(container, "it is truncated, has a comment, or is no zip");
    size = u32(end + 12);
    offset = u32(end + 16);
    if (u32(end + 4) != 0 || u16(end + 20) != 0 || u16(end + 8) != u16(end + 10) ||
        u16(end + 10) > UMDI_MAX_FILES + 2)
        return bad(container, "at most 258 entries on one disk are allowed");
    if (offset + size + END_BYTES != source->size || size > MAX_DIRECTORY_BYTES)
        return bad(container, "its directory is not where its end says");
    directory = umdi_new(&container->arena->allocator, size, 1);
    if (directory == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (!umdi_source_read(source, offset, directory, size))
        status = bad(container, "its directory cannot be read");
    for (uint32_t i = 0; i < u16(end + 10) && status == UMD_OK; i++)
        status = add_entry(container, source, directory, size, &position, &expected);
    if (status == UMD_OK && (position != size || expected != offset))
        status = bad(container, "bytes lie between or after its entries");
    umdi_delete(&container->arena->allocator, directory);
    return status;
}
