// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel crate does not reach: the hypercall is an inline function of this
 * architecture; the reference to the own module, and what kind of thread this is, are
 * macros; and it has no workqueues of a driver's own.
 */

#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/workqueue.h>

#include <asm/xen/hypercall.h>
#include <xen/xen.h>

#include "vmbeam_glue.h"

static struct workqueue_struct *vmbeam_workqueue;

bool vmbeam_may_work(void)
{
	return xen_initial_domain();
}

int vmbeam_memory_op(unsigned int cmd, void *arg)
{
	/*
	 * Without a hypervisor the hypercall would be an undefined instruction,
	 * and in another domain than this one all it gets is a refusal.
	 */
	if (!vmbeam_may_work())
		return -EOPNOTSUPP;

	return HYPERVISOR_memory_op(cmd, arg);
}

void vmbeam_pin_module(void)
{
	__module_get(THIS_MODULE);
}

void vmbeam_unpin_module(void)
{
	module_put(THIS_MODULE);
}

bool vmbeam_in_kthread(void)
{
	return current->flags & PF_KTHREAD;
}

int vmbeam_workqueue_create(void)
{
	vmbeam_workqueue = alloc_workqueue("vmbeam", WQ_UNBOUND, 0);

	return vmbeam_workqueue ? 0 : -ENOMEM;
}

void vmbeam_workqueue_destroy(void)
{
	destroy_workqueue(vmbeam_workqueue);
}

const struct workqueue_struct *vmbeam_workqueue_get(void)
{
	return vmbeam_workqueue;
}

#ifdef VMBEAM_DEBUG
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
#endif
