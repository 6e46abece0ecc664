#if defined(__linux__)
#define _GNU_SOURCE
#include <unistd.h>
#endif

#include "qcompiler/cpu.h"

#include <stddef.h>

static const char *const feature_names[QC_CPU_FEATURE_COUNT] = {
    [QC_CPU_AVX2] = "avx2",
    [QC_CPU_FMA] = "fma",
    [QC_CPU_AVX512F] = "avx512f",
    [QC_CPU_AVX512BW] = "avx512bw",
    [QC_CPU_AVX512VL] = "avx512vl",
    [QC_CPU_AVX512_VNNI] = "avx512-vnni",
    [QC_CPU_AVX_VNNI] = "avx-vnni",
    [QC_CPU_AVX512_VBMI] = "avx512-vbmi",
    [QC_CPU_AVX512_VPOPCNTDQ] = "avx512-vpopcntdq",
    [QC_CPU_AMX_TILE] = "amx-tile",
    [QC_CPU_AMX_INT8] = "amx-int8",
    [QC_CPU_NEON_DOTPROD] = "neon-dotprod",
    [QC_CPU_NEON_I8MM] = "neon-i8mm",
};

const char *qc_cpu_feature_name(unsigned feature)
{
    return feature < QC_CPU_FEATURE_COUNT ? feature_names[feature] : NULL;
}

#if defined(__x86_64__)

#include <cpuid.h>

/* Register sets that XCR0 says the operating system saves (Intel SDM volume 1, chapter 13). */
#define XCR0_AVX 0x6u
#define XCR0_AVX512 0xe6u
#define XCR0_AMX 0x60000u

struct cpuid_leaf {
    unsigned eax, ebx, ecx, edx;
};

static struct cpuid_leaf cpuid(unsigned leaf, unsigned subleaf)
{
    struct cpuid_leaf r = {0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx))
        return (struct cpuid_leaf){0, 0, 0, 0};
    return r;
}

static uint64_t saved_register_sets(struct cpuid_leaf basic)
{
    const unsigned osxsave = 1u << 27;
    uint32_t low, high;
    if (!(basic.ecx & osxsave))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

static uint64_t bit_if(unsigned reg, unsigned bit, enum qc_cpu_feature feature)
{
    return (uint64_t)((reg >> bit) & 1u) << feature;
}

uint64_t qc_cpu_features(void)
{
    const struct cpuid_leaf basic = cpuid(1, 0), extended = cpuid(7, 0);
    const struct cpuid_leaf extended_1 = extended.eax >= 1 ? cpuid(7, 1) : (struct cpuid_leaf){0, 0, 0, 0};
    const uint64_t saved = saved_register_sets(basic);
    uint64_t features = 0;
    if ((saved & XCR0_AVX) == XCR0_AVX) {
        features |= bit_if(extended.ebx, 5, QC_CPU_AVX2);
        features |= bit_if(basic.ecx, 12, QC_CPU_FMA);
        features |= bit_if(extended_1.eax, 4, QC_CPU_AVX_VNNI);
    }
    if ((saved & XCR0_AVX512) == XCR0_AVX512) {
        features |= bit_if(extended.ebx, 16, QC_CPU_AVX512F);
        features |= bit_if(extended.ebx, 30, QC_CPU_AVX512BW);
        features |= bit_if(extended.ebx, 31, QC_CPU_AVX512VL);
        features |= bit_if(extended.ecx, 11, QC_CPU_AVX512_VNNI);
        features |= bit_if(extended.ecx, 1, QC_CPU_AVX512_VBMI);
        features |= bit_if(extended.ecx, 14, QC_CPU_AVX512_VPOPCNTDQ);
    }
    if ((saved & XCR0_AMX) == XCR0_AMX) {
        features |= bit_if(extended.edx, 24, QC_CPU_AMX_TILE);
        features |= bit_if(extended.edx, 25, QC_CPU_AMX_INT8);
    }
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

#define HWCAP_ASIMDDP_BIT 20
#define HWCAP2_I8MM_BIT 13

uint64_t qc_cpu_features(void)
{
    const uint64_t dotprod = (getauxval(AT_HWCAP) >> HWCAP_ASIMDDP_BIT) & 1u;
    const uint64_t i8mm = (getauxval(AT_HWCAP2) >> HWCAP2_I8MM_BIT) & 1u;
    return dotprod << QC_CPU_NEON_DOTPROD | i8mm << QC_CPU_NEON_I8MM;
}

#else

uint64_t qc_cpu_features(void)
{
    return 0;
}

#endif

#if defined(__x86_64__) && defined(__linux__)

#include <sys/syscall.h>

/* Linux Documentation/arch/x86/xstate.rst: permission for the dynamically enabled state component 18, the tile data. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

int qc_request_amx(void)
{
    const uint64_t needed = (uint64_t)1 << QC_CPU_AMX_TILE | (uint64_t)1 << QC_CPU_AMX_INT8;
    if ((qc_cpu_features() & needed) != needed)
        return QC_AMX_ABSENT;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? QC_AMX_GRANTED : QC_AMX_REFUSED;
}

#else

int qc_request_amx(void)
{
    return QC_AMX_ABSENT;
}

#endif
