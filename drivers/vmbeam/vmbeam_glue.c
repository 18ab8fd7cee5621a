// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the Rust part of vmbeam cannot reach: the hypercall is an inline function
 * of this architecture, cond_resched() and the reference to the own module are
 * macros, and trace events can only be made in C. Also the proof that the
 * layouts which the Rust side asserts are those of the header.
 */

#include <linux/build_bug.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/stddef.h>

#include <asm/xen/hypercall.h>
#include <xen/xen.h>
#include <xen/xen-ops.h>

#include "include/uapi/linux/vmbeam.h"
#include "vmbeam_glue.h"
#include "xen_swap.h"

#define CREATE_TRACE_POINTS
#include "vmbeam_trace.h"

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

void vmbeam_pin_module(void)
{
	__module_get(THIS_MODULE);
}

void vmbeam_unpin_module(void)
{
	module_put(THIS_MODULE);
}

void vmbeam_trace_begin(unsigned int domid_a, unsigned int domid_b, bool check,
			u64 cursor, u32 runs, u32 pairs)
{
	trace_vmbeam_batch_begin(domid_a, domid_b, check, cursor, runs, pairs);
}

void vmbeam_trace_end(unsigned int domid_a, unsigned int domid_b, bool check,
		      u64 cursor, u64 done, u64 tlb_flushes, int ret)
{
	trace_vmbeam_batch_end(domid_a, domid_b, check, cursor, done,
			       tlb_flushes, ret);
}

bool vmbeam_trace_refused_enabled(void)
{
	return trace_vmbeam_refused_enabled();
}

void vmbeam_trace_refused(unsigned int domid_a, unsigned int domid_b,
			  bool check, u64 gfn_a, u64 gfn_b, int status)
{
	trace_vmbeam_refused(domid_a, domid_b, check, gfn_a, gfn_b, status);
}

void vmbeam_record_kept(u64 id, unsigned int domid_a, unsigned int domid_b,
			u64 swapped, int error)
{
	trace_vmbeam_record(id, domid_a, domid_b, swapped, error);
	pr_warn_ratelimited("vmbeam: record %llu: %llu pairs of domains %u and %u remain swapped (error %d)\n",
			    id, swapped, domid_a, domid_b, error);
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

CHECK_SIZE(vmbeam_status, 120);
CHECK_FIELD(vmbeam_status, state, 8);
CHECK_FIELD(vmbeam_status, domid_a, 12);
CHECK_FIELD(vmbeam_status, domid_b, 16);
CHECK_FIELD(vmbeam_status, activity, 20);
CHECK_FIELD(vmbeam_status, runs, 24);
CHECK_FIELD(vmbeam_status, pairs, 32);
CHECK_FIELD(vmbeam_status, cursor, 40);
CHECK_FIELD(vmbeam_status, swapped, 48);
CHECK_FIELD(vmbeam_status, refused, 56);
CHECK_FIELD(vmbeam_status, hypercalls, 64);
CHECK_FIELD(vmbeam_status, tlb_flushes, 72);
CHECK_FIELD(vmbeam_status, batches, 80);
CHECK_FIELD(vmbeam_status, p2m_writes, 88);
CHECK_FIELD(vmbeam_status, superpages, 96);
CHECK_FIELD(vmbeam_status, splits, 104);
CHECK_FIELD(vmbeam_status, merges, 112);

CHECK_SIZE(vmbeam_rollback, 32);
CHECK_FIELD(vmbeam_rollback, expected, 8);
CHECK_FIELD(vmbeam_rollback, cursor, 16);
CHECK_FIELD(vmbeam_rollback, swapped, 24);

CHECK_SIZE(vmbeam_cancel, 8);

CHECK_SIZE(vmbeam_record, 64);
CHECK_FIELD(vmbeam_record, domid_a, 8);
CHECK_FIELD(vmbeam_record, domid_b, 12);
CHECK_FIELD(vmbeam_record, state, 16);
CHECK_FIELD(vmbeam_record, error, 20);
CHECK_FIELD(vmbeam_record, runs, 24);
CHECK_FIELD(vmbeam_record, pairs, 32);
CHECK_FIELD(vmbeam_record, cursor, 40);
CHECK_FIELD(vmbeam_record, swapped, 48);
CHECK_FIELD(vmbeam_record, refused, 56);

CHECK_SIZE(vmbeam_records, 32);
CHECK_FIELD(vmbeam_records, records, 8);
CHECK_FIELD(vmbeam_records, nr, 16);
CHECK_FIELD(vmbeam_records, record_size, 20);
CHECK_FIELD(vmbeam_records, total, 24);
CHECK_FIELD(vmbeam_records, reserved, 28);

CHECK_SIZE(vmbeam_adopt, 16);
CHECK_FIELD(vmbeam_adopt, id, 8);

CHECK_SIZE(vmbeam_forget, 16);
CHECK_FIELD(vmbeam_forget, id, 8);

static_assert(VMBEAM_IOC_TYPE == 0xbb);
static_assert(_IOC_NR(VMBEAM_IOCTL_INFO) == 0);
static_assert(_IOC_NR(VMBEAM_IOCTL_OPEN) == 1);
static_assert(_IOC_NR(VMBEAM_IOCTL_ADD) == 2);
static_assert(_IOC_NR(VMBEAM_IOCTL_PREPARE) == 3);
static_assert(_IOC_NR(VMBEAM_IOCTL_COMMIT) == 4);
static_assert(_IOC_NR(VMBEAM_IOCTL_STATUS) == 5);
static_assert(_IOC_NR(VMBEAM_IOCTL_ROLLBACK) == 6);
static_assert(_IOC_NR(VMBEAM_IOCTL_CANCEL) == 7);
static_assert(_IOC_NR(VMBEAM_IOCTL_RECORDS) == 8);
static_assert(_IOC_NR(VMBEAM_IOCTL_ADOPT) == 9);
static_assert(_IOC_NR(VMBEAM_IOCTL_FORGET) == 10);

CHECK_SIZE(xen_mem_swap_run, 24);
CHECK_FIELD(xen_mem_swap_run, gfn_b, 8);
CHECK_FIELD(xen_mem_swap_run, nr, 16);
CHECK_FIELD(xen_mem_swap_run, pad, 20);

CHECK_SIZE(xen_mem_swap_frames, 80);
CHECK_FIELD(xen_mem_swap_frames, domid_b, 2);
CHECK_FIELD(xen_mem_swap_frames, flags, 4);
CHECK_FIELD(xen_mem_swap_frames, nr_runs, 8);
CHECK_FIELD(xen_mem_swap_frames, version, 12);
CHECK_FIELD(xen_mem_swap_frames, runs, 16);
CHECK_FIELD(xen_mem_swap_frames, status, 24);
CHECK_FIELD(xen_mem_swap_frames, nr_pairs, 32);
CHECK_FIELD(xen_mem_swap_frames, done, 40);
CHECK_FIELD(xen_mem_swap_frames, id_a, 48);
CHECK_FIELD(xen_mem_swap_frames, id_b, 56);
CHECK_FIELD(xen_mem_swap_frames, stats, 64);
CHECK_FIELD(xen_mem_swap_frames, nr_stats, 72);
CHECK_FIELD(xen_mem_swap_frames, pad, 76);
