#include "unicode.h"

#include "unicode_table.h"

#define HANGUL_FIRST 0xAC00u
#define HANGUL_LAST 0xD7A3u
#define HANGUL_TRAILS 28u
#define HANGUL_VOWELS 21u

typedef struct umdi_range range;

static bool in_ranges(uint32_t character, const range *ranges, size_t count)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (character > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && character >= ranges[low].first;
}

#define IN(character, ranges) in_ranges(character, ranges, sizeof(ranges) / sizeof((ranges)[0]))

bool umdi_is_space(uint32_t character)
{
    return IN(character, umdi_space);
}

bool umdi_is_control(uint32_t character)
{
    return IN(character, umdi_control);
}

bool umdi_is_punctuation(uint32_t character)
{
    return IN(character, umdi_punctuation);
}

bool umdi_is_chinese(uint32_t character)
{
    return IN(character, umdi_chinese);
}

bool umdi_is_unsettled(uint32_t character)
{
    return IN(character, umdi_unsettled);
}

static size_t decompose_hangul(uint32_t character, uint32_t out[UMDI_MAX_DECOMPOSITION])
{
    uint32_t index = character - HANGUL_FIRST, trail = index % HANGUL_TRAILS;
    out[0] = 0x1100 + index / (HANGUL_TRAILS * HANGUL_VOWELS);
    out[1] = 0x1161 + index / HANGUL_TRAILS % HANGUL_VOWELS;
    out[2] = 0x11A7 + trail;
    return trail != 0 ? 3 : 2;
}

size_t umdi_strip_accents(uint32_t character, uint32_t out[UMDI_MAX_DECOMPOSITION])
{
    size_t low = 0, high = sizeof umdi_decomposed / sizeof *umdi_decomposed;
    out[0] = character;
    if (character < 0x80)
        return 1;
    if (character >= HANGUL_FIRST && character <= HANGUL_LAST)
        return decompose_hangul(character, out);
    if (IN(character, umdi_mark))
        return 0;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct umdi_decomposition *found = &umdi_decomposed[middle];
        if (found->character == character) {
            for (size_t i = 0; i < found->length; i++)
                out[i] = umdi_decomposition_pool[found->start + i];
            return found->length;
        }
        if (found->character < character)
            low = middle + 1;
        else
            high = middle;
    }
    return 1;
}

uint32_t umdi_lower(uint32_t character)
{
    size_t low = 0, high = sizeof umdi_lower_case / sizeof *umdi_lower_case;
    if (character < 0x80)
        return character >= 'A' && character <= 'Z' ? character + 32 : character;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (character > umdi_lower_case[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < sizeof umdi_lower_case / sizeof *umdi_lower_case) {
        const struct umdi_shift *found = &umdi_lower_case[low];
        if (character >= found->first && (character - found->first) % found->step == 0)
            return (uint32_t)((int32_t)character + found->delta);
    }
    return character;
}
