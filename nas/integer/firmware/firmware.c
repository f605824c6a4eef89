/* Classifies the samples of samples.h: for each its class, the instructions or cycles that it took,
   and the levels of all outputs. Runs on a PC, and on a Cortex-M by semihosting: on a board with a
   debugger, or in QEMU. Replace main() by what reads your sensor. */

#include <stdio.h>
#include "network.h"
#include "samples.h"

#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'

/* What a Cortex-M needs before main(): where the stack is, where to begin, what counts the wraps of
   the 24-bit timer. A vendor's startup file takes the place of all of this. */
#define REGISTER(address) (*(volatile uint32_t *)(address))
extern void initialise_monitor_handles(void);
extern int __stack, __bss_start__, __bss_end__;
extern void _exit(int status);
int main(void);
static volatile uint32_t wraps;

static void finish(int status)
{
    fflush(stdout);
    _exit(status);
}

static void timer_wrapped(void) { wraps++; }

static void fault(void)
{
    puts("fault");
    finish(1);
}

void reset(void)
{
    REGISTER(0xE000ED88) |= 0xF << 20; /* the floating point and vector unit, where there is one */
    __asm__ volatile("dsb\n isb");
    for (int *word = &__bss_start__; word < &__bss_end__; word++)
        *word = 0;
    initialise_monitor_handles();
    finish(main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &__stack, reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault,
    fault, fault, timer_wrapped,
};

static void start_timer(void)
{
    REGISTER(0xE000E014) = 0xFFFFFF;
    REGISTER(0xE000E018) = 0;
    REGISTER(0xE000E010) = 7; /* on, with its interrupt, at the clock of the processor */
    while (REGISTER(0xE000E018) == 0) {
    }
}

static uint64_t ticks(void)
{
    uint32_t before, value;
    do { /* until it does not wrap in between */
        before = wraps;
        value = REGISTER(0xE000E018);
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFF - value);
}

#else

static void start_timer(void) {}
static uint64_t ticks(void) { return 0; }

#endif

static int8_t output[NETWORK_OUTPUT_SIZE];

int main(void)
{
    start_timer();
    for (int i = 0; i < SAMPLES; i++) {
        const uint64_t begin = ticks();
        const int best = network_run(samples[i], output);
        const uint64_t took = ticks() - begin;
        printf("%d: class %d (%s), ticks %lu, levels", i, best, classes[best], (unsigned long)took);
        for (int k = 0; k < NETWORK_OUTPUT_SIZE; k++)
            printf(" %d", output[k]);
        printf("\n");
    }
    return 0;
}
