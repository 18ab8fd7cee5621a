/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bare domains for the selftest: memory and no guest kernel. They are those of
 * the Xen that we run on, or of the model in a debug driver.
 */
#ifndef VMBEAM_TEST_DOMAINS_H
#define VMBEAM_TEST_DOMAINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

/* Not a domain: a failed create(). */
#define NO_DOMAIN UINT32_MAX

enum domain_kind {
	DOMAIN_HAP,
	DOMAIN_PV,
};

struct domain_ops {
	/* 0, or -1 with errno set. */
	int (*open)(void);
	void (*close)(void);

	/* A paused domain with @frames frames from gfn 0 on, or NO_DOMAIN. */
	__u32 (*create)(enum domain_kind kind, unsigned long frames);
	/* The same with a number that no domain has any more. */
	__u32 (*create_as)(__u32 domid, unsigned long frames);
	void (*destroy)(__u32 domid);
	bool (*dying)(__u32 domid);
	long (*pages)(__u32 domid);
	int (*log_dirty)(__u32 domid);

	/*
	 * Write contents that name the domain (@tag) and the frame into @nr
	 * frames from @first on, or compare them with it. check() returns how
	 * many frames differ, or -1.
	 */
	int (*fill)(__u32 domid, __u32 tag, unsigned long first, unsigned long nr);
	long (*check)(__u32 domid, __u32 tag, unsigned long first,
		      unsigned long nr, unsigned long gfn);

	/* Map one frame and keep it mapped. */
	void *(*hold)(__u32 domid, unsigned long gfn);
	void (*release)(void *page);

	/* Have the domain grant a frame to us, and map that grant. */
	void *(*grant)(__u32 domid, unsigned long gfn);
	void (*ungrant)(void *page);

	/* Put a page that belongs to the hypervisor at @gfn. */
	int (*add_xen_page)(__u32 domid, unsigned long gfn);

	/*
	 * Let each hypercall take @msec longer, so that a signal meets one. A
	 * real one is long enough by itself.
	 */
	int (*slow)(unsigned int msec);
};

extern const struct domain_ops xen_ops, mock_ops;

/* The operations to use; set by domains_open(). */
extern const struct domain_ops *domains;

/* Choose by who swaps, the hypervisor or its model. 0, or -1 with errno set. */
int domains_open(bool model);
void domains_close(void);

#define domain_create(...)	domains->create(__VA_ARGS__)
#define domain_create_as(...)	domains->create_as(__VA_ARGS__)
#define domain_dying(...)	domains->dying(__VA_ARGS__)
#define domain_pages(...)	domains->pages(__VA_ARGS__)
#define domain_log_dirty(...)	domains->log_dirty(__VA_ARGS__)
#define domain_fill(...)	domains->fill(__VA_ARGS__)
#define domain_check(...)	domains->check(__VA_ARGS__)
#define domain_hold(...)	domains->hold(__VA_ARGS__)
#define domain_release(...)	domains->release(__VA_ARGS__)
#define domain_grant(...)	domains->grant(__VA_ARGS__)
#define domain_ungrant(...)	domains->ungrant(__VA_ARGS__)
#define domain_add_xen_page(...) domains->add_xen_page(__VA_ARGS__)
#define domains_slow(...)	domains->slow(__VA_ARGS__)

/* Nothing if there is no such domain. */
void domain_destroy(__u32 domid);

#endif /* VMBEAM_TEST_DOMAINS_H */
