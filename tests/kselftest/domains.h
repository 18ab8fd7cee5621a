/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bare domains for the selftest: memory and no guest kernel.
 */
#ifndef VMBEAM_TEST_DOMAINS_H
#define VMBEAM_TEST_DOMAINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

/* Not a domain: no_domain() or a failed domain_create(). */
#define NO_DOMAIN UINT32_MAX

enum domain_kind {
	DOMAIN_HAP,
	DOMAIN_PV,
};

/* 0, or -1 with errno set. */
int xen_open(void);
void xen_close(void);

/* A paused domain with @frames frames from gfn 0 on, or NO_DOMAIN. */
__u32 domain_create(enum domain_kind kind, unsigned long frames);
void domain_destroy(__u32 domid);
bool domain_dying(__u32 domid);
long domain_pages(__u32 domid);
int domain_log_dirty(__u32 domid);

/*
 * Write contents that name the domain (@tag) and the frame into @nr frames from
 * @first on, or compare them with it. domain_check() returns how many frames
 * differ, or -1.
 */
int domain_fill(__u32 domid, __u32 tag, unsigned long first, unsigned long nr);
long domain_check(__u32 domid, __u32 tag, unsigned long first,
		  unsigned long nr, unsigned long gfn);

/* Map one frame and keep it mapped. */
void *domain_hold(__u32 domid, unsigned long gfn);
void domain_release(void *page);

/* Have the domain grant a frame to us, and map that grant. */
void *domain_grant(__u32 domid, unsigned long gfn);
void domain_ungrant(void *page);

/* Put a page that belongs to Xen at @gfn. */
int domain_add_xen_page(__u32 domid, unsigned long gfn);

#endif /* VMBEAM_TEST_DOMAINS_H */
