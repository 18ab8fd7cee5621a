// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the Rust part of vmbeam cannot reach: the hypercall is an inline function
 * of this architecture, and cond_resched() a macro. Also the proof that the
 * layouts which the Rust side asserts are those of the header.
 */

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/sched.h>
#include <linux/stddef.h>

#include <asm/xen/hypercall.h>
#include <xen/xen.h>
#include <xen/xen-ops.h>

#include "include/uapi/linux/vmbeam.h"
#include "vmbeam_glue.h"
#include "xen_swap.h"

int vmbeam_memory_op(unsigned int cmd, void *arg)
{
	int ret;

	/* Without a hypervisor the hypercall would be an undefined instruction. */
	if (!xen_domain())
		return -EOPNOTSUPP;

	xen_preemptible_hcall_begin();
	ret = HYPERVISOR_memory_op(cmd, arg);
	xen_preemptible_hcall_end();

	return ret;
}

void vmbeam_cond_resched(void)
{
	cond_resched();
}

#define CHECK_SIZE(type, size)						\
	static_assert(sizeof(struct type) == (size))
#define CHECK_FIELD(type, field, offset)				\
	static_assert(offsetof(struct type, field) == (offset))

CHECK_SIZE(vmbeam_info, 40);
CHECK_FIELD(vmbeam_info, features, 8);
CHECK_FIELD(vmbeam_info, max_add_runs, 16);
CHECK_FIELD(vmbeam_info, batch_pairs, 20);
CHECK_FIELD(vmbeam_info, max_runs, 24);
CHECK_FIELD(vmbeam_info, max_pairs, 32);

CHECK_SIZE(vmbeam_open, 16);
CHECK_FIELD(vmbeam_open, domid_a, 8);
CHECK_FIELD(vmbeam_open, domid_b, 12);

CHECK_SIZE(vmbeam_run, 24);
CHECK_FIELD(vmbeam_run, gfn_b, 8);
CHECK_FIELD(vmbeam_run, nr, 16);
CHECK_FIELD(vmbeam_run, reserved, 20);

CHECK_SIZE(vmbeam_add, 40);
CHECK_FIELD(vmbeam_add, runs, 8);
CHECK_FIELD(vmbeam_add, nr_runs, 16);
CHECK_FIELD(vmbeam_add, bad_run, 20);
CHECK_FIELD(vmbeam_add, total_runs, 24);
CHECK_FIELD(vmbeam_add, total_pairs, 32);

CHECK_SIZE(vmbeam_prepare, 48);
CHECK_FIELD(vmbeam_prepare, first, 8);
CHECK_FIELD(vmbeam_prepare, nr, 16);
CHECK_FIELD(vmbeam_prepare, status, 24);
CHECK_FIELD(vmbeam_prepare, done, 32);
CHECK_FIELD(vmbeam_prepare, refused, 40);

CHECK_SIZE(vmbeam_commit, 56);
CHECK_FIELD(vmbeam_commit, expected, 8);
CHECK_FIELD(vmbeam_commit, nr, 16);
CHECK_FIELD(vmbeam_commit, status, 24);
CHECK_FIELD(vmbeam_commit, cursor, 32);
CHECK_FIELD(vmbeam_commit, swapped, 40);
CHECK_FIELD(vmbeam_commit, refused, 48);

CHECK_SIZE(vmbeam_status, 80);
CHECK_FIELD(vmbeam_status, state, 8);
CHECK_FIELD(vmbeam_status, domid_a, 12);
CHECK_FIELD(vmbeam_status, domid_b, 16);
CHECK_FIELD(vmbeam_status, runs, 24);
CHECK_FIELD(vmbeam_status, pairs, 32);
CHECK_FIELD(vmbeam_status, cursor, 40);
CHECK_FIELD(vmbeam_status, swapped, 48);
CHECK_FIELD(vmbeam_status, refused, 56);
CHECK_FIELD(vmbeam_status, hypercalls, 64);
CHECK_FIELD(vmbeam_status, tlb_flushes, 72);

CHECK_SIZE(vmbeam_rollback, 32);
CHECK_FIELD(vmbeam_rollback, expected, 8);
CHECK_FIELD(vmbeam_rollback, cursor, 16);
CHECK_FIELD(vmbeam_rollback, swapped, 24);

static_assert(VMBEAM_IOC_TYPE == 0xbb);
static_assert(_IOC_NR(VMBEAM_IOCTL_INFO) == 0);
static_assert(_IOC_NR(VMBEAM_IOCTL_OPEN) == 1);
static_assert(_IOC_NR(VMBEAM_IOCTL_ADD) == 2);
static_assert(_IOC_NR(VMBEAM_IOCTL_PREPARE) == 3);
static_assert(_IOC_NR(VMBEAM_IOCTL_COMMIT) == 4);
static_assert(_IOC_NR(VMBEAM_IOCTL_STATUS) == 5);
static_assert(_IOC_NR(VMBEAM_IOCTL_ROLLBACK) == 6);

CHECK_SIZE(xen_mem_swap_run, 24);
CHECK_FIELD(xen_mem_swap_run, gfn_b, 8);
CHECK_FIELD(xen_mem_swap_run, nr, 16);
CHECK_FIELD(xen_mem_swap_run, pad, 20);

CHECK_SIZE(xen_mem_swap_frames, 72);
CHECK_FIELD(xen_mem_swap_frames, domid_b, 2);
CHECK_FIELD(xen_mem_swap_frames, flags, 4);
CHECK_FIELD(xen_mem_swap_frames, nr_runs, 8);
CHECK_FIELD(xen_mem_swap_frames, pad, 12);
CHECK_FIELD(xen_mem_swap_frames, runs, 16);
CHECK_FIELD(xen_mem_swap_frames, status, 24);
CHECK_FIELD(xen_mem_swap_frames, nr_pairs, 32);
CHECK_FIELD(xen_mem_swap_frames, done, 40);
CHECK_FIELD(xen_mem_swap_frames, swapped, 48);
CHECK_FIELD(xen_mem_swap_frames, tlb_flushes, 56);
CHECK_FIELD(xen_mem_swap_frames, batches, 64);
