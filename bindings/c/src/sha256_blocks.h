/* The rounds of SHA-256 by the instructions that many processors have for them. */
#ifndef UMDI_SHA256_BLOCKS_H
#define UMDI_SHA256_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#define UMDI_SHA256_BLOCK 64

/* Add `count` blocks of 64 bytes to the state. */
typedef void umdi_sha256_blocks(uint32_t state[8], const uint8_t *bytes, size_t count);

extern const uint32_t umdi_sha256_constants[64];

/* That of this processor, or NULL. */
umdi_sha256_blocks *umdi_sha256_native(void);

#endif
