#include <string.h>

#include "container.h"

#define MAX_PATH_LENGTH 200
#define MAX_COMPONENTS 8
#define MAX_COMPONENT 100

static bool is_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* `con`, `nul.txt`, `com1` and the like, which Windows takes for devices. */
static bool is_device(const char *part, size_t length)
{
    static const char *const names[] = {"con", "prn", "aux", "nul", "com", "lpt"};
    const char *dot = memchr(part, '.', length);
    char stem[4];
    size_t used = dot != NULL ? (size_t)(dot - part) : length;
    if (used < 3 || used > 4)
        return false;
    for (size_t i = 0; i < 3; i++)
        stem[i] = (char)(part[i] | 32);
    stem[3] = '\0';
    for (size_t i = 0; i < UMDI_COUNT(names); i++)
        if (strcmp(stem, names[i]) == 0)
            return i < 4 ? used == 3 : used == 4 && part[3] >= '0' && part[3] <= '9';
    return false;
}

static bool is_component(const char *part, size_t length)
{
    if (length < 1 || length > MAX_COMPONENT || !is_word(part[0]))
        return false;
    for (size_t i = 1; i < length; i++)
        if (!is_word(part[i]) && part[i] != '-' && (part[i] != '.' || i + 1 == length))
            return false;
    return !is_device(part, length);
}

bool umdi_is_safe_path(umdi_text name)
{
    size_t start = 0, components = 0;
    if (name.length > MAX_PATH_LENGTH)
        return false;
    for (size_t i = 0; i <= name.length; i++) {
        if (i < name.length && name.text[i] != '/')
            continue;
        if (++components > MAX_COMPONENTS || !is_component(name.text + start, i - start))
            return false;
        start = i + 1;
    }
    return true;
}
