#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

#define MESSAGE_BYTES 1024
#define BLOCK_BYTES 16384
#define NUMBER_BYTES 64

static _Thread_local char last_error[MESSAGE_BYTES];

umd_status umdi_fail(umd_status status, const char *format, ...)
{
    char message[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    /* By way of a copy: a message may quote the message before it. */
    memcpy(last_error, message, sizeof message);
    return status;
}

umd_status umdi_no_memory(void)
{
    return umdi_fail(UMD_ERROR_OUT_OF_MEMORY, "no memory was left; nothing has been changed");
}

umd_status umdi_missing(const char *what)
{
    return umdi_fail(UMD_ERROR_USAGE, "%s is NULL; give one", what);
}

const char *umd_last_error(void)
{
    return last_error;
}

const char *umd_status_name(umd_status status)
{
    static const struct {
        umd_status status;
        const char *name;
    } names[] = {
        {UMD_OK, "Ok"},
        {UMD_ERROR, "UmdEdgeError"},
        {UMD_ERROR_AUDIT_WRITE, "AuditWriteError"},
        {UMD_ERROR_USAGE, "UsageError"},
        {UMD_ERROR_UNKNOWN_TASK, "UnknownTaskError"},
        {UMD_ERROR_BUNDLE, "BundleError"},
        {UMD_ERROR_BUNDLE_NOT_FOUND, "BundleNotFoundError"},
        {UMD_ERROR_MANIFEST, "ManifestError"},
        {UMD_ERROR_BUNDLE_INTEGRITY, "BundleIntegrityError"},
        {UMD_ERROR_BUNDLE_VERSION, "BundleVersionError"},
        {UMD_ERROR_SELF_TEST, "SelfTestError"},
        {UMD_ERROR_BUNDLE_SIGNATURE, "BundleSignatureError"},
        {UMD_ERROR_AUDIT, "AuditError"},
        {UMD_ERROR_INPUT, "InputError"},
        {UMD_ERROR_IMAGE_INPUT, "ImageInputError"},
        {UMD_ERROR_DICOM_INPUT, "DicomInputError"},
        {UMD_ERROR_TEXT_INPUT, "TextInputError"},
        {UMD_ERROR_STRUCTURED_INPUT, "StructuredInputError"},
        {UMD_ERROR_DATA, "DataError"},
        {UMD_ERROR_GALLERY, "GalleryError"},
        {UMD_ERROR_PROVIDER, "ProviderError"},
        {UMD_ERROR_PROVIDER_UNAVAILABLE, "ProviderUnavailableError"},
        {UMD_ERROR_INFERENCE, "InferenceError"},
        {UMD_ERROR_MISSING_DEPENDENCY, "MissingDependencyError"},
        {UMD_ERROR_STOPPED, "StoppedError"},
        {UMD_ERROR_CANCELLED, "CancelledError"},
        {UMD_ERROR_DEADLINE, "DeadlineExceededError"},
        {UMD_ERROR_OUT_OF_MEMORY, "OutOfMemory"},
        {UMD_ERROR_BUFFER_TOO_SMALL, "BufferTooSmall"},
    };
    for (size_t i = 0; i < UMDI_COUNT(names); i++)
        if (names[i].status == status)
            return names[i].name;
    return "unknown status";
}

umd_status umdi_take(void *target, size_t size, const void *source, const char *name)
{
    uint32_t given = 0;
    memset(target, 0, size);
    if (source == NULL)
        return UMD_OK;
    memcpy(&given, source, sizeof given);
    if (given < sizeof given)
        return umdi_fail(UMD_ERROR_USAGE, "%s has no struct_size; fill it with %s_init", name,
                         name);
    for (size_t i = size; i < given; i++)
        if (((const unsigned char *)source)[i] != 0)
            return umdi_fail(UMD_ERROR_USAGE,
                             "%s has a setting that this library (ABI %u) does not know; link a "
                             "newer one",
                             name, (unsigned)UMD_ABI_VERSION);
    memcpy(target, source, given < size ? given : size);
    return UMD_OK;
}

umd_status umdi_give(void *target, void *source, size_t size, const char *name)
{
    uint32_t given = 0;
    if (target == NULL)
        return umdi_missing(name);
    memcpy(&given, target, sizeof given);
    if (given < sizeof given)
        return umdi_fail(UMD_ERROR_USAGE, "%s has no struct_size; fill it with %s_init", name,
                         name);
    memcpy(source, &given, sizeof given);
    memcpy(target, source, given < size ? given : size);
    return UMD_OK;
}

/* ---- memory ---- */

static void *default_allocate(void *context, size_t size)
{
    (void)context;
    return malloc(size);
}

static void default_release(void *context, void *memory)
{
    (void)context;
    free(memory);
}

umd_allocator umdi_allocator(const umd_allocator *given)
{
    umd_allocator standard = {default_allocate, default_release, NULL};
    return given != NULL ? *given : standard;
}

void *umdi_new(const umd_allocator *allocator, size_t count, size_t size)
{
    void *memory = NULL;
    if (count == 0 || size == 0)
        count = size = 1;
    if (count <= SIZE_MAX / size)
        memory = allocator->allocate(allocator->context, count * size);
    if (memory == NULL)
        umdi_no_memory();
    else
        memset(memory, 0, count * size);
    return memory;
}

void umdi_delete(const umd_allocator *allocator, void *memory)
{
    if (memory != NULL)
        allocator->release(allocator->context, memory);
}

struct umdi_block {
    umdi_block *next;
    size_t used;
    size_t size;
    max_align_t first;
};

void umdi_arena_init(umdi_arena *arena, const umd_allocator *allocator)
{
    arena->allocator = *allocator;
    arena->blocks = NULL;
}

void *umdi_arena_new(umdi_arena *arena, size_t count, size_t size)
{
    const size_t step = sizeof(max_align_t), head = offsetof(umdi_block, first);
    umdi_block *block = arena->blocks;
    size_t bytes;
    if (size != 0 && count > (SIZE_MAX / 2) / size) {
        umdi_no_memory();
        return NULL;
    }
    bytes = (count * size + step - 1) / step * step;
    if (block == NULL || block->size - block->used < bytes) {
        size_t room = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        block = umdi_new(&arena->allocator, 1, head + room);
        if (block == NULL)
            return NULL;
        block->size = room;
        if (room > BLOCK_BYTES && arena->blocks != NULL) {
            /* A large piece has its own block, and the one in use stays in use. */
            block->used = bytes;
            block->next = arena->blocks->next;
            arena->blocks->next = block;
            return &block->first;
        }
        block->next = arena->blocks;
        arena->blocks = block;
    }
    block->used += bytes;
    return (unsigned char *)&block->first + (block->used - bytes);
}

char *umdi_arena_copy(umdi_arena *arena, const char *text, size_t length)
{
    char *copy = umdi_arena_new(arena, length + 1, 1);
    if (copy != NULL && length != 0)
        memcpy(copy, text, length);
    return copy;
}

void umdi_arena_free(umdi_arena *arena)
{
    while (arena->blocks != NULL) {
        umdi_block *next = arena->blocks->next;
        umdi_delete(&arena->allocator, arena->blocks);
        arena->blocks = next;
    }
}

/* ---- text ---- */

umdi_text umdi_of(const char *text)
{
    umdi_text result = {text, strlen(text)};
    return result;
}

bool umdi_equal(umdi_text text, const char *other)
{
    return umdi_compare(text, umdi_of(other)) == 0;
}

int umdi_compare(umdi_text a, umdi_text b)
{
    size_t length = a.length < b.length ? a.length : b.length;
    int order = length == 0 ? 0 : memcmp(a.text, b.text, length);
    if (order != 0)
        return order;
    return a.length < b.length ? -1 : a.length > b.length;
}

static void sift(unsigned char *heap, size_t root, size_t count, size_t size,
                 int (*compare)(const void *left, const void *right))
{
    unsigned char swap[UMDI_SORT_BYTES];
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(heap + child * size, heap + (child + 1) * size) < 0)
            child++;
        if (compare(heap + root * size, heap + child * size) >= 0)
            return;
        memcpy(swap, heap + root * size, size);
        memcpy(heap + root * size, heap + child * size, size);
        memcpy(heap + child * size, swap, size);
    }
}

void umdi_sort(void *items, size_t count, size_t size,
               int (*compare)(const void *left, const void *right))
{
    unsigned char swap[UMDI_SORT_BYTES], *heap = items;
    for (size_t i = count / 2; i-- > 0;)
        sift(heap, i, count, size, compare);
    for (size_t end = count; end > 1;) {
        end--;
        memcpy(swap, heap, size);
        memcpy(heap, heap + end * size, size);
        memcpy(heap + end * size, swap, size);
        sift(heap, 0, end, size, compare);
    }
}

bool umdi_next_character(umdi_text text, size_t *position, uint32_t *character)
{
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)text.text + *position;
    size_t left = text.length - *position, more;
    uint32_t value = bytes[0];
    if (value < 0x80) {
        *character = value;
        *position += 1;
        return true;
    }
    more = value >= 0xF0 ? 3 : value >= 0xE0 ? 2 : 1;
    if (value < 0xC2 || value > 0xF4 || left <= more)
        return false;
    value &= 0x3Fu >> more;
    for (size_t i = 1; i <= more; i++) {
        if ((bytes[i] & 0xC0) != 0x80)
            return false;
        value = value << 6 | (bytes[i] & 0x3F);
    }
    if (value < smallest[more] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        return false;
    *character = value;
    *position += more + 1;
    return true;
}

/* White space of Python's str.isspace: that of Unicode, and four control characters. */
static bool is_python_space(uint32_t character)
{
    return umdi_is_space(character) || (character >= 0x1C && character <= 0x1F);
}

umdi_text umdi_strip(umdi_text text)
{
    size_t position = 0, first = text.length, last = 0;
    while (position < text.length) {
        uint32_t character;
        size_t start = position;
        if (!umdi_next_character(text, &position, &character))
            return text;
        if (is_python_space(character))
            continue;
        if (first > start)
            first = start;
        last = position;
    }
    umdi_text result = {text.text + first, first < last ? last - first : 0};
    return result;
}

size_t umdi_characters(umdi_text text)
{
    size_t position = 0, count = 0;
    uint32_t character;
    for (; position < text.length; count++)
        if (!umdi_next_character(text, &position, &character))
            return SIZE_MAX;
    return count;
}

bool umdi_equal_folded(umdi_text a, umdi_text b)
{
    size_t i = 0, j = 0;
    while (i < a.length && j < b.length) {
        uint32_t left, right;
        if (!umdi_next_character(a, &i, &left) || !umdi_next_character(b, &j, &right))
            return false;
        if (umdi_lower(left) != umdi_lower(right))
            return false;
    }
    return i == a.length && j == b.length;
}

double umdi_parse_double(umdi_text text)
{
    char buffer[NUMBER_BYTES], probe[16];
    size_t used = 0, point;
    /* strtod reads the decimal point of the locale, so ask which one it is. */
    snprintf(probe, sizeof probe, "%.1f", 0.5);
    point = strlen(probe) - 2;
    for (size_t i = 0; i < text.length && used + point + 1 < sizeof buffer; i++) {
        if (text.text[i] == '.') {
            memcpy(buffer + used, probe + 1, point);
            used += point;
        } else {
            buffer[used++] = text.text[i];
        }
    }
    buffer[used] = '\0';
    return strtod(buffer, NULL);
}
