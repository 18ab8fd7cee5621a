/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Between two worlds: Xen's code finds its CPU's data at the end of the stack
 * that it runs on, and keeps that stack aligned to 8 bytes only.
 */
	.text

/* long shim_on_stack(void *top, fn, a, b, c, d): call fn on Xen's stack */
	.globl	shim_on_stack
	.hidden	shim_on_stack
shim_on_stack:
	push	%rbp
	mov	%rsp, %rbp
	mov	%rdi, %rsp
	mov	%rsi, %rax
	mov	%rdx, %rdi
	mov	%rcx, %rsi
	mov	%r8, %rdx
	mov	%r9, %rcx
	call	*%rax
	mov	%rbp, %rsp
	pop	%rbp
	ret

/* unsigned long shim_event(kind, a, b, c, d): call the harness, aligned */
	.globl	shim_event
	.hidden	shim_event
shim_event:
	push	%rbp
	mov	%rsp, %rbp
	and	$-16, %rsp
	call	*shim_handler(%rip)
	mov	%rbp, %rsp
	pop	%rbp
	ret

/*
 * The forms of thunks that Xen patches in on CPUs that need no mitigation by
 * thunks.
 */
	.irp	reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	.globl	__x86_indirect_thunk_\reg
	.hidden	__x86_indirect_thunk_\reg
__x86_indirect_thunk_\reg:
	jmp	*%\reg
	.endr

	.globl	__x86_return_thunk
	.hidden	__x86_return_thunk
__x86_return_thunk:
	ret

	.section .note.GNU-stack, "", @progbits
