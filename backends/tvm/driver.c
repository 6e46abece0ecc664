/* The fixed part of a compiled program: the threads that run parallel loops of kernels. The generated part follows it.
 *
 * Interface of the library (all pointers are 64-byte aligned):
 *   int qc_run(arena, parameters, inputs, outputs, batch)           floats at the border
 *   int qc_run_integer(arena, parameters, inputs, outputs, batch)   integers at the border
 *   int qc_set_threads(count)                                       0, or -1 where the threads could not be started
 * One call at a time: the caller holds a lock.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <immintrin.h>

#define SPINS 20000 /* about 0.5 ms: longer than any gap between two kernels of a run */

/* The interface that TVM's generated code expects of a thread pool (tvm/runtime/c_backend_api.h). */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} parallel_group;
typedef int (*parallel_task)(int task, parallel_group *group, void *data);

static struct {
    int threads;
    pthread_t *workers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_uint generation; /* counts launches; a worker runs once for each */
    atomic_int pending;     /* workers that have not finished the current launch */
    atomic_int failed;
    atomic_int sleeping;
    parallel_task task;     /* NULL asks the workers to end */
    void *data;
} pool = {.threads = 1, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static unsigned wait_for_launch(unsigned seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        unsigned generation = atomic_load_explicit(&pool.generation, memory_order_acquire);
        if (generation != seen)
            return generation;
        _mm_pause();
    }
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_add(&pool.sleeping, 1);
    while (atomic_load(&pool.generation) == seen)
        pthread_cond_wait(&pool.wake, &pool.mutex);
    atomic_fetch_sub(&pool.sleeping, 1);
    pthread_mutex_unlock(&pool.mutex);
    return atomic_load(&pool.generation);
}

static void publish(parallel_task task, void *data)
{
    pool.task = task;
    pool.data = data;
    atomic_store(&pool.pending, pool.threads - 1);
    atomic_fetch_add(&pool.generation, 1);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.mutex);
    }
}

static void *worker(void *argument)
{
    int number = (int)(intptr_t)argument;
    for (unsigned seen = 0;;) {
        seen = wait_for_launch(seen);
        if (!pool.task)
            return NULL;
        parallel_group group = {NULL, pool.threads};
        if (pool.task(number, &group, pool.data))
            atomic_store(&pool.failed, 1);
        atomic_fetch_sub_explicit(&pool.pending, 1, memory_order_release);
    }
}

static int launch(parallel_task task, void *data, int tasks)
{
    (void)tasks; /* 0 in generated code: as many as there are threads */
    parallel_group group = {NULL, pool.threads};
    if (pool.threads == 1)
        return task(0, &group, data);
    atomic_store(&pool.failed, 0);
    publish(task, data);
    int status = task(0, &group, data);
    for (int spin = 0; atomic_load_explicit(&pool.pending, memory_order_acquire); spin++) {
        if (spin < SPINS)
            _mm_pause();
        else
            sched_yield(); /* a worker lost its core to another process */
    }
    return status || atomic_load(&pool.failed) ? -1 : 0;
}

/* Kernels call through this pointer; their own definition of it is weak. */
int (*__TVMBackendParallelLaunch)(parallel_task, void *, int) = launch;

static void stop_workers(int count)
{
    publish(NULL, NULL);
    for (int i = 0; i < count; i++)
        pthread_join(pool.workers[i], NULL);
    free(pool.workers);
    pool.workers = NULL;
    pool.threads = 1;
    atomic_store(&pool.generation, 0);
}

/* A forked child has none of its parent's threads. */
static void forget_workers(void)
{
    pool.workers = NULL;
    pool.threads = 1;
    atomic_store(&pool.generation, 0);
    atomic_store(&pool.sleeping, 0);
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, forget_workers);
}

int qc_set_threads(int count)
{
    if (count < 1)
        return -1;
    if (pool.workers)
        stop_workers(pool.threads - 1);
    if (count == 1)
        return 0;
    pool.workers = malloc((size_t)(count - 1) * sizeof *pool.workers);
    if (!pool.workers)
        return -1;
    pool.threads = count;
    for (int i = 0; i < count - 1; i++) {
        if (pthread_create(&pool.workers[i], NULL, worker, (void *)(intptr_t)(i + 1))) {
            stop_workers(i);
            return -1;
        }
    }
    return 0;
}
