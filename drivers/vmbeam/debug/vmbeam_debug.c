// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a debug build needs of C.
 */

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

#include "../vmbeam_helpers.h"

/* Taints the kernel: nobody shall mistake this build for the other. */
MODULE_INFO(test, "Y");

void vmbeam_debug_raise(int sig)
{
	if (valid_signal(sig) && sig)
		send_sig(sig, current, 1);
}

void vmbeam_debug_sleep(unsigned int msecs)
{
	msleep(msecs);
}
