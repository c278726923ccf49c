/* Ed25519 signatures (RFC 8032): verification alone; this library never holds a private key. */
#ifndef UMDI_ED25519_H
#define UMDI_ED25519_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "signature.h"

#define UMDI_PUBLIC_KEY_BYTES 32

/* Whether the signature of `size` bytes was made with the private half of `key`. */
bool umdi_ed25519_verify(const uint8_t signature[UMDI_SIGNATURE_BYTES],
                         const uint8_t key[UMDI_PUBLIC_KEY_BYTES], const void *bytes, size_t size);

#endif
