// SPDX-License-Identifier: GPL-2.0-only

//! Writes that nobody sleeps for. A task that is in a system call until its write is done keeps
//! its guest from being suspended before that, so its disk has nothing to do then; a database's
//! writes, and those of a page cache, are still on their way.
//!
//! By the kernel's own asynchronous I/O (`include/uapi/linux/aio_abi.h`), for which there is no
//! crate that is kept: glibc's has threads that sleep, and io_uring is forbidden in many
//! containers, where the tests run as well.

use std::fs::File;
use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::libc;

/// Bytes of a write.
pub const BLOCK: usize = 4096;

/// Direct access wants its memory aligned.
#[repr(align(4096))]
#[derive(Debug)]
pub struct Block(pub [u8; BLOCK]);

impl Block {
    pub fn new() -> Box<Self> {
        Box::new(Block([0; BLOCK]))
    }
}

/// `IOCB_CMD_PWRITE`.
const PWRITE: u16 = 1;

/// `struct iocb`, little endian.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// Writes one block after the other to a file.
#[derive(Debug)]
pub struct Writer {
    context: libc::c_ulong,
    file: File,
    block: Box<Block>,
    /// The kernel reads the block.
    is_busy: bool,
}

impl Writer {
    pub fn new(file: File) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: it writes one word, which outlives the call.
        Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
        Ok(Self {
            context,
            file,
            block: Block::new(),
            is_busy: false,
        })
    }

    /// Begin to write what is put into the block, when the write before is done.
    pub fn start(&mut self, offset: u64, fill: impl FnOnce(&mut Block)) -> io::Result<()> {
        self.finish()?;
        fill(&mut self.block);
        let mut request = Request {
            opcode: PWRITE,
            fd: self.file.as_raw_fd() as u32,
            buffer: ptr::from_ref(&*self.block) as u64,
            bytes: size_of_val(&self.block.0) as u64,
            offset: offset as i64,
            ..Request::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: the kernel copies the list and the request before it returns, and it reads the
        // block until `finish()` or `drop()` has waited for that; nobody writes to it before.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr())
        })?;
        self.is_busy = true;
        Ok(())
    }

    /// Wait until it is done. This can be interrupted, so that a guest can be suspended in it.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.is_busy {
            return Ok(());
        }
        let mut event = Event::default();
        loop {
            // SAFETY: it writes one event, which outlives the call; there is no limit of time.
            let done = Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    1,
                    1,
                    &raw mut event,
                    ptr::null::<libc::timespec>(),
                )
            });
            match done {
                Ok(1) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.is_busy = false;
        match event.result {
            n if n == BLOCK as i64 => Ok(()),
            n if n < 0 => Err(io::Error::from_raw_os_error(-n as i32)),
            n => Err(io::Error::other(format!("{n} bytes were written"))),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY: it waits for what is on its way, so that the block can go.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
