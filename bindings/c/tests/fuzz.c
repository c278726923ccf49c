/* libFuzzer target for everything that reads bytes from outside: zip, manifest, tokenizer with a
 * text, `.npy`, and pixels with their description. The first byte says which.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc tests/fuzz.c src/[a-z]*.c
 */
#include <stdlib.h>
#include <string.h>

#include "container.h"
#include "manifest.h"
#include "npy.h"
#include "preprocess.h"
#include "tokenizer.h"

#define SIDE 16
#define MAX_TOKENS 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_zip(umdi_arena *arena, const uint8_t *data, size_t size)
{
    umdi_container container;
    if (umdi_container_open_memory(&container, arena, data, size) != UMD_OK)
        return;
    for (size_t i = 0; i < container.count; i++) {
        uint8_t *bytes = NULL;
        if (umdi_container_read(&container, &container.entries[i], &bytes) == UMD_OK)
            umdi_delete(&arena->allocator, bytes);
    }
}

static void fuzz_manifest(umdi_arena *arena, const uint8_t *data, size_t size)
{
    umdi_manifest manifest;
    umdi_text source = {(const char *)data, size};
    (void)umdi_manifest_parse(arena, source, &manifest);
}

/* The text stands in front of the file, behind its length. */
static void fuzz_tokenizer(umdi_arena *arena, const uint8_t *data, size_t size)
{
    umdi_tokenizer tokenizer;
    int64_t ids[MAX_TOKENS];
    size_t count = 0, length;
    if (size == 0)
        return;
    length = data[0] < size - 1 ? data[0] : size - 1;
    umdi_text text = {(const char *)data + 1, length};
    umdi_text source = {(const char *)data + 1 + length, size - 1 - length};
    if (umdi_tokenizer_parse(&tokenizer, arena, source, MAX_TOKENS) != UMD_OK)
        return;
    if (umdi_check_text(text, "text") == UMD_OK)
        (void)umdi_tokenize(&tokenizer, &arena->allocator, text, ids, &count);
    if (count > MAX_TOKENS)
        abort();
}

static umd_status go_on(void *context)
{
    (void)context;
    return UMD_OK;
}

/* The description as it stands, but for the pointers; what is behind it are the pixels. */
static void fuzz_pixels(umdi_arena *arena, const uint8_t *data, size_t size)
{
    static const umdi_preprocessing spec = {
        SIDE, SIDE, 3, 22, {0.5, 0.5, 0.5}, {0.25, 0.25, 0.25}};
    float values[3 * SIDE * SIDE];
    double appearance[UMDI_APPEARANCE];
    uint8_t levels[3 * SIDE * SIDE];
    umdi_picture picture = {levels, 0};
    umd_pixels pixels;
    size_t used = size < sizeof pixels ? size : sizeof pixels;
    umd_pixels_init(&pixels, sizeof pixels);
    memcpy(&pixels, data, used);
    pixels.struct_size = sizeof pixels;
    pixels.data = data + used;
    pixels.size = size - used;
    pixels.dicom_modality = pixels.body_part = pixels.view = pixels.burned_in_annotation = NULL;
    if (umdi_preprocess(&spec, &arena->allocator, &pixels, go_on, NULL, &picture, values) == UMD_OK)
        umdi_appearance(picture.levels, picture.channels, SIDE, SIDE, appearance);
}

static void fuzz_npy(const uint8_t *data, size_t size)
{
    umdi_array array;
    /* As after umdi_container_read: aligned as by malloc. */
    uint8_t *copy = malloc(size + 1);
    if (copy == NULL)
        return;
    memcpy(copy, data, size);
    (void)umdi_npy_parse(copy, size, &array);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    umd_allocator allocator = umdi_allocator(NULL);
    umdi_arena arena;
    if (size == 0)
        return 0;
    umdi_arena_init(&arena, &allocator);
    switch (data[0] % 5) {
    case 0:
        fuzz_zip(&arena, data + 1, size - 1);
        break;
    case 1:
        fuzz_manifest(&arena, data + 1, size - 1);
        break;
    case 2:
        fuzz_tokenizer(&arena, data + 1, size - 1);
        break;
    case 3:
        fuzz_pixels(&arena, data + 1, size - 1);
        break;
    default:
        fuzz_npy(data + 1, size - 1);
        break;
    }
    umdi_arena_free(&arena);
    return 0;
}
