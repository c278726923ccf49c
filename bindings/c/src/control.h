/* Deadlines and cancel tokens of one call. */
#ifndef UMDI_CONTROL_H
#define UMDI_CONTROL_H

#include <pthread.h>
#include <stdatomic.h>

#include "ort.h"

typedef struct umdi_control umdi_control;

struct umdi_control {
    const umdi_ort *ort;
    OrtRunOptions *run; /* NULL where neither was asked for */
    umd_cancel *cancel;
    umdi_control *next; /* of the token's running calls */
    umdi_control *previous;
    atomic_int ended_by; /* UMD_OK, UMD_ERROR_CANCELLED or UMD_ERROR_DEADLINE */
    double end_ms;       /* 0: no deadline */
    bool has_timer;
    bool is_done;
    pthread_t timer;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

/* Milliseconds of a clock that only goes forward. */
double umdi_now_ms(void);

/* To be followed by umdi_control_end, also where it fails. */
umd_status umdi_control_begin(umdi_control *control, const umdi_ort *ort, const umd_call *call);
void umdi_control_end(umdi_control *control);

/* Whether the call may go on; `control` is a umdi_control. */
umd_status umdi_control_check(void *control);

#endif
