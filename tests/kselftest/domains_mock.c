// SPDX-License-Identifier: GPL-2.0-only
/*
 * Domains of the model in a debug driver.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vmbeam.h>

#include "domains.h"
#include "vmbeam_debug.h"

/* Frame numbers beyond the memory, for pages of the hypervisor. */
#define SPARE 64

static int device = -1;

const struct domain_ops *domains;

struct page {
	__u32 domid;
	unsigned long gfn;
};

static int debug(struct vmbeam_debug *arg)
{
	return ioctl(device, VMBEAM_IOCTL_DEBUG, arg);
}

static int set_status(__u32 domid, unsigned long gfn, unsigned long nr, int status)
{
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_STATUS,
		.domid = domid,
		.first = gfn,
		.nr = nr,
		.value = status,
	};

	return debug(&arg);
}

static int mock_open(void)
{
	device = open("/dev/vmbeam", O_RDWR | O_CLOEXEC);
	return device < 0 ? -1 : 0;
}

static void mock_close(void)
{
	close(device);
	device = -1;
}

static __u32 new_domain(__u32 domid, enum domain_kind kind, unsigned long frames)
{
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_CREATE,
		.domid = domid,
		.nr = frames + SPARE,
		.value = kind == DOMAIN_PV ? -ENXIO : 0,
	};

	if (debug(&arg) || set_status(arg.domid, frames, SPARE, -ENOENT))
		return NO_DOMAIN;
	return arg.domid;
}

static __u32 mock_create(enum domain_kind kind, unsigned long frames)
{
	return new_domain(0, kind, frames);
}

static __u32 mock_create_as(__u32 domid, unsigned long frames)
{
	return new_domain(domid, DOMAIN_HAP, frames);
}

static void mock_destroy(__u32 domid)
{
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_DESTROY,
		.domid = domid,
	};

	debug(&arg);
}

static bool mock_dying(__u32 domid)
{
	return true;
}

static long mock_pages(__u32 domid)
{
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_PAGES,
		.domid = domid,
	};

	return debug(&arg) ? -1 : arg.nr;
}

/* Makes no difference to a swap that the driver could see. */
static int mock_log_dirty(__u32 domid)
{
	return 0;
}

static __u64 word(__u32 tag, unsigned long gfn)
{
	return ((__u64)tag << 48) ^ gfn;
}

static int transfer(int op, __u32 domid, unsigned long first, unsigned long nr, __u64 *words)
{
	struct vmbeam_debug arg = {
		.op = op,
		.domid = domid,
		.first = first,
		.nr = nr,
		.ptr = (uintptr_t)words,
	};

	return debug(&arg);
}

static int mock_fill(__u32 domid, __u32 tag, unsigned long first, unsigned long nr)
{
	__u64 *words = calloc(nr, sizeof(*words));
	unsigned long i;
	int ret;

	if (!words)
		return -1;
	for (i = 0; i < nr; i++)
		words[i] = word(tag, first + i);
	ret = transfer(VMBEAM_DEBUG_WRITE, domid, first, nr, words);
	free(words);
	return ret;
}

static long mock_check(__u32 domid, __u32 tag, unsigned long first,
		       unsigned long nr, unsigned long gfn)
{
	__u64 *words = calloc(nr + 1, sizeof(*words));
	long different = 0;
	unsigned long i;

	if (!words)
		return -1;
	if (transfer(VMBEAM_DEBUG_READ, domid, first, nr, words))
		different = -1;
	for (i = 0; different >= 0 && i < nr; i++)
		different += words[i] != word(tag, gfn + i);
	free(words);
	return different;
}

static void *mock_hold(__u32 domid, unsigned long gfn)
{
	struct page *page = calloc(1, sizeof(*page));

	if (!page)
		return NULL;
	page->domid = domid;
	page->gfn = gfn;
	if (set_status(domid, gfn, 1, -EBUSY)) {
		free(page);
		return NULL;
	}
	return page;
}

static void mock_release(void *handle)
{
	struct page *page = handle;

	/* Fails if the domain is gone by now. */
	set_status(page->domid, page->gfn, 1, 0);
	free(page);
}

static int mock_add_xen_page(__u32 domid, unsigned long gfn)
{
	return set_status(domid, gfn, 1, -EPERM);
}

static int mock_slow(unsigned int msec)
{
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_SLOW,
		.nr = msec,
	};

	return debug(&arg);
}

const struct domain_ops mock_ops = {
	.open = mock_open,
	.close = mock_close,
	.create = mock_create,
	.create_as = mock_create_as,
	.destroy = mock_destroy,
	.dying = mock_dying,
	.pages = mock_pages,
	.log_dirty = mock_log_dirty,
	.fill = mock_fill,
	.check = mock_check,
	.hold = mock_hold,
	.release = mock_release,
	.grant = mock_hold,
	.ungrant = mock_release,
	.add_xen_page = mock_add_xen_page,
	.slow = mock_slow,
};

int domains_open(bool model)
{
	domains = model ? &mock_ops : &xen_ops;
	return domains->open();
}

void domains_close(void)
{
	if (domains)
		domains->close();
}

void domain_destroy(__u32 domid)
{
	if (domains && domid != NO_DOMAIN)
		domains->destroy(domid);
}
