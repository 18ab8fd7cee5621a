// SPDX-License-Identifier: GPL-2.0-only
/*
 * Domains of a real Xen.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <xenctrl.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>

#include <xen/grant_table.h>
#include <xen/memory.h>

#include "domains.h"

#define PAGE 4096
#define WORDS (PAGE / sizeof(__u64))
#define CHUNK 256
/* Words that are looked at: frames move whole, and emulated processors are slow. */
#define STRIDE 37

static xc_interface *xch;
static xenforeignmemory_handle *fmem;
static xengnttab_handle *gnttab;

static int xen_open(void)
{
	xch = xc_interface_open(NULL, NULL, 0);
	fmem = xenforeignmemory_open(NULL, 0);
	gnttab = xengnttab_open(NULL, 0);

	return xch && fmem && gnttab ? 0 : -1;
}

static void xen_close(void)
{
	if (gnttab)
		xengnttab_close(gnttab);
	if (fmem)
		xenforeignmemory_close(fmem);
	if (xch)
		xc_interface_close(xch);
}

static int populate(__u32 domid, unsigned long frames)
{
	xen_pfn_t gfns[CHUNK];
	unsigned long gfn = 0;
	unsigned int i, nr;

	for (; gfn < frames; gfn += nr) {
		nr = frames - gfn < CHUNK ? frames - gfn : CHUNK;
		for (i = 0; i < nr; i++)
			gfns[i] = gfn + i;
		if (xc_domain_populate_physmap_exact(xch, domid, nr, 0, 0, gfns))
			return -1;
	}
	return 0;
}

static void xen_destroy(__u32 domid)
{
	xc_domain_destroy(xch, domid);
}

static __u32 new_domain(__u32 domid, enum domain_kind kind, unsigned long frames)
{
	struct xen_domctl_createdomain config = {
		.max_vcpus = 1,
		.max_grant_frames = 1,
		.grant_opts = XEN_DOMCTL_GRANT_version(1),
	};

	if (kind == DOMAIN_HAP) {
		config.flags = XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap;
		config.arch.emulation_flags = XEN_X86_EMU_LAPIC;
	}
	/* Xen chooses the number when it is 0. */
	if (xc_domain_create(xch, &domid, &config))
		return NO_DOMAIN;
	if (xc_domain_setmaxmem(xch, domid, -1) || populate(domid, frames)) {
		xen_destroy(domid);
		return NO_DOMAIN;
	}
	return domid;
}

static __u32 xen_create(enum domain_kind kind, unsigned long frames)
{
	return new_domain(0, kind, frames);
}

static __u32 xen_create_as(__u32 domid, unsigned long frames)
{
	return new_domain(domid, DOMAIN_HAP, frames);
}

static bool xen_dying(__u32 domid)
{
	xc_domaininfo_t info;

	return !xc_domain_getinfo_single(xch, domid, &info) &&
	       (info.flags & XEN_DOMINF_dying);
}

static long xen_pages(__u32 domid)
{
	xc_domaininfo_t info;

	return xc_domain_getinfo_single(xch, domid, &info) ? -1 : (long)info.tot_pages;
}

static int xen_log_dirty(__u32 domid)
{
	/* Xen does not do this to a domain without a CPU. */
	if (xc_domain_max_vcpus(xch, domid, 1))
		return -1;
	return xc_shadow_control(xch, domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY,
				 NULL, 0);
}

static __u64 word(__u32 tag, unsigned long gfn, unsigned int i)
{
	return ((__u64)tag << 48) ^ ((__u64)gfn << 16) ^ i;
}

/* Map up to CHUNK frames. */
static __u64 *map(__u32 domid, unsigned long first, unsigned int nr)
{
	xen_pfn_t gfns[CHUNK];
	unsigned int i;

	for (i = 0; i < nr; i++)
		gfns[i] = first + i;
	return xenforeignmemory_map(fmem, domid, PROT_READ | PROT_WRITE, nr, gfns, NULL);
}

static int xen_fill(__u32 domid, __u32 tag, unsigned long first, unsigned long nr)
{
	unsigned long done = 0;
	unsigned int i, now, page;
	__u64 *pages;

	for (; done < nr; done += now) {
		now = nr - done < CHUNK ? nr - done : CHUNK;
		pages = map(domid, first + done, now);
		if (!pages)
			return -1;
		for (page = 0; page < now; page++)
			for (i = 0; i < WORDS; i += STRIDE)
				pages[page * WORDS + i] = word(tag, first + done + page, i);
		xenforeignmemory_unmap(fmem, pages, now);
	}
	return 0;
}

static long xen_check(__u32 domid, __u32 tag, unsigned long first,
		      unsigned long nr, unsigned long gfn)
{
	unsigned long done = 0;
	unsigned int i, now, page;
	long different = 0;
	__u64 *pages;
	bool bad;

	for (; done < nr; done += now) {
		now = nr - done < CHUNK ? nr - done : CHUNK;
		pages = map(domid, first + done, now);
		if (!pages)
			return -1;
		for (page = 0; page < now; page++) {
			bad = false;
			for (i = 0; i < WORDS; i += STRIDE)
				if (pages[page * WORDS + i] != word(tag, gfn + done + page, i))
					bad = true;
			different += bad;
		}
		xenforeignmemory_unmap(fmem, pages, now);
	}
	return different;
}

static void *xen_hold(__u32 domid, unsigned long gfn)
{
	return map(domid, gfn, 1);
}

static void xen_release(void *page)
{
	xenforeignmemory_unmap(fmem, page, 1);
}

static void *xen_grant(__u32 domid, unsigned long gfn)
{
	const unsigned int ref = GNTTAB_NR_RESERVED_ENTRIES;
	xenforeignmemory_resource_handle *table;
	grant_entry_v1_t *entries = NULL;

	table = xenforeignmemory_map_resource(fmem, domid, XENMEM_resource_grant_table,
					      XENMEM_resource_grant_table_id_shared,
					      0, 1, (void **)&entries,
					      PROT_READ | PROT_WRITE, 0);
	if (!table)
		return NULL;
	entries[ref].domid = 0;
	entries[ref].frame = gfn;
	entries[ref].flags = GTF_permit_access;
	xenforeignmemory_unmap_resource(fmem, table);

	return xengnttab_map_grant_ref(gnttab, domid, ref, PROT_READ | PROT_WRITE);
}

static void xen_ungrant(void *page)
{
	xengnttab_unmap(gnttab, page, 1);
}

static int xen_add_xen_page(__u32 domid, unsigned long gfn)
{
	return xc_domain_add_to_physmap(xch, domid, XENMAPSPACE_shared_info, 0, gfn);
}

static int xen_slow(unsigned int msec)
{
	return 0;
}

const struct domain_ops xen_ops = {
	.open = xen_open,
	.close = xen_close,
	.create = xen_create,
	.create_as = xen_create_as,
	.destroy = xen_destroy,
	.dying = xen_dying,
	.pages = xen_pages,
	.log_dirty = xen_log_dirty,
	.fill = xen_fill,
	.check = xen_check,
	.hold = xen_hold,
	.release = xen_release,
	.grant = xen_grant,
	.ungrant = xen_ungrant,
	.add_xen_page = xen_add_xen_page,
	.slow = xen_slow,
};
