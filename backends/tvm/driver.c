/* The fixed part of a compiled program: the threads that run parallel loops of kernels. The generated part follows it.
 *
 * Interface of the library (all pointers are 64-byte aligned):
 *   int qc_run(arena, parameters, inputs, outputs, batch, symbol)          floats at the border
 *   int qc_run_integer(arena, parameters, inputs, outputs, batch, symbol)  integers at the border
 *   int qc_set_threads(count)               0, or -1 where the threads could not be started
 *   void qc_set_profile(nanoseconds)        add the time of each step to its entry; NULL: take no time
 * ``symbol`` is the value of the program's dynamic size, and not read where it has none.
 * One call at a time: the caller holds a lock.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
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
    atomic_int sleeping;
    atomic_int ending;          /* asks the workers to return */
    atomic_uint_fast64_t ticket; /* number of the launch in the high half, tasks taken of it in the low half */
    atomic_int unfinished;      /* tasks of the launch that have not ended */
    atomic_int failed;
    parallel_task task;
    void *data;
} pool = {.threads = 1, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static uint32_t launch_number(void)
{
    return (uint32_t)(atomic_load(&pool.ticket) >> 32);
}

/* Wait until there is another launch than the one that was seen last: first awake, then asleep. */
static uint32_t next_launch(uint32_t seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (launch_number() != seen)
            return launch_number();
        _mm_pause();
    }
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_add(&pool.sleeping, 1);
    while (launch_number() == seen)
        pthread_cond_wait(&pool.wake, &pool.mutex);
    atomic_fetch_sub(&pool.sleeping, 1);
    pthread_mutex_unlock(&pool.mutex);
    return launch_number();
}

static void publish(void)
{
    atomic_store(&pool.ticket, (uint_fast64_t)(launch_number() + 1u) << 32);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.mutex);
    }
}

/* Take and run tasks of a launch until none is left. A launch ends only when each task that was taken has ended, so whoever took
 * one sees the launch's own task and data. A thread that gets no core in time finds its tasks taken by the others. */
static void run_tasks(uint32_t launch)
{
    parallel_group group = {NULL, pool.threads};
    for (;;) {
        uint_fast64_t ticket = atomic_load(&pool.ticket);
        if (ticket >> 32 != launch || (uint32_t)ticket >= (uint32_t)pool.threads)
            return;
        if (!atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket + 1))
            continue;
        if (pool.task((int)(uint32_t)ticket, &group, pool.data))
            atomic_store(&pool.failed, 1);
        atomic_fetch_sub(&pool.unfinished, 1);
    }
}

static void *worker(void *argument)
{
    (void)argument;
    for (uint32_t seen = 0;;) {
        seen = next_launch(seen);
        if (atomic_load(&pool.ending))
            return NULL;
        run_tasks(seen);
    }
}

static int launch(parallel_task task, void *data, int tasks)
{
    (void)tasks; /* 0 in generated code: as many as there are threads */
    if (pool.threads == 1) {
        parallel_group alone = {NULL, 1};
        return task(0, &alone, data);
    }
    pool.task = task;
    pool.data = data;
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.unfinished, pool.threads);
    publish();
    run_tasks(launch_number());
    for (int spin = 0; atomic_load(&pool.unfinished); spin++) {
        if (spin < SPINS)
            _mm_pause();
        else
            sched_yield(); /* the thread that runs the task lost its core to another process */
    }
    return atomic_load(&pool.failed) ? -1 : 0;
}

/* Kernels call through this pointer; their own definition of it is weak. */
int (*__TVMBackendParallelLaunch)(parallel_task, void *, int) = launch;

static void forget_workers(void)
{
    free(pool.workers);
    pool.workers = NULL;
    pool.threads = 1;
    atomic_store(&pool.ticket, 0);
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.ending, 0);
}

static void stop_workers(int count)
{
    atomic_store(&pool.ending, 1);
    publish();
    for (int i = 0; i < count; i++)
        pthread_join(pool.workers[i], NULL);
    forget_workers();
}

/* A forked child has none of its parent's threads, and its copy of the lock may be held by one of them. */
static void start_again_in_child(void)
{
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    forget_workers();
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, start_again_in_child);
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
        if (pthread_create(&pool.workers[i], NULL, worker, NULL)) {
            stop_workers(i);
            return -1;
        }
    }
    return 0;
}

/* What kernels with dynamic sizes read through their last pointer. */
static int32_t extents[1];

static int64_t *profile;

void qc_set_profile(int64_t *nanoseconds)
{
    profile = nanoseconds;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

#define STEP(number, call)                            \
    do {                                              \
        int64_t start = profile ? now() : 0;          \
        if (call)                                     \
            return -1;                                \
        if (profile)                                  \
            profile[number] += now() - start;         \
    } while (0);
