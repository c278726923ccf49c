#include "signature.h"

#include <string.h>

#include "ed25519.h"

#define KEY UMDI_PUBLIC_KEY_BYTES
#define PEM_BEGIN "-----BEGIN "
#define PEM_PUBLIC "-----BEGIN PUBLIC KEY-----"
#define PEM_END "-----END PUBLIC KEY-----"

/* SubjectPublicKeyInfo of Ed25519 (RFC 8410): everything before the key is the same. */
static const uint8_t spki[] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0};

static umd_status no_key(const char *what)
{
    return umdi_fail(UMD_ERROR_USAGE,
                     "public_keys: %s; 1 to %d Ed25519 public keys are needed, each as PEM or as 64 "
                     "hexadecimal digits",
                     what, UMDI_MAX_KEYS);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The 6 bits of a character of base64, or -1. */
static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static umd_status read_hex(const char **text, uint8_t key[KEY])
{
    for (int i = 0; i < KEY; i++) {
        int high = digit((*text)[0]), low = high < 0 ? -1 : digit((*text)[1]);
        if (low < 0)
            return no_key("something that is no key");
        key[i] = (uint8_t)(high << 4 | low);
        *text += 2;
    }
    return **text == '\0' || is_space(**text) ? UMD_OK : no_key("something that is no key");
}

static umd_status read_pem(const char **text, uint8_t key[KEY])
{
    uint8_t der[sizeof spki + KEY];
    size_t count = 0;
    uint32_t bits = 0;
    int held = 0;
    if (strncmp(*text, PEM_PUBLIC, strlen(PEM_PUBLIC)) != 0)
        return no_key(strncmp(*text, "-----BEGIN PRIVATE", 18) == 0
                          ? "a private key, which must not leave its maker"
                          : "PEM of something else");
    for (*text += strlen(PEM_PUBLIC); **text != '-' && **text != '\0'; ++*text) {
        if (is_space(**text) || **text == '=')
            continue;
        if (sextet(**text) < 0 || count == sizeof der)
            return no_key("PEM of a key of another kind");
        bits = bits << 6 | (uint32_t)sextet(**text);
        held += 6;
        if (held >= 8) {
            held -= 8;
            der[count++] = (uint8_t)(bits >> held);
        }
    }
    if (strncmp(*text, PEM_END, strlen(PEM_END)) != 0)
        return no_key("PEM without an end");
    *text += strlen(PEM_END);
    if (count != sizeof der || memcmp(der, spki, sizeof spki) != 0)
        return no_key("PEM of a key of another kind");
    memcpy(key, der + sizeof spki, KEY);
    return UMD_OK;
}

static umd_status read_keys(const char *text, uint8_t keys[UMDI_MAX_KEYS][KEY], size_t *count)
{
    *count = 0;
    for (;;) {
        while (is_space(*text))
            text++;
        if (*text == '\0')
            return *count > 0 ? UMD_OK : no_key("none");
        if (*count == UMDI_MAX_KEYS)
            return no_key("more than 8");
        UMDI_TRY(strncmp(text, PEM_BEGIN, strlen(PEM_BEGIN)) == 0 ? read_pem(&text, keys[*count])
                                                                  : read_hex(&text, keys[*count]));
        ++*count;
    }
}

umd_status umdi_signature_check(umdi_text signed_bytes, umdi_text signatures, const char *keys)
{
    uint8_t known[UMDI_MAX_KEYS][KEY];
    size_t count;
    UMDI_TRY(read_keys(keys, known, &count));
    if (signatures.text == NULL)
        return umdi_fail(UMD_ERROR_BUNDLE_SIGNATURE,
                         "the bundle is not signed, and public_keys asks for a signature; use one "
                         "that its maker signed");
    if (signatures.length == 0 || signatures.length % UMDI_SIGNATURE_BYTES != 0 ||
        signatures.length > UMDI_MAX_SIGNATURES * UMDI_SIGNATURE_BYTES)
        return umdi_fail(UMD_ERROR_BUNDLE_SIGNATURE,
                         "manifest.sig has %zu bytes; 1 to %d signatures of %d bytes are allowed",
                         signatures.length, UMDI_MAX_SIGNATURES, UMDI_SIGNATURE_BYTES);
    for (size_t at = 0; at < signatures.length; at += UMDI_SIGNATURE_BYTES)
        for (size_t i = 0; i < count; i++)
            if (umdi_ed25519_verify((const uint8_t *)signatures.text + at, known[i],
                                    signed_bytes.text, signed_bytes.length))
                return UMD_OK;
    return umdi_fail(UMD_ERROR_BUNDLE_SIGNATURE,
                     "no signature of the bundle is right under the public keys given: it was "
                     "altered, or signed by somebody else; do not use it");
}
