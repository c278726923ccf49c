/* Statistics of the grey levels, edges and colours of a resized picture, as
 * `umd_edge/_appearance.py` computes them; the formulas stand in docs/bundle-format.md under
 * `ood.npz`. */
#ifndef UMDI_APPEARANCE_H
#define UMDI_APPEARANCE_H

#include <stddef.h>
#include <stdint.h>

#define UMDI_APPEARANCE 17

/* Statistics of a resized picture of `channels` interleaved 8-bit values, at least 16 x 16. */
void umdi_appearance(const uint8_t *picture, uint32_t channels, size_t height, size_t width,
                     double statistics[UMDI_APPEARANCE]);

#endif
