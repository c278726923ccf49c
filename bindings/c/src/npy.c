#include "npy.h"

#include <string.h>

#define MAGIC_BYTES 6
#define MAX_HEADER 512

/* What stands behind `'key': ` in the header, or NULL. */
static const char *find(const char *header, const char *key)
{
    const char *found = strstr(header, key);
    if (found == NULL)
        return NULL;
    for (found += strlen(key); *found == ' ' || *found == ':'; found++) {
    }
    return found;
}

static bool read_type(const char *header, umdi_array *array, size_t *bytes)
{
    static const struct {
        const char *text;
        char type;
        size_t bytes;
    } types[] = {{"'<f4'", 'f', 4}, {"'<i8'", 'i', 8}, {"'|u1'", 'u', 1}};
    const char *text = find(header, "'descr'");
    for (size_t i = 0; text != NULL && i < UMDI_COUNT(types); i++)
        if (strncmp(text, types[i].text, strlen(types[i].text)) == 0) {
            array->type = types[i].type;
            *bytes = types[i].bytes;
            return true;
        }
    return false;
}

/* `(2, 3)`, `(2,)` or `()`. */
static bool read_shape(const char *header, umdi_array *array)
{
    const char *text = find(header, "'shape'");
    array->count = 1;
    if (text == NULL || *text++ != '(')
        return false;
    while (*text != ')') {
        size_t side = 0;
        if (array->rank == UMDI_NPY_RANK || *text < '0' || *text > '9')
            return false;
        for (; *text >= '0' && *text <= '9'; text++) {
            if (side > SIZE_MAX / 100)
                return false;
            side = side * 10 + (size_t)(*text - '0');
        }
        if (side != 0 && array->count > SIZE_MAX / 16 / side)
            return false;
        array->count *= side;
        array->shape[array->rank++] = side;
        while (*text == ',' || *text == ' ')
            text++;
    }
    return true;
}

bool umdi_npy_parse(const uint8_t *bytes, size_t size, umdi_array *array)
{
    char header[MAX_HEADER];
    const char *order;
    size_t length, start = 10, width;
    memset(array, 0, sizeof *array);
    if (size < 12 || memcmp(bytes, "\x93NUMPY", MAGIC_BYTES) != 0)
        return false;
    length = bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] == 2) {
        length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
        start = 12;
    } else if (bytes[6] != 1) {
        return false;
    }
    /* The numbers are read in place, so they must be aligned; numpy pads the header to 64 bytes. */
    if (length >= MAX_HEADER || length > size - start || (start + length) % 8 != 0)
        return false;
    memcpy(header, bytes + start, length);
    header[length] = '\0';
    order = find(header, "'fortran_order'");
    if (order == NULL || strncmp(order, "False", 5) != 0)
        return false;
    array->data = bytes + start + length;
    return read_type(header, array, &width) && read_shape(header, array) &&
           array->count * width == size - start - length;
}
