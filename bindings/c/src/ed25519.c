#include "ed25519.h"

#include "sha512.h"

#include "../third_party/monocypher/umdi_names.h"

#if defined(__GNUC__)
/* Not our code, and not held to our warnings. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#endif
#include "../third_party/monocypher/monocypher.c"
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

bool umdi_ed25519_verify(const uint8_t signature[UMDI_SIGNATURE_BYTES],
                         const uint8_t key[UMDI_PUBLIC_KEY_BYTES], const void *bytes, size_t size)
{
    uint8_t digest[UMDI_SHA512_BYTES], challenge[32];
    umdi_sha512 hash;
    umdi_sha512_init(&hash);
    umdi_sha512_add(&hash, signature, 32);
    umdi_sha512_add(&hash, key, UMDI_PUBLIC_KEY_BYTES);
    umdi_sha512_add(&hash, bytes, size);
    umdi_sha512_end(&hash, digest);
    crypto_eddsa_reduce(challenge, digest);
    return crypto_eddsa_check_equation(signature, key, challenge) == 0;
}
