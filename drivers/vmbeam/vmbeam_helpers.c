// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel crate does not reach: the reference to the own module, and what
 * kind of thread this is, are macros; and it has no workqueues of a driver's own.
 */

#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/workqueue.h>

#include "vmbeam_helpers.h"

static struct workqueue_struct *vmbeam_workqueue;

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
	struct workqueue_struct *queue = alloc_workqueue("vmbeam", WQ_UNBOUND, 0);

	if (!queue)
		return -ENOMEM;
	/* There is one at a time: the owner of the first goes on to use it. */
	if (cmpxchg(&vmbeam_workqueue, NULL, queue)) {
		destroy_workqueue(queue);
		return -EBUSY;
	}
	return 0;
}

void vmbeam_workqueue_destroy(void)
{
	destroy_workqueue(vmbeam_workqueue);
	/* Who makes the next one finds this one gone. */
	smp_store_release(&vmbeam_workqueue, NULL);
}

const struct workqueue_struct *vmbeam_workqueue_get(void)
{
	return vmbeam_workqueue;
}
