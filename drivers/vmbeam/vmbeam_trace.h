/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events for those who watch: perf, trace-cmd, bpftrace. They are described in
 * Documentation/userspace-api/vmbeam.rst.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vmbeam

#if !defined(__VMBEAM_TRACE_H__) || defined(TRACE_HEADER_MULTI_READ)
#define __VMBEAM_TRACE_H__

#include <linux/tracepoint.h>

TRACE_EVENT(vmbeam_batch_begin,
	TP_PROTO(u32 domid_a, u32 domid_b, bool check, u64 cursor, u32 runs,
		 u32 pairs),
	TP_ARGS(domid_a, domid_b, check, cursor, runs, pairs),
	TP_STRUCT__entry(
		__field(u32, domid_a)
		__field(u32, domid_b)
		__field(bool, check)
		__field(u64, cursor)
		__field(u32, runs)
		__field(u32, pairs)
	),
	TP_fast_assign(
		__entry->domid_a = domid_a;
		__entry->domid_b = domid_b;
		__entry->check = check;
		__entry->cursor = cursor;
		__entry->runs = runs;
		__entry->pairs = pairs;
	),
	TP_printk("domid_a=%u domid_b=%u op=%s cursor=%llu runs=%u pairs=%u",
		  __entry->domid_a, __entry->domid_b,
		  __entry->check ? "check" : "swap", __entry->cursor,
		  __entry->runs, __entry->pairs)
);

TRACE_EVENT(vmbeam_batch_end,
	TP_PROTO(u32 domid_a, u32 domid_b, bool check, u64 cursor, u64 done,
		 u64 tlb_flushes, int ret),
	TP_ARGS(domid_a, domid_b, check, cursor, done, tlb_flushes, ret),
	TP_STRUCT__entry(
		__field(u32, domid_a)
		__field(u32, domid_b)
		__field(bool, check)
		__field(u64, cursor)
		__field(u64, done)
		__field(u64, tlb_flushes)
		__field(int, ret)
	),
	TP_fast_assign(
		__entry->domid_a = domid_a;
		__entry->domid_b = domid_b;
		__entry->check = check;
		__entry->cursor = cursor;
		__entry->done = done;
		__entry->tlb_flushes = tlb_flushes;
		__entry->ret = ret;
	),
	TP_printk("domid_a=%u domid_b=%u op=%s cursor=%llu done=%llu tlb_flushes=%llu ret=%d",
		  __entry->domid_a, __entry->domid_b,
		  __entry->check ? "check" : "swap", __entry->cursor,
		  __entry->done, __entry->tlb_flushes, __entry->ret)
);

TRACE_EVENT(vmbeam_refused,
	TP_PROTO(u32 domid_a, u32 domid_b, bool check, u64 gfn_a, u64 gfn_b,
		 int status),
	TP_ARGS(domid_a, domid_b, check, gfn_a, gfn_b, status),
	TP_STRUCT__entry(
		__field(u32, domid_a)
		__field(u32, domid_b)
		__field(bool, check)
		__field(u64, gfn_a)
		__field(u64, gfn_b)
		__field(int, status)
	),
	TP_fast_assign(
		__entry->domid_a = domid_a;
		__entry->domid_b = domid_b;
		__entry->check = check;
		__entry->gfn_a = gfn_a;
		__entry->gfn_b = gfn_b;
		__entry->status = status;
	),
	TP_printk("domid_a=%u domid_b=%u op=%s gfn_a=0x%llx gfn_b=0x%llx status=%d",
		  __entry->domid_a, __entry->domid_b,
		  __entry->check ? "check" : "swap", __entry->gfn_a,
		  __entry->gfn_b, __entry->status)
);

TRACE_EVENT(vmbeam_record,
	TP_PROTO(u64 id, u32 domid_a, u32 domid_b, u64 swapped, int error),
	TP_ARGS(id, domid_a, domid_b, swapped, error),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u32, domid_a)
		__field(u32, domid_b)
		__field(u64, swapped)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->domid_a = domid_a;
		__entry->domid_b = domid_b;
		__entry->swapped = swapped;
		__entry->error = error;
	),
	TP_printk("id=%llu domid_a=%u domid_b=%u swapped=%llu error=%d",
		  __entry->id, __entry->domid_a, __entry->domid_b,
		  __entry->swapped, __entry->error)
);

#endif /* __VMBEAM_TRACE_H__ */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE vmbeam_trace
#include <trace/define_trace.h>
