/* The bare machine: vectors, memory, one serial port, and the end. Neither newlib's start-up nor semihosting is used: the
   emulated code has no way to the host but the bytes that it sends. The end is a reset, which qemu's -no-reboot makes the end of
   the emulation. */
#include "machine.h"

#include <string.h>

extern uint32_t stored, data_start, data_end, bss_start, bss_end, stack_top;

int main(void);

/* CMSDK APB UART 0 */
#define UART ((volatile uint32_t *)0x40004000u)
#define UART_DATA UART[0]
#define UART_STATE UART[1]
#define UART_CTRL UART[2]
#define UART_BAUDDIV UART[4]
#define TRANSMIT_FULL 1u
#define TRANSMIT_ENABLE 1u

/* application interrupt and reset control register: ARMv7-M architecture, B3.2.6 */
#define AIRCR (*(volatile uint32_t *)0xE000ED0Cu)
#define AIRCR_RESET 0x05FA0004u

void machine_send(const void *bytes, uint32_t count)
{
    const uint8_t *next = bytes;

    UART_BAUDDIV = 16;
    UART_CTRL = TRANSMIT_ENABLE;
    while (count--) {
        while (UART_STATE & TRANSMIT_FULL)
            ;
        UART_DATA = *next++;
    }
}

void machine_end(void)
{
    __asm__ volatile("dsb" ::: "memory");
    AIRCR = AIRCR_RESET;
    for (;;)
        ;
}

void reset(void)
{
    memcpy(&data_start, &stored, (size_t)((uint8_t *)&data_end - (uint8_t *)&data_start));
    memset(&bss_start, 0, (size_t)((uint8_t *)&bss_end - (uint8_t *)&bss_start));
    main();
    machine_end();
}

static void fault(void)
{
    machine_send("FALT", 4);
    machine_end();
}

/* what newlib's library code may refer to */
void _init(void) {}
void _fini(void) {}
int *__errno(void)
{
    static int number;
    return &number;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault, 0,
    0,          0,             0,             (void *)fault, (void *)fault, 0,             (void *)fault, (void *)fault,
};
