#define _POSIX_C_SOURCE 200809L
#include "worker.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static void *run_worker(void *argument)
{
    umdi_worker *worker = argument;
    worker->status = worker->run(worker->argument);
    if (worker->status != UMD_OK)
        snprintf(worker->message, sizeof worker->message, "%s", umd_last_error());
    return NULL;
}

void umdi_worker_start(umdi_worker *worker, umd_status (*run)(void *argument), void *argument)
{
    sigset_t all, before;
    memset(worker, 0, sizeof *worker);
    worker->run = run;
    worker->argument = argument;
    /* The program's signal handlers belong to its own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    worker->is_running = pthread_create(&worker->thread, NULL, run_worker, worker) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!worker->is_running)
        run_worker(worker);
}

umd_status umdi_worker_join(umdi_worker *worker)
{
    umd_status status;
    if (worker->is_running)
        pthread_join(worker->thread, NULL);
    worker->is_running = false;
    status = worker->status;
    worker->status = UMD_OK;
    return status == UMD_OK ? UMD_OK : umdi_fail(status, "%s", worker->message);
}
