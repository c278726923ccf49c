/* The signature of a bundle: `manifest.sig`, docs/bundle-format.md. */
#ifndef UMDI_SIGNATURE_H
#define UMDI_SIGNATURE_H

#include "base.h"

#define UMDI_MAX_SIGNATURES 8
#define UMDI_SIGNATURE_BYTES 64
#define UMDI_MAX_KEYS 8

/* Whether at least one of the signatures in `signatures` (64 bytes each, one behind the other) is
 * one of `signed_bytes` by one of the public keys that `keys` names: PEM blocks, or 64 hexadecimal
 * digits each, any of them with white space between.
 *
 * Fails with BUNDLE_SIGNATURE, or USAGE where `keys` names none, or more than 8. */
umd_status umdi_signature_check(umdi_text signed_bytes, umdi_text signatures, const char *keys);

#endif
