/* SHA-512 (FIPS 180-4), of parts that come one after the other. */
#ifndef UMDI_SHA512_H
#define UMDI_SHA512_H

#include <stddef.h>
#include <stdint.h>

#define UMDI_SHA512_BYTES 64

typedef struct umdi_sha512 {
    uint64_t state[8];
    uint64_t size; /* bytes added so far */
    unsigned char rest[128];
} umdi_sha512;

void umdi_sha512_init(umdi_sha512 *hash);
void umdi_sha512_add(umdi_sha512 *hash, const void *bytes, size_t size);
/* At most 2^61 - 1 bytes may have been added. */
void umdi_sha512_end(umdi_sha512 *hash, uint8_t digest[UMDI_SHA512_BYTES]);

#endif
