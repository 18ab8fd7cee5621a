/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The surroundings of Xen's memory management: what its files that the harness
 * compiles call in files that it doesn't. Allocation, copies from and to the
 * caller, flushes and preemption are put to the harness, which counts them,
 * and lets them fail. What isn't here and is called nevertheless is a trap.
 */
#include <xen/cpumask.h>
#include <xen/event.h>
#include <xen/guest_access.h>
#include <xen/hypercall.h>
#include <xen/iommu.h>
#include <xen/irq_cpustat.h>
#include <xen/mm.h>
#include <xen/rangeset.h>
#include <xen/sched.h>
#include <xen/trace.h>

#include <asm/flushtlb.h>
#include <asm/hvm/guest_access.h>
#include <asm/hvm/hvm.h>
#include <asm/hvm/nestedhvm.h>
#include <asm/hvm/vmx/vmcs.h>
#include <asm/mtrr.h>
#include <asm/p2m.h>

#include "shim.h"
#include "internal.h"

irq_cpustat_t irq_stat[NR_CPUS];
unsigned long __per_cpu_offset[NR_CPUS];
DEFINE_PER_CPU(unsigned int, __preempt_count);
DEFINE_PER_CPU(unsigned int, rcu_lock_cnt);
DEFINE_PER_CPU(bool, iommu_dont_flush_iotlb);

cpumask_t cpu_online_map;
unsigned int nr_cpu_ids = NR_CPUS;
struct cpuinfo_x86 boot_cpu_data;
struct hvm_function_table hvm_funcs;
unsigned long max_page;
unsigned long xen_phys_start;
bool tb_init_done;
bool iommu_snoop, iommu_non_coherent;
enum system_state system_state = SYS_STATE_active;
struct domain *hardware_domain, *domain_list;
struct domain *dom_xen, *dom_io;
u64 vmx_ept_vpid_cap, vmx_tertiary_exec_control;
u32 vmx_secondary_exec_control;
int8_t opt_pv32 = 1;

/* ---- Text ------------------------------------------------------------- */

void printk(const char *fmt, ...)
{
    static char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    shim_event(EV_PRINT, _u(text), 0, 0, 0);
}

void panic(const char *fmt, ...)
{
    static char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    shim_bug(text, "panic", 0);
}

void shim_bug(const char *what, const char *file, int line)
{
    for ( ; ; )
        shim_event(EV_BUG, _u(what), _u(file), line, 0);
}

void __domain_crash(struct domain *d)
{
    shim_event(EV_CRASH, d->domain_id, 0, 0, 0);
}

/* ---- Memory ----------------------------------------------------------- */

void *memset(void *s, int c, size_t n)
{
    void *d = s;

    asm volatile ( "rep stosb" : "+D" (d), "+c" (n) : "a" (c) : "memory" );

    return s;
}

void *memcpy(void *dest, const void *src, size_t n)
{
    void *d = dest;

    asm volatile ( "rep movsb" : "+D" (d), "+S" (src), "+c" (n) :: "memory" );

    return dest;
}

void clear_page_sse2(void *p)
{
    memset(p, 0, PAGE_SIZE);
}

void *_xmalloc(unsigned long size, unsigned long align)
{
    return (void *)shim_event(EV_ALLOC, size, align, 0, 0);
}

void *_xzalloc(unsigned long size, unsigned long align)
{
    void *p = _xmalloc(size, align);

    return p ? memset(p, 0, size) : NULL;
}

void xfree(void *p)
{
    if ( p )
        shim_event(EV_FREE, _u(p), 0, 0, 0);
}

void *vzalloc(size_t size)
{
    return _xzalloc(size, 0);
}

void vfree(void *p)
{
    xfree(p);
}

/* As domain_page.c does where all memory is in the direct map. */
#undef map_domain_page
#undef unmap_domain_page
void *map_domain_page(mfn_t mfn)
{
    return mfn_to_virt(mfn_x(mfn));
}

void unmap_domain_page(const void *ptr)
{
}

void clear_domain_page(mfn_t mfn)
{
    memset(mfn_to_virt(mfn_x(mfn)), 0, PAGE_SIZE);
}

/* ---- The caller ------------------------------------------------------- */

unsigned int copy_from_user_hvm(void *to, const void *from, unsigned int len)
{
    if ( shim_event(EV_COPY_IN, _u(from), len, 0, 0) )
        return len;
    memcpy(to, from, len);

    return 0;
}

unsigned int copy_to_user_hvm(void *to, const void *from, unsigned int len)
{
    if ( shim_event(EV_COPY_OUT, _u(to), len, 0, 0) )
        return len;
    memcpy(to, from, len);

    return 0;
}

unsigned int clear_user_hvm(void *to, unsigned int len)
{
    if ( shim_event(EV_COPY_OUT, _u(to), len, 0, 0) )
        return len;
    memset(to, 0, len);

    return 0;
}

int hvm_local_events_need_delivery(struct vcpu *v)
{
    return shim_event(EV_PREEMPT, 0, 0, 0, 0);
}

unsigned long hypercall_create_continuation(unsigned int op,
                                            const char *format, ...)
{
    shim_event(EV_CONTINUE, op, 0, 0, 0);

    return -ERESTART;
}

/* ---- Domains ---------------------------------------------------------- */

struct domain *rcu_lock_domain_by_id(domid_t dom)
{
    struct domain *d = dom < SHIM_DOMAINS ? shim_domains[dom] : NULL;

    if ( d )
        rcu_lock_domain(d);

    return d;
}

void domain_pause(struct domain *d)
{
    atomic_inc(&d->pause_count);
}

void domain_unpause(struct domain *d)
{
    atomic_dec(&d->pause_count);
}

void ioreq_request_mapcache_invalidate(const struct domain *d)
{
    shim_event(EV_UNMAP, d->domain_id, 0, 0, 0);
}

unsigned long shim_mixed = ~0UL;

int hvm_get_mem_pinned_cacheattr(struct domain *d, gfn_t gfn,
                                 unsigned int order)
{
    if ( shim_mixed == ~0UL )
        return -ENXIO;

    return order && !((gfn_x(gfn) ^ shim_mixed) >> PAGE_ORDER_2M)
           ? -EADDRNOTAVAIL : X86_MT_WB;
}

/* No page modification logging: writes are noticed by faults. */
bool vmx_domain_pml_enabled(const struct domain *d)
{
    return false;
}

/* ---- Flushes ---------------------------------------------------------- */

/*
 * The vCPU of each domain is in guest mode on the CPU of that number. What it
 * knows of its P2M is dropped only when it is entered, and only if something has
 * been left for it to notice then: by EPT's mask, or an ASID that is not valid.
 */
static void enter_guest(struct domain *d)
{
    struct p2m_domain *p2m = p2m_get_hostp2m(d);
    struct hvm_vcpu_asid *asid = &d->vcpu[0]->arch.hvm.n1asid;
    bool stale;

    if ( cpu_has_vmx )
        stale = cpumask_test_and_clear_cpu(d->domain_id, p2m->ept.invalidate);
    else
    {
        stale = !asid->generation;
        asid->generation = 1;
    }

    if ( stale )
        shim_event(EV_FLUSH_DOMAIN, d->domain_id, 0, 0, 0);
}

/* CPUs leave their guests because of an interrupt, and enter them again. */
static void interrupt(const cpumask_t *mask)
{
    unsigned int id;

    shim_event(EV_IPI, cpumask_bits(mask)[0], 0, 0, 0);

    for ( id = 0; id < SHIM_DOMAINS; id++ )
        if ( shim_domains[id] && p2m_get_hostp2m(shim_domains[id]) &&
             cpumask_test_cpu(id, mask) )
            enter_guest(shim_domains[id]);
}

void hvm_asid_flush_vcpu(struct vcpu *v)
{
    v->arch.hvm.n1asid.generation = 0;
}

void guest_flush_tlb_mask(const struct domain *d, const cpumask_t *mask)
{
    hvm_asid_flush_vcpu(d->vcpu[0]);
    interrupt(mask);
}

/* CPUs that the function called by on_selected_cpus() runs on. */
static const cpumask_t *running_on;

void on_selected_cpus(const cpumask_t *selected, void (*func)(void *info),
                      void *info, int wait)
{
    if ( func )
    {
        running_on = selected;
        func(info);
    }
    interrupt(selected);
}

unsigned int flush_area_local(const void *va, unsigned int flags)
{
    shim_event(EV_FLUSH_LINEAR, cpumask_bits(running_on)[0], 0, 0, 0);

    return flags;
}

/* Only caches are flushed in this way by what is compiled here. */
void flush_area_mask(const cpumask_t *mask, const void *va, unsigned int flags)
{
    if ( flags != FLUSH_CACHE )
        shim_bug("flush_area_mask()", __FILE__, __LINE__);
    shim_event(EV_FLUSH_CACHES, cpumask_bits(mask)[0], 0, 0, 0);
}

/* What devices may reach is what the IOMMU's TLB has, until that is flushed. */
int iommu_iotlb_flush(struct domain *d, dfn_t dfn, unsigned long page_count,
                      unsigned int flush_flags)
{
    if ( is_iommu_enabled(d) )
        shim_event(EV_FLUSH_IOMMU, d->domain_id, dfn_x(dfn), 0, 0);

    return 0;
}

int iommu_legacy_map(struct domain *d, dfn_t dfn, mfn_t mfn,
                     unsigned long page_count, unsigned int flags)
{
    return this_cpu(iommu_dont_flush_iotlb)
           ? 0 : iommu_iotlb_flush(d, dfn, page_count, IOMMU_FLUSHF_added);
}

int iommu_legacy_unmap(struct domain *d, dfn_t dfn, unsigned long page_count)
{
    return this_cpu(iommu_dont_flush_iotlb)
           ? 0 : iommu_iotlb_flush(d, dfn, page_count, IOMMU_FLUSHF_modified);
}

void nestedhvm_vmcx_flushtlb(struct p2m_domain *p2m)
{
    shim_event(EV_FLUSH_NESTED, p2m->domain->domain_id, 0, 0, 0);
    /* It might have been anywhere, and gone on with what it knew. */
    enter_guest(p2m->domain);
}

void cf_check nestedp2m_write_p2m_entry_post(struct p2m_domain *p2m,
                                             unsigned int oflags)
{
}
