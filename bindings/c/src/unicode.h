/* What a BERT tokenizer needs to know about characters. The tables are made from the `tokenizers`
 * library by tools/make_unicode_table.py. */
#ifndef UMDI_UNICODE_H
#define UMDI_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UMDI_MAX_DECOMPOSITION 4

bool umdi_is_space(uint32_t character);
/* A control or format character, which `clean_text` drops. */
bool umdi_is_control(uint32_t character);
bool umdi_is_punctuation(uint32_t character);
/* Chinese, as BERT sees it: such characters are words of their own. */
bool umdi_is_chinese(uint32_t character);
/* Whether its treatment depends on its neighbours or on the version of Unicode. */
bool umdi_is_unsettled(uint32_t character);

/* Canonical decomposition without the marks that `strip_accents` drops; 0 to 4 characters. */
size_t umdi_strip_accents(uint32_t character, uint32_t out[UMDI_MAX_DECOMPOSITION]);

/* Lower case. U+0130 is the only character that becomes two; the second, U+0307, is left to the
 * caller. */
uint32_t umdi_lower(uint32_t character);

#endif
