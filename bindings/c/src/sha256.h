/* SHA-256 (FIPS 180-4). */
#ifndef UMDI_SHA256_H
#define UMDI_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define UMDI_SHA256_HEX 65

/* 64 lower-case hexadecimal digits of the hash of `size` bytes, and a NUL. */
void umdi_sha256(const void *bytes, size_t size, char hex[UMDI_SHA256_HEX]);

#endif
