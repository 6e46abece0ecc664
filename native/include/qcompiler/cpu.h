/* What the processor can do, and the permission that AMX needs. Plain C, thread-safe, allocates nothing. */
#ifndef QCOMPILER_CPU_H
#define QCOMPILER_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QC_API __attribute__((visibility("default")))

/* Bits of qc_cpu_features(). A bit is set only where the processor has the instructions and the operating system keeps their registers. */
enum qc_cpu_feature {
    QC_CPU_AVX2 = 0,
    QC_CPU_FMA,
    QC_CPU_AVX512F,
    QC_CPU_AVX512BW,
    QC_CPU_AVX512VL,
    QC_CPU_AVX512_VNNI,
    QC_CPU_AVX_VNNI,
    QC_CPU_AVX512_VBMI,
    QC_CPU_AVX512_VPOPCNTDQ,
    QC_CPU_AMX_TILE,
    QC_CPU_AMX_INT8,
    QC_CPU_NEON_DOTPROD,
    QC_CPU_NEON_I8MM,
    QC_CPU_FEATURE_COUNT
};

/* Set of enum qc_cpu_feature: bit number -> present. */
QC_API uint64_t qc_cpu_features(void);

/* Name of a bit ("avx512-vnni"); NULL past the last one. */
QC_API const char *qc_cpu_feature_name(unsigned feature);

enum qc_amx_request {
    QC_AMX_GRANTED = 0, /* tile instructions may be executed from now on by every thread of this process */
    QC_AMX_ABSENT = 1,  /* the processor (or the operating system) has no AMX int8 tiles */
    QC_AMX_REFUSED = 2  /* the operating system knows AMX and refused */
};

/* Linux gives the tile registers only to a process that asks. Asking again is harmless. */
QC_API int qc_request_amx(void);

#ifdef __cplusplus
}
#endif

#endif
