/* Executes AMX int8 instructions on machines without them: a handler of SIGILL that decodes the instruction at the program counter,
 * carries it out on tiles kept per thread, and goes on behind it. So the machine code of AMX kernels can be tested anywhere.
 *
 * Covered: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED, TDPB{SS,SU,US,UU}D with the checks that
 * make them fault (Intel SDM volume 2). Any other illegal instruction keeps its meaning: the process dies of SIGILL.
 *
 *   int amx_emulator_install(void)          0, or -1 where the handler could not be installed
 *   int amx_emulator_remove(void)           0, or -1; SIGILL means again what it meant before
 *   unsigned long amx_emulator_count(void)  instructions executed so far, by all threads
 *   void amx_emulator_follow(times, counts, steps)
 *                                           from now on add up by steps and kinds; of one thread alone. NULL, NULL, 0: no longer
 * A step is over when its entry of int64_t times[steps] is not 0: what qc_set_profile of a compiled program takes, with entries of
 * steps that do not run set before. int64_t counts[steps][KINDS] has the kinds in the order of enum kind.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, MAX_ROWS = 16, MAX_BYTES = 64, CONFIGURATION = 64 };
enum { VEX3 = 0xC4, MAP_0F38 = 2 };
enum { PREFIX_NONE, PREFIX_66, PREFIX_F3, PREFIX_F2 };
/* LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED, TDPB*D */
enum kind { ILLEGAL = -1, CONFIGURE, STORE_CONFIGURATION, RELEASE, ZERO, LOAD, LOAD_STREAMED, STORE, MULTIPLY, KINDS };

struct tile {
    uint8_t rows;
    uint16_t bytes; /* in a row */
    uint8_t data[MAX_ROWS][MAX_BYTES];
};

static __thread struct {
    uint8_t configuration[CONFIGURATION]; /* palette 0: not configured */
    struct tile tiles[TILES];
} state;
static atomic_ulong executed;
static struct sigaction before;
static struct {
    const int64_t *times;
    int64_t (*counts)[KINDS];
    int steps, step;
} followed;

/* An instruction: its opcode and what its ModRM byte names. */
struct instruction {
    uint8_t opcode, prefix, reg, rm, vvvv;
    int is_memory;
    uint8_t *base; /* of the memory operand, displacement included */
    int64_t stride; /* scaled index of a SIB operand */
    int length;
};

static int64_t general_register(const ucontext_t *context, int number)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[order[number]];
}

static int64_t displacement(const uint8_t *at, int size)
{
    int32_t wide = 0;
    if (size == 1)
        return (int8_t)at[0];
    memcpy(&wide, at, (size_t)size);
    return wide;
}

/* VEX prefix of three bytes, opcode, ModRM, [SIB], [displacement]. Gives 0 for anything else. */
static int decode(const ucontext_t *context, const uint8_t *code, struct instruction *result)
{
    if (code[0] != VEX3 || (code[1] & 0x1f) != MAP_0F38 || (code[2] & 0x84) != 0) /* W = 0, 128 bits */
        return 0;
    const int extend_reg = !(code[1] & 0x80) << 3, extend_index = !(code[1] & 0x40) << 3, extend_base = !(code[1] & 0x20) << 3;
    const uint8_t modrm = code[4], mode = modrm >> 6, rm = modrm & 7;
    const uint8_t *next = code + 5;
    *result = (struct instruction){.opcode = code[3],
                                   .prefix = code[2] & 3,
                                   .reg = (uint8_t)(((modrm >> 3) & 7) | extend_reg),
                                   .rm = (uint8_t)(rm | extend_base),
                                   .vvvv = (~code[2] >> 3) & 15,
                                   .is_memory = mode != 3};
    if (result->is_memory) {
        int base = rm | extend_base, size = mode == 1 ? 1 : mode == 2 ? 4 : 0, has_base = 1;
        int64_t address = 0;
        if (rm == 4) {
            const uint8_t sib = *next++;
            const int index = ((sib >> 3) & 7) | extend_index;
            base = (sib & 7) | extend_base;
            result->stride = index == 4 ? 0 : general_register(context, index) << (sib >> 6);
        }
        if (mode == 0 && (base & 7) == 5) { /* a displacement alone: absolute with SIB, else relative to the next instruction */
            has_base = 0;
            size = 4;
            if (rm != 4)
                address = (int64_t)(intptr_t)(next + size);
        }
        if (has_base)
            address += general_register(context, base);
        result->base = (uint8_t *)(intptr_t)(address + (size ? displacement(next, size) : 0));
        next += size;
    }
    result->length = (int)(next - code);
    return 1;
}

static int load_configuration(const uint8_t *memory)
{
    static const uint8_t zeros[16];
    memset(&state, 0, sizeof state);
    if (memory[0] == 0)
        return 1;
    if (memory[0] != 1 || memcmp(memory + 2, zeros, 14) || memcmp(memory + 32, zeros, 16) || memcmp(memory + 56, zeros, 8))
        return 0;
    for (int i = 0; i < TILES; i++) {
        uint16_t bytes;
        memcpy(&bytes, memory + 16 + 2 * i, sizeof bytes);
        if (bytes > MAX_BYTES || memory[48 + i] > MAX_ROWS || !bytes != !memory[48 + i])
            return 0;
        state.tiles[i].bytes = bytes;
        state.tiles[i].rows = memory[48 + i];
    }
    memcpy(state.configuration, memory, CONFIGURATION);
    return 1;
}

static struct tile *configured(unsigned number)
{
    return state.configuration[0] && number < TILES && state.tiles[number].rows ? &state.tiles[number] : NULL;
}

static int load_tile(const struct instruction *i)
{
    struct tile *tile = configured(i->reg);
    if (!tile)
        return 0;
    memset(tile->data, 0, sizeof tile->data);
    for (int row = 0; row < tile->rows; row++)
        memcpy(tile->data[row], i->base + row * i->stride, tile->bytes);
    return 1;
}

static int store_tile(const struct instruction *i)
{
    struct tile *tile = configured(i->reg);
    if (!tile)
        return 0;
    for (int row = 0; row < tile->rows; row++)
        memcpy(i->base + row * i->stride, tile->data[row], tile->bytes);
    return 1;
}

static int32_t factor(uint8_t byte, int is_signed)
{
    return is_signed ? (int8_t)byte : byte;
}

/* sum[m][n] += a[m][4k + i] * b[k][4n + i] */
static int dot_product(const struct instruction *i)
{
    struct tile *sum = configured(i->reg), *a = configured(i->rm), *b = configured(i->vvvv);
    const int a_signed = i->prefix == PREFIX_F2 || i->prefix == PREFIX_F3, b_signed = i->prefix == PREFIX_F2 || i->prefix == PREFIX_66;
    if (!sum || !a || !b || sum == a || sum == b || a == b)
        return 0;
    if (sum->rows != a->rows || sum->bytes != b->bytes || a->bytes != 4 * b->rows || sum->bytes % 4)
        return 0;
    for (int m = 0; m < sum->rows; m++)
        for (int n = 0; n < sum->bytes / 4; n++) {
            uint32_t total;
            memcpy(&total, &sum->data[m][4 * n], sizeof total);
            for (int k = 0; k < b->rows; k++)
                for (int j = 0; j < 4; j++)
                    total += (uint32_t)(factor(a->data[m][4 * k + j], a_signed) * factor(b->data[k][4 * n + j], b_signed));
            memcpy(&sum->data[m][4 * n], &total, sizeof total);
        }
    return 1;
}

static enum kind configure(const struct instruction *i)
{
    if (i->is_memory && i->prefix == PREFIX_NONE && i->reg == 0)
        return load_configuration(i->base) ? CONFIGURE : ILLEGAL;
    if (i->is_memory && i->prefix == PREFIX_66 && i->reg == 0) {
        memcpy(i->base, state.configuration, CONFIGURATION);
        return STORE_CONFIGURATION;
    }
    if (!i->is_memory && i->prefix == PREFIX_NONE && i->reg == 0 && i->rm == 0) {
        memset(&state, 0, sizeof state);
        return RELEASE;
    }
    struct tile *tile = configured(i->reg);
    if (i->is_memory || i->prefix != PREFIX_F2 || i->rm != 0 || !tile)
        return ILLEGAL;
    memset(tile->data, 0, sizeof tile->data);
    return ZERO;
}

static enum kind execute(const struct instruction *i)
{
    switch (i->opcode) {
    case 0x49:
        return configure(i);
    case 0x4B:
        if (!i->is_memory || i->prefix == PREFIX_NONE)
            return ILLEGAL;
        if (i->prefix == PREFIX_F3)
            return store_tile(i) ? STORE : ILLEGAL;
        if (!load_tile(i))
            return ILLEGAL;
        return i->prefix == PREFIX_F2 ? LOAD : LOAD_STREAMED;
    case 0x5E:
        return !i->is_memory && dot_product(i) ? MULTIPLY : ILLEGAL;
    default:
        return ILLEGAL;
    }
}

static void tally(enum kind kind)
{
    atomic_fetch_add(&executed, 1);
    if (!followed.counts)
        return;
    while (followed.step < followed.steps - 1 && followed.times[followed.step])
        followed.step++;
    followed.counts[followed.step][kind]++;
}

static void on_illegal_instruction(int number, siginfo_t *info, void *opaque)
{
    ucontext_t *context = opaque;
    struct instruction instruction;
    enum kind kind = ILLEGAL;
    (void)info;
    if (decode(context, (const uint8_t *)(intptr_t)context->uc_mcontext.gregs[REG_RIP], &instruction))
        kind = execute(&instruction);
    if (kind != ILLEGAL) {
        context->uc_mcontext.gregs[REG_RIP] += instruction.length;
        tally(kind);
        return;
    }
    signal(number, SIG_DFL); /* the instruction is tried again and ends the process */
}

int amx_emulator_install(void)
{
    struct sigaction action = {.sa_sigaction = on_illegal_instruction, .sa_flags = SA_SIGINFO | SA_NODEFER};
    return sigaction(SIGILL, &action, &before);
}

int amx_emulator_remove(void)
{
    return sigaction(SIGILL, &before, NULL);
}

void amx_emulator_follow(const int64_t *times, int64_t *counts, int steps)
{
    followed.times = times;
    followed.counts = (int64_t(*)[KINDS])counts;
    followed.steps = steps;
    followed.step = 0;
}

unsigned long amx_emulator_count(void)
{
    return atomic_load(&executed);
}
