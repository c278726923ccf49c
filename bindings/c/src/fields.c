#include "fields.h"

#include <string.h>

#include "container.h"

#define MAX_NAME 100

umd_status umdi_bad_field(const char *path, const char *problem)
{
    return umdi_fail(UMD_ERROR_MANIFEST, "manifest.json: %s: %s", path, problem);
}

static bool is_listed(umdi_text key, const char *const *list)
{
    for (; *list != NULL; list++)
        if (umdi_equal(key, *list))
            return true;
    return false;
}

umd_status umdi_check_object(const umdi_json *value, const char *path, const char *const *needed,
                             const char *const *optional)
{
    if (value == NULL || value->type != UMDI_OBJECT)
        return umdi_bad_field(path, "an object is needed");
    for (const umdi_json *item = value->items; item != NULL; item = item->next)
        if (!is_listed(item->key, needed) && !is_listed(item->key, optional))
            return umdi_fail(UMD_ERROR_MANIFEST, "manifest.json: %s: unknown key '%.60s'", path,
                             item->key.text);
    for (; *needed != NULL; needed++)
        if (umdi_json_get(value, *needed) == NULL)
            return umdi_fail(UMD_ERROR_MANIFEST, "manifest.json: %s: missing key '%s'", path,
                             *needed);
    return UMD_OK;
}

umd_status umdi_check_type(const umdi_json *value, const char *path, enum umdi_json_type type)
{
    if (value == NULL || value->type != type)
        return umdi_bad_field(path, type == UMDI_OBJECT ? "an object is needed"
                                    : type == UMDI_ARRAY ? "a list is needed"
                                                         : "a string is needed");
    return UMD_OK;
}

umd_status umdi_read_text(const umdi_json *value, const char *path, umdi_text *out)
{
    UMDI_TRY(umdi_check_type(value, path, UMDI_STRING));
    *out = value->string;
    return UMD_OK;
}

umd_status umdi_read_filled(const umdi_json *value, const char *path, umdi_text *out)
{
    UMDI_TRY(umdi_read_text(value, path, out));
    if (umdi_strip(*out).length == 0)
        return umdi_bad_field(path, "a string that is not empty is needed");
    return UMD_OK;
}

umd_status umdi_read_texts(umdi_arena *arena, const umdi_json *value, const char *path,
                           umdi_text **out, size_t *count)
{
    const umdi_json *item;
    umdi_text *texts;
    if (value == NULL || value->type != UMDI_ARRAY)
        return umdi_bad_field(path, "a list of strings is needed");
    texts = umdi_arena_new(arena, value->count, sizeof *texts);
    if (texts == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    *count = 0;
    for (item = value->items; item != NULL; item = item->next) {
        if (item->type != UMDI_STRING)
            return umdi_bad_field(path, "a list of strings is needed");
        texts[(*count)++] = item->string;
    }
    *out = texts;
    return UMD_OK;
}

umd_status umdi_read_integer(const umdi_json *value, const char *path, double low, double high,
                             int64_t *out)
{
    if (value == NULL || value->type != UMDI_INTEGER || value->number < low ||
        value->number > high)
        return umdi_fail(UMD_ERROR_MANIFEST,
                         "manifest.json: %s: an integer in %.0f..%.0f is needed", path, low, high);
    *out = (int64_t)value->number;
    return UMD_OK;
}

umd_status umdi_read_number(const umdi_json *value, const char *path, double *out)
{
    if (value == NULL || (value->type != UMDI_INTEGER && value->type != UMDI_REAL))
        return umdi_bad_field(path, "a number is needed");
    *out = value->number;
    return UMD_OK;
}

umd_status umdi_read_path(const umdi_json *value, const char *path, umdi_text *out)
{
    if (value == NULL || value->type != UMDI_STRING || !umdi_is_safe_path(value->string))
        return umdi_bad_field(
            path, "a path inside the bundle is needed (letters, digits, '_', '-', '.', '/')");
    *out = value->string;
    return UMD_OK;
}

umd_status umdi_read_numbers(const umdi_json *value, const char *path)
{
    double number;
    UMDI_TRY(umdi_check_type(value, path, UMDI_OBJECT));
    for (const umdi_json *item = value->items; item != NULL; item = item->next)
        UMDI_TRY(umdi_read_number(item, path, &number));
    return UMD_OK;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alphanumeric(char c)
{
    return is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

bool umdi_is_name(umdi_text text)
{
    if (text.length < 1 || text.length > MAX_NAME || !is_alphanumeric(text.text[0]))
        return false;
    for (size_t i = 1; i < text.length; i++)
        if (!is_alphanumeric(text.text[i]) && strchr("._-", text.text[i]) == NULL)
            return false;
    return true;
}

/* major.minor.patch, each of 1 to 9 digits, then up to 41 characters such as `-rc.1`. */
bool umdi_is_version(umdi_text text)
{
    size_t at = 0, rest;
    for (int part = 0; part < 3; part++) {
        size_t digits = 0;
        if (part > 0 && (at == text.length || text.text[at++] != '.'))
            return false;
        for (; at < text.length && digits < 9 && is_digit(text.text[at]); at++)
            digits++;
        if (digits == 0)
            return false;
    }
    rest = text.length - at;
    for (size_t i = at; i < text.length; i++)
        if (!is_alphanumeric(text.text[i]) && strchr("-+.", text.text[i]) == NULL)
            return false;
    if (rest == 0)
        return true;
    /* One separator is optional; what follows it has 1 to 40 characters. */
    return rest <= 40 || (rest == 41 && strchr("-+.", text.text[at]) != NULL);
}

bool umdi_is_date(umdi_text text)
{
    static const char pattern[] = "dddd-dd-ddTdd:dd:ddZ";
    if (text.length != sizeof pattern - 1)
        return false;
    for (size_t i = 0; i < text.length; i++)
        if (pattern[i] == 'd' ? !is_digit(text.text[i]) : text.text[i] != pattern[i])
            return false;
    return true;
}

bool umdi_is_sha256(umdi_text text)
{
    if (text.length != 64)
        return false;
    for (size_t i = 0; i < text.length; i++)
        if (!is_digit(text.text[i]) && (text.text[i] < 'a' || text.text[i] > 'f'))
            return false;
    return true;
}
