// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hypercall, which is an inline function of this architecture.
 */

#include <linux/errno.h>

#include <asm/xen/hypercall.h>
#include <xen/xen.h>

#include "vmbeam_helpers.h"

bool vmbeam_is_initial_domain(void)
{
	return xen_initial_domain();
}

int vmbeam_memory_op(unsigned int cmd, void *arg)
{
	/*
	 * Without a hypervisor the hypercall would be an undefined instruction,
	 * and in another domain than this one all it gets is a refusal.
	 */
	if (!vmbeam_is_initial_domain())
		return -EOPNOTSUPP;

	return HYPERVISOR_memory_op(cmd, arg);
}
