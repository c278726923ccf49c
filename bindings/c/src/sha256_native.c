#include "sha256_blocks.h"

#define BLOCK UMDI_SHA256_BLOCK

#if defined(UMD_PORTABLE)
#define HAS_NONE
#elif defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))

#include <cpuid.h>
#include <immintrin.h>

/* Intel's layout: the eight words in two registers, ABEF and CDGH. */
__attribute__((target("sha,sse4.1"))) static void add_blocks(uint32_t state[8],
                                                             const uint8_t *bytes, size_t count)
{
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const void *)state), 0xb1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(low, high, 8);
    __m128i cdgh = _mm_blend_epi16(high, low, 0xf0);
    for (; count != 0; count--, bytes += BLOCK) {
        const __m128i first = abef, second = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(bytes + 16 * i)), order);
        for (int i = 0; i < 16; i++) {
            const __m128i now = w[i & 3];
            const __m128i k = _mm_loadu_si128((const void *)(umdi_sha256_constants + 4 * i));
            const __m128i sum = _mm_add_epi32(now, k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (i < 12) { /* the words of four rounds that come four steps later */
                const __m128i last = w[(i + 3) & 3];
                const __m128i middle = _mm_alignr_epi8(last, w[(i + 2) & 3], 4);
                const __m128i next = _mm_sha256msg1_epu32(now, w[(i + 1) & 3]);
                w[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(next, middle), last);
            }
        }
        abef = _mm_add_epi32(abef, first);
        cdgh = _mm_add_epi32(cdgh, second);
    }
    low = _mm_shuffle_epi32(abef, 0x1b);
    high = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((void *)state, _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128((void *)(state + 4), _mm_alignr_epi8(high, low, 8));
}

umdi_sha256_blocks *umdi_sha256_native(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_SSSE3) == 0 || (c & bit_SSE4_1) == 0)
        return NULL;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & bit_SHA) == 0)
        return NULL;
    return add_blocks;
}

/* Clang before 16 declares the instructions only where all code may use them. */
#elif defined(__linux__) && defined(__aarch64__) && defined(__GNUC__) &&                           \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_SHA2))

#include <arm_neon.h>
#include <sys/auxv.h>

#define HWCAP_SHA2_BIT (1ul << 6)

#if defined(__clang__)
#define TARGET __attribute__((target("sha2")))
#else
#define TARGET __attribute__((target("+crypto")))
#endif

TARGET static void add_blocks(uint32_t state[8], const uint8_t *bytes, size_t count)
{
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
    for (; count != 0; count--, bytes += BLOCK) {
        const uint32x4_t first = abcd, second = efgh;
        uint32x4_t w[4];
        for (int i = 0; i < 4; i++)
            w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(bytes + 16 * i)));
        for (int i = 0; i < 16; i++) {
            const uint32x4_t sum = vaddq_u32(w[i & 3], vld1q_u32(umdi_sha256_constants + 4 * i));
            const uint32x4_t before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, sum);
            efgh = vsha256h2q_u32(efgh, before, sum);
            if (i < 12) /* the words of four rounds that come four steps later */
                w[i & 3] = vsha256su1q_u32(vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]),
                                           w[(i + 2) & 3], w[(i + 3) & 3]);
        }
        abcd = vaddq_u32(abcd, first);
        efgh = vaddq_u32(efgh, second);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

umdi_sha256_blocks *umdi_sha256_native(void)
{
    return getauxval(AT_HWCAP) & HWCAP_SHA2_BIT ? add_blocks : NULL;
}

#else
#define HAS_NONE
#endif

#ifdef HAS_NONE
umdi_sha256_blocks *umdi_sha256_native(void)
{
    return NULL;
}
#endif
