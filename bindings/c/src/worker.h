/* A piece of work beside the caller's own, in a thread that ends with it. */
#ifndef UMDI_WORKER_H
#define UMDI_WORKER_H

#include <pthread.h>

#include "base.h"

#define UMDI_MESSAGE_BYTES 1024

typedef struct umdi_worker {
    umd_status (*run)(void *argument);
    void *argument;
    pthread_t thread;
    bool is_running;
    umd_status status;
    char message[UMDI_MESSAGE_BYTES]; /* what umd_last_error says in the thread */
} umdi_worker;

/* Start the work; where no thread can be had, it is done before this returns. It must not use the
 * caller's allocator or log. */
void umdi_worker_start(umdi_worker *worker, umd_status (*run)(void *argument), void *argument);

/* Wait for its end. Its status comes back, and its error becomes that of the calling thread. A
 * worker that was waited for, or is all zero, gives UMD_OK. */
umd_status umdi_worker_join(umdi_worker *worker);

#endif
