/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The extra ioctl of a driver that was built with VMBEAM_DEBUG=y. For the
 * driver's own tests: not part of the interface, and may change at any time.
 */
#ifndef _VMBEAM_DEBUG_H
#define _VMBEAM_DEBUG_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * enum vmbeam_debug_op - what to do
 * @VMBEAM_DEBUG_CREATE: make a domain of @nr frames with the number @domid, which
 *	no domain has now, or any if that is 0; out: @domid. @value: 0 for one that
 *	can swap, or the errno (negative) that the hypervisor has for it
 * @VMBEAM_DEBUG_DESTROY: take @domid away
 * @VMBEAM_DEBUG_REFUSE: from now on swaps with @domid fail with @value, or no
 *	longer if that is 0
 * @VMBEAM_DEBUG_STATUS: frames @first to @first + @nr of @domid are refused with
 *	@value, or no longer if that is 0. A positive value: with -@value, until the
 *	hypervisor is asked to have mappings in stock given up
 * @VMBEAM_DEBUG_WRITE: give these frames the contents at @ptr, a __u64 each
 * @VMBEAM_DEBUG_READ: copy their contents to @ptr
 * @VMBEAM_DEBUG_FAIL_ALLOC: let the @nr-th allocation from now on fail, none if
 *	0; out: @nr: how many were left until then of the previous request
 * @VMBEAM_DEBUG_FAIL_CALL: at the @nr-th hypercall from now on, let only @first
 *	of its runs be dealt with and let it return @value; none if @nr is 0. Out:
 *	as for VMBEAM_DEBUG_FAIL_ALLOC. @domid 1: claim to have dealt with more pairs
 *	than there were; 2: with all that there were
 * @VMBEAM_DEBUG_SIGNAL: after the @nr-th hypercall from now on, send signal
 *	@value to the caller. Out: as for VMBEAM_DEBUG_FAIL_ALLOC
 * @VMBEAM_DEBUG_SLOW: each hypercall takes @nr milliseconds longer
 * @VMBEAM_DEBUG_MODEL: out: @value: 1 when there is no hypervisor that implements
 *	the swap, so that what is swapped is a model of one; otherwise 0
 *
 * @VMBEAM_DEBUG_DEPOPULATE: frames @first to @first + @nr of @domid are
 *	populate-on-demand from now on, and their memory is gone. They read as zeroes;
 *	VMBEAM_DEBUG_WRITE populates them
 * @VMBEAM_DEBUG_LIMIT: @domid may have @nr pages at most
 * @VMBEAM_DEBUG_PAGES: out: @nr: pages that @domid has; @first: frames that are
 *	populate-on-demand
 * @VMBEAM_DEBUG_MACHINE: copy the numbers of the machine frames behind these frames
 *	to @ptr, a __u64 each; 0 for populate-on-demand
 * @VMBEAM_DEBUG_RESERVE: from now on the model has @nr pages for domains that give
 *	memory away; each frame that goes over alone takes one. With none left such
 *	pairs are refused with -ENOMEM, but for those that are undone. Ends with the
 *	last domain
 * @VMBEAM_DEBUG_HOLD: let the @nr-th hypercall from now on wait, for some 10 s at most, until
 *	this is called again; none if 0. Out: as for VMBEAM_DEBUG_FAIL_ALLOC
 * @VMBEAM_DEBUG_HELD: out: @value: 1 while a hypercall waits; otherwise 0
 *
 * The operations up to VMBEAM_DEBUG_READ, and those from VMBEAM_DEBUG_DEPOPULATE
 * to VMBEAM_DEBUG_RESERVE, fail with EOPNOTSUPP when there is a hypervisor.
 */
enum vmbeam_debug_op {
	VMBEAM_DEBUG_CREATE = 0,
	VMBEAM_DEBUG_DESTROY = 1,
	VMBEAM_DEBUG_REFUSE = 2,
	VMBEAM_DEBUG_STATUS = 3,
	VMBEAM_DEBUG_WRITE = 4,
	VMBEAM_DEBUG_READ = 5,
	VMBEAM_DEBUG_FAIL_ALLOC = 6,
	VMBEAM_DEBUG_FAIL_CALL = 7,
	VMBEAM_DEBUG_SIGNAL = 8,
	VMBEAM_DEBUG_SLOW = 9,
	VMBEAM_DEBUG_MODEL = 10,
	VMBEAM_DEBUG_DEPOPULATE = 11,
	VMBEAM_DEBUG_LIMIT = 12,
	VMBEAM_DEBUG_PAGES = 13,
	VMBEAM_DEBUG_MACHINE = 14,
	VMBEAM_DEBUG_RESERVE = 15,
	VMBEAM_DEBUG_HOLD = 16,
	VMBEAM_DEBUG_HELD = 17,
};

/**
 * struct vmbeam_debug - ioctl(VMBEAM_IOCTL_DEBUG)
 * @op: enum vmbeam_debug_op
 * @domid: see there
 * @value: see there
 * @reserved: must be 0
 * @first: see there
 * @nr: see there
 * @ptr: see there
 */
struct vmbeam_debug {
	__u32 op;
	__u32 domid;
	__s32 value;
	__u32 reserved;
	__aligned_u64 first;
	__aligned_u64 nr;
	__aligned_u64 ptr;
};

#define VMBEAM_IOCTL_DEBUG	_IOWR(0xBC, 0, struct vmbeam_debug)

#endif /* _VMBEAM_DEBUG_H */
