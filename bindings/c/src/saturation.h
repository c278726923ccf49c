/* Whether products of unsigned and signed bytes come out right on this processor, by trying them,
 * as `umd_edge/_saturation.py` does it. */
#ifndef UMDI_SATURATION_H
#define UMDI_SATURATION_H

#include "graph.h"

/* How far the largest sum of 8-bit products that weights of so many bits can give is off. */
umd_status umdi_saturation_error(const umdi_runtime *runtime, int weight_bits, double *error);

#endif
