/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * VMBeam: exchange machine memory between two host VMs. This is version 1 of the
 * interface. From the first release on it will only be added to.
 *
 * Every structure starts with its size in bytes, has the same layout for
 * 32-bit and 64-bit callers and has no implicit padding. Structures grow at
 * their end: a caller may pass a smaller, older one, and a larger, newer one
 * as long as the part that this kernel does not know is zero. The ioctls
 * share one grammar of errors:
 *
 *  ENOTTY      unknown ioctl
 *  EBADF       the file was opened for reading only: INFO, STATUS and RECORD are
 *              all that it is good for
 *  E2BIG       the structure is larger than the kernel's and the unknown tail
 *              is not zero, or it is larger than 4096 bytes
 *  EINVAL      a known field has an impossible value, or @size is smaller than
 *              the structure was in version 1
 *  EOPNOTSUPP  a known field has a value that this kernel does not know (an
 *              unknown flag), or the hypervisor lacks the operation
 *  EFAULT      a pointer cannot be read or written
 *  EBADFD      the session is in a state that does not allow the ioctl
 *  EINTR       a signal, or another reason to leave the kernel (a debugger, a
 *              freezer), came while another thread was working on the session.
 *              An ioctl that has the session to itself gets somewhere before it
 *              looks for signals, whatever their rate, and then succeeds
 *  EIO         an answer of the hypervisor that makes no sense
 *
 * Several threads and processes may use one open file. INFO, STATUS, CANCEL and
 * RECORD are answered at once; the other ioctls work on the session one after
 * the other.
 *
 * Whoever holds a file that is bound to two domains can exchange memory of these
 * two and do nothing else. A file that is not bound yet can be bound to any two,
 * and see and take over what earlier sessions left. There is no way back to that.
 */
#ifndef _UAPI_LINUX_VMBEAM_H
#define _UAPI_LINUX_VMBEAM_H

#include <linux/const.h>
#include <linux/ioctl.h>
#include <linux/types.h>

/* Nothing else in Documentation/userspace-api/ioctl/ioctl-number.rst has it. */
#define VMBEAM_IOC_TYPE 0xBB

/**
 * enum vmbeam_state - where a session stands
 * @VMBEAM_STATE_UNBOUND: no VMBEAM_IOCTL_BIND yet
 * @VMBEAM_STATE_EMPTY: bound to two domains, no runs
 * @VMBEAM_STATE_LOADED: has runs, nothing swapped
 * @VMBEAM_STATE_COMMITTING: the pairs before the cursor have been dealt with
 * @VMBEAM_STATE_COMMITTED: every pair has been dealt with
 * @VMBEAM_STATE_ROLLING_BACK: the pairs at and after the cursor are back
 * @VMBEAM_STATE_ROLLED_BACK: every pair is where it was at first
 * @VMBEAM_STATE_ABANDONED: was bound, and VMBEAM_IOCTL_ABANDON came
 */
enum vmbeam_state {
	VMBEAM_STATE_UNBOUND = 0,
	VMBEAM_STATE_EMPTY = 1,
	VMBEAM_STATE_LOADED = 2,
	VMBEAM_STATE_COMMITTING = 3,
	VMBEAM_STATE_COMMITTED = 4,
	VMBEAM_STATE_ROLLING_BACK = 5,
	VMBEAM_STATE_ROLLED_BACK = 6,
	VMBEAM_STATE_ABANDONED = 7,
};

/* The hypervisor implements the swap of frames. */
#define VMBEAM_FEATURE_SWAP _BITULL(0)
/* And VMBEAM_BIND_KEEP. */
#define VMBEAM_FEATURE_KEEP _BITULL(1)
/* And VMBEAM_BIND_TO_B and VMBEAM_BIND_TO_A. */
#define VMBEAM_FEATURE_RELOCATE _BITULL(2)

/*
 * What a session does with its pairs, for good: with none of these flags it
 * swaps; no two of them go together.
 *
 * KEEP: the frames of a pair change places, and what is in them stays where it
 * is, so that neither domain sees a difference. It heals superpages that have
 * lost a frame to the other domain. Superpages are not exchanged whole.
 *
 * TO_B: relocation of what A has to B. A pair of which B has populate-on-demand,
 * and no memory yet, is no reason to refuse it: A's frame goes over with none in
 * return, and A has populate-on-demand in its place. Where A has
 * populate-on-demand itself no frame goes either way; as A reads zeroes there, a
 * commit writes zeroes to B's frame if B has one. Such a pair counts as refused,
 * with the status -ENODATA, and there is nothing to copy. Other pairs are
 * swapped. ROLLBACK relocates the other way.
 *
 * Where the hypervisor has to add to the cache for populate-on-demand of a domain
 * that gives, a commit refuses pairs for which it lacks the memory, with -ENOMEM. A
 * rollback goes on without: the domain may then be crashed when it touches what it
 * gave.
 *
 * TO_A: the same from B to A.
 */
#define VMBEAM_BIND_KEEP _BITUL(0)
#define VMBEAM_BIND_TO_B _BITUL(1)
#define VMBEAM_BIND_TO_A _BITUL(2)

/**
 * struct vmbeam_info - ioctl(VMBEAM_IOCTL_INFO)
 * @size: sizeof(struct vmbeam_info)
 * @flags: must be 0
 * @features: out: VMBEAM_FEATURE_*
 * @max_add_runs: out: most runs in one VMBEAM_IOCTL_ADD
 * @batch_pairs: out: most pairs that one hypercall is given
 * @max_runs: out: most runs in one session, after merging
 * @max_pairs: out: most pairs in one session
 *
 * Needs no session.
 */
struct vmbeam_info {
	__u32 size;
	__u32 flags;
	__aligned_u64 features;
	__u32 max_add_runs;
	__u32 batch_pairs;
	__aligned_u64 max_runs;
	__aligned_u64 max_pairs;
};

/**
 * struct vmbeam_bind - ioctl(VMBEAM_IOCTL_BIND)
 * @size: sizeof(struct vmbeam_bind)
 * @flags: 0, or one of VMBEAM_BIND_*
 * @domid_a: first domain
 * @domid_b: second domain
 * @id_a: the hypervisor's unique id of the first domain, which no other domain
 *	has or will have until the host reboots; 0 for whichever has the domid.
 *	Out: its id
 * @id_b: the same of the second domain
 *
 * Bind the file to one pair of domains, for good: to these two, not to their
 * domids. If one of them is destroyed and its domid used again, all that comes
 * later fails with ESRCH. Their device models are asked to give up mappings that
 * they merely keep in stock, and which would have frames refused; they do so
 * when the domain next accesses a device.
 *
 * Errors: EBADFD (bound, now or before), EINVAL (same domain twice, or not a
 * domid, or two of VMBEAM_BIND_*), ESRCH (no such domain, it is dying, or its id is
 * another one), EPERM (dom0 or another control domain), ENXIO (a domain without
 * hardware-assisted paging: PV or shadow; or with nested virtualization on EPT),
 * EBUSY (a mode that a swap does not handle: passed-through device, altp2m
 * possible, memory sharing or paging; in a relocation: a domain that was given
 * devices or memory of them, as each gives, there or back; or another session has
 * pairs of one of these domains swapped, or was left with some), EOPNOTSUPP (the
 * hypervisor lacks the operation, or has another version of it), ENOSPC (too many
 * sessions and records), ENOMEM. What commits and rollbacks need is allocated here and
 * with the runs: they do not fail for lack of kernel memory. Of the hypervisor's a
 * commit may need some. So may a rollback that has to split a superpage.
 */
struct vmbeam_bind {
	__u32 size;
	__u32 flags;
	__u32 domid_a;
	__u32 domid_b;
	__aligned_u64 id_a;
	__aligned_u64 id_b;
};

/**
 * struct vmbeam_run - frames that follow each other in both domains
 * @gfn_a: first guest frame number in domain A, in 4 KiB frames
 * @gfn_b: first guest frame number in domain B, in 4 KiB frames
 * @nr: number of 4 KiB pairs, at least 1
 * @reserved: must be 0
 */
struct vmbeam_run {
	__aligned_u64 gfn_a;
	__aligned_u64 gfn_b;
	__u32 nr;
	__u32 reserved;
};

/**
 * struct vmbeam_add - ioctl(VMBEAM_IOCTL_ADD)
 * @size: sizeof(struct vmbeam_add)
 * @flags: must be 0
 * @runs: pointer to @nr_runs of struct vmbeam_run
 * @nr_runs: number of runs, 1 to vmbeam_info.max_add_runs
 * @bad_run: out: index of the run that was not taken, with EEXIST, and with
 *	EINVAL or EOVERFLOW that a run caused; otherwise @nr_runs
 * @total_runs: out: runs in the session, after merging
 * @total_pairs: out: pairs in the session
 *
 * Append runs. All of them are taken or none. Pairs are numbered from 0 in the
 * order in which they were added; merging does not change a pair's number. The
 * out fields are written with errors as well, once the structure was accepted.
 *
 * Errors: EBADFD (not bound, or a commit has begun), EINVAL (no runs, a run of
 * 0 pairs, a reserved field not 0), E2BIG (more than max_add_runs), EOVERFLOW
 * (a run that ends beyond gfn 2^52 - 1), EEXIST (a frame that the
 * session has already, on the same side), ENOSPC (more than max_runs or
 * max_pairs, or the frames of one domain are in more than 2^14 blocks of
 * 2^15), ENOMEM.
 */
struct vmbeam_add {
	__u32 size;
	__u32 flags;
	__aligned_u64 runs;
	__u32 nr_runs;
	__u32 bad_run;
	__aligned_u64 total_runs;
	__aligned_u64 total_pairs;
};

/**
 * struct vmbeam_check - ioctl(VMBEAM_IOCTL_CHECK)
 * @size: sizeof(struct vmbeam_check)
 * @flags: must be 0
 * @first: number of the first pair to check
 * @nr: how many pairs to check; 0 for all from @first on
 * @status: pointer to one __s32 a pair checked, or 0
 * @moves_before: frames that went over with none in return before these pairs in
 *	a dry run that goes on here: the sum of its @moves; 0 where it begins
 * @done: out: pairs checked; less than asked for when a signal or a
 *	VMBEAM_IOCTL_CANCEL came
 * @refused: out: those of them that a commit would refuse now
 * @moves: out: frames that a commit of those pairs would have go over with none in
 *	return
 *
 * Dry run: ask the hypervisor what a commit would do with each pair, and change
 * nothing. In a relocation the receiver has room, up to its maximum of memory,
 * for so many frames only, and all that are counted before a pair are in its way:
 * those of the same call, and @moves_before, which has no meaning in other modes.
 * So a commit does not meet -ENOSPC where a check of the pairs from the cursor on,
 * in one call or in several that hand on their sum, did not tell it.
 *
 * A pair's status is 0 (would be swapped) or a negative errno:
 *
 *  -ENOENT      no memory behind one of the gfns
 *  -EBUSY       a frame is referenced by something else: a device model, a
 *               grant, a foreign mapping
 *  -EXDEV       a frame that the domain maps but does not own
 *  -ENODATA     populate on demand, and not populated yet; in a relocation: the
 *               giver's
 *  -EAGAIN      paged out, or about to be
 *  -EMLINK      shared, or also mapped at another gfn
 *  -EACCES      under restrictions of access
 *  -EROFS       read-only memory
 *  -EPERM       a frame of the hypervisor itself
 *  -EOPNOTSUPP  not memory, or emulated
 *  -EEXIST      a frame that appears twice
 *  -ENOMEM      no memory to split a superpage; of a commit in a relocation also: none
 *               for the giver's cache
 *  -ENOSPC      the receiver of a relocation has its maximum of memory
 *
 * Errors: EBADFD (nothing loaded), EINVAL (@first or @nr beyond the session's
 * pairs, or @moves_before more than there are before @first), ECANCELED (the out
 * fields are valid), ESRCH, EPERM, ENXIO, EBUSY and ENOMEM (of the hypervisor) as
 * for VMBEAM_IOCTL_BIND.
 */
struct vmbeam_check {
	__u32 size;
	__u32 flags;
	__aligned_u64 first;
	__aligned_u64 nr;
	__aligned_u64 status;
	__aligned_u64 moves_before;
	__aligned_u64 done;
	__aligned_u64 refused;
	__aligned_u64 moves;
};

/**
 * struct vmbeam_commit - ioctl(VMBEAM_IOCTL_COMMIT)
 * @size: sizeof(struct vmbeam_commit)
 * @flags: must be 0
 * @expected: where the caller believes the cursor to be
 * @nr: stop after this many pairs; 0 to go on to the end
 * @status: pointer to one __s32 a pair asked for, or 0; see
 *	struct vmbeam_check. Elements of pairs that were not reached are left
 *	alone
 * @cursor: out: number of the first pair that has not been dealt with
 * @swapped: out: pairs swapped by this call
 * @refused: out: pairs refused by this call; they are as they were, but for those
 *	with the status -ENODATA of a relocation
 * @moved: out: frames that went over with none in return, by this call
 *
 * Swap the pairs from the cursor on. Swapping a pair twice puts it back, so the
 * cursor is kept by the kernel and a caller that is wrong about it changes
 * nothing. The call returns 0 as soon as it got anywhere, also when a signal or
 * an error ended it early: compare @cursor with what was asked for and call
 * again. Only a call that dealt with no pair fails, with two exceptions:
 * ECANCELED after a VMBEAM_IOCTL_CANCEL, with valid out fields, and EFAULT when
 * @status cannot be written, or the structure cannot any more, which
 * VMBEAM_IOCTL_STATUS then explains. Nothing moves unless the structure and the
 * first &struct vmbeam_info.batch_pairs elements of @status, or all that were
 * asked for if these are fewer, can be read and written.
 *
 * Errors: EBADFD (nothing loaded, already committed, or rolled back), ESTALE
 * (@expected is not the cursor, which is in @cursor), EINVAL (@nr beyond the
 * end), EFAULT and ECANCELED (see above), ESRCH, EPERM, ENXIO, EBUSY and ENOMEM
 * (of the hypervisor) as for VMBEAM_IOCTL_BIND. Of two sessions that share a
 * domain only one can have pairs swapped: the other one gets EBUSY until that is
 * closed.
 */
struct vmbeam_commit {
	__u32 size;
	__u32 flags;
	__aligned_u64 expected;
	__aligned_u64 nr;
	__aligned_u64 status;
	__aligned_u64 cursor;
	__aligned_u64 swapped;
	__aligned_u64 refused;
	__aligned_u64 moved;
};

/**
 * struct vmbeam_status - ioctl(VMBEAM_IOCTL_STATUS)
 * @size: sizeof(struct vmbeam_status)
 * @flags: must be 0
 * @state: out: enum vmbeam_state
 * @domid_a: out: first domain, valid unless the session is unbound or abandoned
 * @domid_b: out: second domain, likewise
 * @activity: out: number of the ioctl that works on the session now (the nr in
 *	its _IO()), or 0
 * @runs: out: runs, after merging
 * @pairs: out: pairs
 * @cursor: out: number of the first pair that is not swapped or refused
 * @swapped: out: pairs that are swapped now
 * @refused: out: pairs before the cursor that were refused
 * @mode: out: vmbeam_bind.flags
 * @reserved: out: 0
 * @moved: out: frames that commits had go over with none in return, without
 *	those that rollbacks had come back that way
 *
 * Never waits for another ioctl. While one swaps, the counts are those after
 * its last hypercall.
 */
struct vmbeam_status {
	__u32 size;
	__u32 flags;
	__u32 state;
	__u32 domid_a;
	__u32 domid_b;
	__u32 activity;
	__aligned_u64 runs;
	__aligned_u64 pairs;
	__aligned_u64 cursor;
	__aligned_u64 swapped;
	__aligned_u64 refused;
	__u32 mode;
	__u32 reserved;
	__aligned_u64 moved;
};

/**
 * struct vmbeam_rollback - ioctl(VMBEAM_IOCTL_ROLLBACK)
 * @size: sizeof(struct vmbeam_rollback)
 * @flags: must be 0
 * @expected: where the caller believes the cursor to be
 * @cursor: out: pairs that remain to be put back; 0 when all are back
 * @restored: out: pairs put back by this call
 *
 * Put the pairs before the cursor back, from the last to the first; refused
 * pairs are passed over. Like VMBEAM_IOCTL_COMMIT the call returns 0 as soon as
 * it got anywhere. A pair that the hypervisor will not swap back, because
 * something holds one of its frames, stops it: the cursor then is right after
 * that pair. If the frame was taken while the call ran, some pairs below may be
 * back already; they are known and passed over later.
 *
 * A relocation goes the other way. What has become populate-on-demand since,
 * because the receiver found that it was all zeroes, is put back by zeroes, and a
 * frame that the giver has got again meanwhile is swapped.
 *
 * Errors: EBADFD (nothing was committed), ESTALE (@expected is not the cursor,
 * which is in @cursor), EFAULT (the structure cannot be written; nothing moves, or
 * VMBEAM_IOCTL_STATUS tells what did if it could be at first), ECANCELED (the out
 * fields are valid), ESRCH, EPERM, ENXIO, EBUSY and ENOMEM (of the hypervisor) as for
 * VMBEAM_IOCTL_BIND, and the status of a pair that the hypervisor will not swap back
 * now, when it is the very next one.
 */
struct vmbeam_rollback {
	__u32 size;
	__u32 flags;
	__aligned_u64 expected;
	__aligned_u64 cursor;
	__aligned_u64 restored;
};

/**
 * struct vmbeam_cancel - ioctl(VMBEAM_IOCTL_CANCEL)
 * @size: sizeof(struct vmbeam_cancel)
 * @flags: must be 0
 *
 * Have the VMBEAM_IOCTL_CHECK, _COMMIT or _ROLLBACK that works on the session
 * now end after its current hypercall. It then fails with ECANCELED and says in
 * its out fields how far it came. If it was about to end it may still succeed.
 * Does not wait for it. Calls that wait for their turn are not affected.
 *
 * Errors: ENOENT (none of the three works on the session).
 */
struct vmbeam_cancel {
	__u32 size;
	__u32 flags;
};

/**
 * struct vmbeam_record - ioctl(VMBEAM_IOCTL_RECORD)
 * @size: sizeof(struct vmbeam_record)
 * @flags: must be 0
 * @id: in: 0, or the id of a record; out: the next larger one that there is.
 *	Never reused until the module is unloaded
 * @domid_a: out: first domain
 * @domid_b: out: second domain
 * @id_a: out: the hypervisor's unique id of the first domain
 * @id_b: out: that of the second one
 * @state: out: enum vmbeam_state
 * @error: out: why it could not be rolled back, a negative errno: that of the
 *	hypercall, or the status of the pair right below @cursor
 * @time: out: when it was kept, in seconds since 1970
 * @pid: out: the process that had bound the session, in the initial namespace
 * @reserved: out: 0
 * @runs: out: runs, after merging
 * @pairs: out: pairs
 * @cursor: out: pairs at and after it are where they were at first
 * @swapped: out: pairs that are swapped still
 * @refused: out: pairs before the cursor that were refused by the commit
 * @mode: out: vmbeam_bind.flags of the session
 * @reserved2: out: 0
 * @moved: out: as in struct vmbeam_status
 *
 * When the last reference to a file goes while some of its pairs are swapped
 * and some are not, the driver rolls back by itself. If the hypervisor refuses,
 * the session is kept as a record. This tells the first record whose id is
 * larger than @id. Only for a file that has not been bound.
 *
 * Errors: ENOENT (there are no more), EBADFD (the file is bound, or was).
 */
struct vmbeam_record {
	__u32 size;
	__u32 flags;
	__aligned_u64 id;
	__u32 domid_a;
	__u32 domid_b;
	__aligned_u64 id_a;
	__aligned_u64 id_b;
	__u32 state;
	__s32 error;
	__aligned_u64 time;
	__u32 pid;
	__u32 reserved;
	__aligned_u64 runs;
	__aligned_u64 pairs;
	__aligned_u64 cursor;
	__aligned_u64 swapped;
	__aligned_u64 refused;
	__u32 mode;
	__u32 reserved2;
	__aligned_u64 moved;
};

/**
 * struct vmbeam_adopt - ioctl(VMBEAM_IOCTL_ADOPT)
 * @size: sizeof(struct vmbeam_adopt)
 * @flags: must be 0
 * @id: vmbeam_record.id
 *
 * Take the session of a record into a file that is not bound yet. It is as if
 * the file had been bound to the two domains from the start, and closing it
 * tries a rollback again.
 *
 * Errors: EBADFD (bound, now or before), ENOENT (no such record).
 */
struct vmbeam_adopt {
	__u32 size;
	__u32 flags;
	__aligned_u64 id;
};

/**
 * struct vmbeam_abandon - ioctl(VMBEAM_IOCTL_ABANDON)
 * @size: sizeof(struct vmbeam_abandon)
 * @flags: must be 0
 * @expected: where the caller believes the cursor to be
 * @cursor: out: where it is
 *
 * Give the session up: its pairs stay as they are, and nobody knows any more which
 * are swapped. Of what follows on this file only INFO, STATUS and CANCEL do not
 * fail with EBADFD. For when at least one of the two domains is gone, and for a
 * caller that has written down itself what is where.
 *
 * Errors: EBADFD (not bound), ESTALE (@expected is not the cursor, which is in
 * @cursor).
 */
struct vmbeam_abandon {
	__u32 size;
	__u32 flags;
	__aligned_u64 expected;
	__aligned_u64 cursor;
};

/* A number does not depend on the size of its structure, which can grow. */
enum {
	VMBEAM_CMD_BASE = 0x80,
	VMBEAM_CMD_INFO = VMBEAM_CMD_BASE,
	VMBEAM_CMD_BIND,
	VMBEAM_CMD_ADD,
	VMBEAM_CMD_CHECK,
	VMBEAM_CMD_COMMIT,
	VMBEAM_CMD_STATUS,
	VMBEAM_CMD_ROLLBACK,
	VMBEAM_CMD_CANCEL,
	VMBEAM_CMD_RECORD,
	VMBEAM_CMD_ADOPT,
	VMBEAM_CMD_ABANDON,
};

#define VMBEAM_IOCTL_INFO	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_INFO)
#define VMBEAM_IOCTL_BIND	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_BIND)
#define VMBEAM_IOCTL_ADD	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_ADD)
#define VMBEAM_IOCTL_CHECK	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_CHECK)
#define VMBEAM_IOCTL_COMMIT	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_COMMIT)
#define VMBEAM_IOCTL_STATUS	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_STATUS)
#define VMBEAM_IOCTL_ROLLBACK	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_ROLLBACK)
#define VMBEAM_IOCTL_CANCEL	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_CANCEL)
#define VMBEAM_IOCTL_RECORD	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_RECORD)
#define VMBEAM_IOCTL_ADOPT	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_ADOPT)
#define VMBEAM_IOCTL_ABANDON	_IO(VMBEAM_IOC_TYPE, VMBEAM_CMD_ABANDON)

#endif /* _UAPI_LINUX_VMBEAM_H */
