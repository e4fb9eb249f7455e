/* Runs a generated policy over rows from standard input, for supple verify.

   replay info              names, contract and normaliser, a line each
   replay rows              rows in, rows out, native float32:
                              in:  mode, memory, observation
                                   (mode 0: go on, 1: reset first, 2: take the row's memory)
                              out: status, action, command, memory
   replay latency REPEATS   rows in; per repeat and row, microseconds of one step (float64) out

   The policy may come from anywhere: on Linux the kernel refuses it every system call but those for
   reading, writing, the clock, memory and the end.
*/
#define _DEFAULT_SOURCE
#define _POSIX_C_SOURCE 199309L
#include "policy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifdef __x86_64__
#define MACHINE AUDIT_ARCH_X86_64
#else
#define MACHINE AUDIT_ARCH_AARCH64
#endif
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF_NOT(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)
#define END(action) BPF_STMT(BPF_RET | BPF_K, action)
#define REFUSE (SECCOMP_RET_ERRNO | EPERM)
#define ALLOW(call) IF_NOT(call, 1), END(SECCOMP_RET_ALLOW)

static void lock_up(void)
{
    struct sock_filter rules[] = {
        LOAD(arch), IF_NOT(MACHINE, 2), LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0),
        END(REFUSE),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_lseek), ALLOW(SYS_fstat),
        ALLOW(SYS_newfstatat), ALLOW(SYS_clock_gettime), ALLOW(SYS_brk), ALLOW(SYS_mmap),
        ALLOW(SYS_munmap), ALLOW(SYS_exit), ALLOW(SYS_exit_group), ALLOW(SYS_rt_sigreturn),
        END(REFUSE),
    };
    const struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};
    /* A kernel without filters refuses: then the words a policy may hold are all that guards. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
        (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
#else
static void lock_up(void) {}
#endif

enum {
    OBSERVATIONS = SUPPLE_POLICY_OBSERVATIONS,
    ACTIONS = SUPPLE_POLICY_ACTIONS,
    COMMANDS = SUPPLE_POLICY_COMMANDS,
    MEMORY = SUPPLE_POLICY_MEMORY,
    ROW = 1 + MEMORY + OBSERVATIONS
};

static void set_memory(supple_policy_state *state, const float *memory)
{
#if SUPPLE_POLICY_MEMORY
    memcpy(state->memory, memory, sizeof state->memory);
#else
    (void)state, (void)memory;
#endif
}

static int info(void)
{
    printf("contract %s\n", supple_policy_contract);
    for (int i = 0; i < (int)(sizeof supple_policy_action_names / sizeof(char *)); ++i)
        printf("action %s\n", supple_policy_action_names[i]);
    for (int i = 0; i < OBSERVATIONS; ++i)
        printf("observation %.9g %.9g %s\n", (double)supple_policy_mean[i],
               (double)supple_policy_denominator[i], supple_policy_observation_names[i]);
    return 0;
}

static void step(supple_policy_state *state, const float *row, float *status, float *action,
                 float *command)
{
    if (row[0] == 1.0f) supple_policy_reset(state);
    if (row[0] == 2.0f) set_memory(state, row + 1);
    *status = (float)supple_policy_step(state, row + 1 + MEMORY, action, command);
}

static int rows(void)
{
    supple_policy_state state;
    float row[ROW], status, action[ACTIONS], command[COMMANDS];
    supple_policy_reset(&state);
    while (fread(row, sizeof row, 1, stdin) == 1) {
        step(&state, row, &status, action, command);
        fwrite(&status, sizeof status, 1, stdout);
        fwrite(action, sizeof action, 1, stdout);
        fwrite(command, sizeof command, 1, stdout);
#if SUPPLE_POLICY_MEMORY
        fwrite(state.memory, sizeof state.memory, 1, stdout);
#endif
    }
    return 0;
}

static int latency(int repeats)
{
    static float row[4096][ROW];
    supple_policy_state state;
    float status, action[ACTIONS], command[COMMANDS];
    const int count = (int)fread(row, sizeof row[0], 4096, stdin);
    supple_policy_reset(&state);
    for (int repeat = 0; repeat <= repeats; ++repeat)
        for (int i = 0; i < count; ++i) {
            struct timespec before, after;
            clock_gettime(CLOCK_MONOTONIC, &before);
            step(&state, row[i], &status, action, command);
            clock_gettime(CLOCK_MONOTONIC, &after);
            const double us = (double)(after.tv_sec - before.tv_sec) * 1e6 +
                              (double)(after.tv_nsec - before.tv_nsec) * 1e-3;
            /* The first repeat warms up. */
            if (repeat > 0) fwrite(&us, sizeof us, 1, stdout);
        }
    return 0;
}

int main(int argc, char **argv)
{
    lock_up();
    if (argc == 2 && strcmp(argv[1], "info") == 0) return info();
    if (argc == 2 && strcmp(argv[1], "rows") == 0) return rows();
    if (argc == 3 && strcmp(argv[1], "latency") == 0) return latency(atoi(argv[2]));
    fprintf(stderr, "usage: replay info | rows | latency REPEATS\n");
    return 2;
}
