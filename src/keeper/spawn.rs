//! [`spawn`]: starts a process that becomes a program, with its own process id in LISTEN_PID.
//!
//! Invariant: until the child runs the program, it shares the memory of this process, as after
//! vfork(2). So the child only makes system calls, the thread that has started it waits, and no
//! signal handler runs in it. Sharing saves a copy of the page tables, for which the first client
//! would wait. This file does not look for the program, and does not put the kernel's refusal into
//! words.

use std::convert::Infallible;
use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process;
use std::ptr;
use std::slice;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::listen::passing::PID;

/// The program that a new child becomes.
pub(crate) struct Image {
    pub(crate) file: CString,
    pub(crate) words: Vec<CString>,
    /// The environment, as `NAME=VALUE`.
    pub(crate) variables: Vec<CString>,
    /// The child sets LISTEN_PID to its own process id.
    pub(crate) names_itself: bool,
    /// The descriptors that the child gets, each with its number there. In this process they have
    /// higher numbers than all of those, so the child overwrites none before it is copied.
    pub(crate) moves: Vec<(OwnedFd, RawFd)>,
}

/// Starts a child in a process group of its own, with no signal blocked or handled. Returns its
/// process id. The child gets TERM when the thread that has started it ends.
///
/// # Errors
///
/// Returns the kernel's error if the kernel refuses the program.
pub(crate) fn spawn(image: &Image) -> io::Result<Pid> {
    let mut listen_pid = [0; PID_LENGTH];
    listen_pid[..PID.len()].copy_from_slice(PID.as_bytes());
    listen_pid[PID.len()] = b'=';
    let listen_pid = listen_pid.as_mut_ptr();
    let own = image.names_itself.then_some(listen_pid.cast_const().cast());
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let end = [ptr::null()];
    let moves = image.moves.iter().map(|(descriptor, number)| (descriptor.as_raw_fd(), *number));
    let mut start = Start {
        file: image.file.as_ptr(),
        words: [&pointers(&image.words), &end[..]].concat(),
        variables: pointers(&image.variables).into_iter().chain(own).chain(end).collect(),
        digits: listen_pid.wrapping_add(PID.len() + 1),
        moves: moves.collect(),
        parent: process::id(),
        error: 0,
    };
    // The child has this process's signal handlers until it runs the program. A handler that ran
    // before that would act on the memory of this process.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = start.in_child();
    before.thread_set_mask()?;
    started
}

/// The data of a new child until it runs the program. The pointers lead to an [`Image`].
struct Start {
    file: *const c_char,
    /// The arguments, and a null pointer.
    words: Vec<*const c_char>,
    /// The environment, and a null pointer.
    variables: Vec<*const c_char>,
    /// The place for the digits of LISTEN_PID: ten at most, and then a zero byte.
    digits: *mut u8,
    /// The number of each descriptor in this process, and its number in the child.
    moves: Vec<(RawFd, RawFd)>,
    parent: u32,
    /// The reason why the child could not begin.
    error: i32,
}

/// `LISTEN_PID=`, room for the digits, and a zero byte.
const PID_LENGTH: usize = PID.len() + 1 + DIGITS + 1;

/// The largest number of digits in a process id.
const DIGITS: usize = 10;

/// The size of the child's stack until it runs the program, in bytes.
const STACK: usize = 32 * 1024;

#[allow(
    unsafe_code,
    reason = "LISTEN_PID needs code between the start of a process and its program"
)]
impl Start {
    /// Starts a child, and waits until it runs the program or has failed.
    fn in_child(&mut self) -> io::Result<Pid> {
        let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
        let top = stack.as_mut_ptr().wrapping_add(stack.capacity());
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the kernel suspends this thread until the child has left its stack and this value
        // for good (CLONE_VFORK). `begin` needs less than `STACK` bytes, and the stack grows down.
        let pid = unsafe { libc::clone(begin, top.cast(), flags, ptr::from_mut(self).cast()) };
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a child that could not begin has written the value, which the compiler does not
        // see.
        match unsafe { ptr::read_volatile(&raw const self.error) } {
            0 => Ok(pid),
            error => {
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(io::Error::from_raw_os_error(error))
            }
        }
    }

    /// Becomes the program. Returns only if that fails.
    fn run(&mut self) -> io::Result<Infallible> {
        for (from, to) in &self.moves {
            // SAFETY: the system call takes two numbers. The copy does not close on exec.
            if unsafe { libc::dup2(*from, *to) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        reset_signals()?;
        // SAFETY: the system calls take no pointers.
        if unsafe {
            libc::setpgid(0, 0) == -1
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == -1
                || libc::getppid().unsigned_abs() != self.parent
        } {
            // The parent is another one, because the keeper has ended meanwhile.
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        // SAFETY: `spawn` has room for `DIGITS` bytes there, and waits.
        let place = unsafe { slice::from_raw_parts_mut(self.digits, DIGITS) };
        write_digits(place, process::id());
        let (words, variables) = (self.words.as_ptr(), self.variables.as_ptr());
        // SAFETY: the file and each string end with a zero byte, and each list with a null pointer.
        // `spawn` owns all of them, and waits. The call returns only if it has failed.
        unsafe { libc::execve(self.file, words, variables) };
        Err(io::Error::last_os_error())
    }
}

/// Runs first in a child. Returns the exit code of a child that could not begin.
#[allow(unsafe_code, reason = "the kernel calls it with a pointer")]
extern "C" fn begin(start: *mut c_void) -> c_int {
    // SAFETY: the pointer leads to the value of `Start::in_child`, which waits and does not touch
    // the value.
    let start = unsafe { &mut *start.cast::<Start>() };
    let Err(error) = start.run();
    start.error = error.raw_os_error().unwrap_or(libc::ECHILD);
    1
}

/// Unblocks all signals, and removes all handlers. Ignored signals stay ignored, as `nohup` wants,
/// apart from SIGPIPE, which the standard library ignores in this process.
#[allow(unsafe_code, reason = "only system calls may be made in a child that shares memory")]
fn reset_signals() -> io::Result<()> {
    for signal in 1..=SIGNALS {
        // SAFETY: zero bytes are a valid value of this C struct.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: the struct outlives both system calls. For a number that has no meaning or cannot
        // be handled, they return an error.
        unsafe {
            if libc::sigaction(signal, ptr::null(), &raw mut action) == 0
                && (action.sa_sigaction != libc::SIG_IGN || signal == libc::SIGPIPE)
                && action.sa_sigaction != libc::SIG_DFL
            {
                action.sa_sigaction = libc::SIG_DFL;
                action.sa_flags = 0;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    }
    // The mask is emptied last, because a signal that has come meanwhile is for the child alone.
    Ok(SigSet::empty().thread_set_mask()?)
}

/// The highest number of a signal, apart from the real-time signals, for which the library has no
/// handler.
const SIGNALS: i32 = 31;

/// Writes the digits of a number, and leaves the zero byte after them.
fn write_digits(place: &mut [u8], mut number: u32) {
    let mut digits = [0; DIGITS];
    let mut length = 0;
    loop {
        digits[length] = b'0' + (number % 10) as u8;
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    for (byte, digit) in place.iter_mut().zip(digits[..length].iter().rev()) {
        *byte = *digit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_digits() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            let mut place = [0; 11];
            write_digits(&mut place, number);
            assert_eq!(String::from_utf8_lossy(&place).trim_end_matches('\0'), number.to_string());
        }
    }
}
