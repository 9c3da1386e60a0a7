//! [`spawn`]: starts a process that becomes a program, with LISTEN_PID right.
//!
//! Invariant: until the child runs the program it shares the memory of this process, as after
//! vfork(2). So it only makes system calls, the thread that has started it waits, and no signal is
//! heard in it. This saves a copy of the page tables, for which the first client would wait. Does
//! not look for the program, and does not say in words why the kernel has refused it.

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

/// The next step of a new child.
pub(crate) struct Image {
    pub(crate) file: CString,
    pub(crate) words: Vec<CString>,
    /// The environment, as `NAME=VALUE`.
    pub(crate) variables: Vec<CString>,
    /// LISTEN_PID is to be the child's own process id.
    pub(crate) names_itself: bool,
    /// The descriptors that the child gets, each with its number there. They are above all of these
    /// numbers here, so that none is overwritten before it is copied.
    pub(crate) moves: Vec<(OwnedFd, RawFd)>,
}

/// Starts a child in a process group of its own, with no signal blocked or handled. It gets TERM
/// when the thread that has started it ends. Returns its process id.
///
/// # Errors
///
/// Returns what the kernel says if it refuses the program.
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
    // The child has this process's handlers until it runs the program. A signal that comes before
    // would be heard here.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = start.in_child();
    before.thread_set_mask()?;
    started
}

/// The begin of a child. The pointers lead to an [`Image`].
struct Start {
    file: *const c_char,
    /// The arguments, and a null pointer.
    words: Vec<*const c_char>,
    /// The environment, and a null pointer.
    variables: Vec<*const c_char>,
    /// Where the digits of LISTEN_PID go: ten at most, and a zero byte behind them.
    digits: *mut u8,
    /// The number of each descriptor, and the one that it gets.
    moves: Vec<(RawFd, RawFd)>,
    parent: u32,
    /// The reason why the child could not begin.
    error: i32,
}

/// `LISTEN_PID=`, room for the digits, and a zero byte.
const PID_LENGTH: usize = PID.len() + 1 + DIGITS + 1;

/// How many digits a process id has at most.
const DIGITS: usize = 10;

/// The child's stack until it runs the program.
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
        // SAFETY: the child has written it, if it could not begin, behind the compiler's back.
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
            // SAFETY: a system call on two numbers. The copy does not close on exec.
            if unsafe { libc::dup2(*from, *to) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        reset_signals()?;
        // SAFETY: system calls without pointers.
        if unsafe {
            libc::setpgid(0, 0) == -1
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == -1
                || libc::getppid().unsigned_abs() != self.parent
        } {
            // The last one: the keeper has ended meanwhile.
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        // SAFETY: `spawn` has room for so many there, and waits.
        let place = unsafe { slice::from_raw_parts_mut(self.digits, DIGITS) };
        write_digits(place, process::id());
        let (words, variables) = (self.words.as_ptr(), self.variables.as_ptr());
        // SAFETY: the file and each string end with a zero byte, and each list with a null pointer.
        // `spawn` has all of them, and waits. The call returns only if it has failed.
        unsafe { libc::execve(self.file, words, variables) };
        Err(io::Error::last_os_error())
    }
}

/// The first function of a child. Its result is the exit code of one that could not begin.
#[allow(unsafe_code, reason = "the kernel calls it with a pointer")]
extern "C" fn begin(start: *mut c_void) -> c_int {
    // SAFETY: the value of `Start::in_child`, which waits meanwhile and does not touch it.
    let start = unsafe { &mut *start.cast::<Start>() };
    let Err(error) = start.run();
    start.error = error.raw_os_error().unwrap_or(libc::ECHILD);
    1
}

/// Leaves no signal blocked and none handled. Those that are ignored stay so, as `nohup` wants. Only
/// SIGPIPE does not, which the standard library has ignored.
#[allow(unsafe_code, reason = "only system calls may be made in a child that shares memory")]
fn reset_signals() -> io::Result<()> {
    for signal in 1..=SIGNALS {
        // SAFETY: all zeroes is a valid value of this C struct.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: system calls on a struct that lives as long as they take. Numbers without a
        // meaning, and those that cannot be handled, are errors.
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
    // Only now, because a signal that has come meanwhile is for the child alone.
    Ok(SigSet::empty().thread_set_mask()?)
}

/// The numbers of the signals without the real-time ones, for which the library has no handler.
const SIGNALS: i32 = 31;

/// Writes a number, and leaves the zero byte behind it.
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
