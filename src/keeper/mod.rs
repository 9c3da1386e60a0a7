//! [`Keeper`]: a small parent process that keeps the listening sockets, and starts one generation
//! of a program after the other.
//!
//! Invariant: the process id never changes, and the sockets stay open while a child is replaced,
//! starts, or has died. The keeper serves no request itself. `policy.rs` decides, `running.rs`
//! carries out, and each of the other files does one part of that.

#[cfg(target_os = "linux")]
mod answers;
#[cfg(target_os = "linux")]
mod child;
mod exit;
#[cfg(target_os = "linux")]
mod manager;
#[cfg(target_os = "linux")]
mod notes;
#[cfg(target_os = "linux")]
mod notify;
mod own;
#[cfg(target_os = "linux")]
mod pid_lock;
#[cfg(target_os = "linux")]
mod policy;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod resume;
#[cfg(target_os = "linux")]
mod running;
mod settings;
#[cfg(target_os = "linux")]
mod sockets;
#[cfg(target_os = "linux")]
mod spawn;
#[cfg(target_os = "linux")]
mod start;
#[cfg(target_os = "linux")]
mod succession;
#[cfg(target_os = "linux")]
mod takeover;

use std::io;

pub use exit::KeeperExit;
pub use own::Kept;
pub use settings::{Keeper, ReadyWhen};

impl Keeper {
    /// Keeps the program until a signal stops the keeper, or the first process fails. Blocks the
    /// thread.
    ///
    /// Call this early, on the main thread. Children get TERM when the thread that has called this
    /// ends, and signals are handled from before the first address is bound. The only thread that
    /// the keeper starts is async-io's. The logger must never block, as in
    /// [`Process::run`](crate::Process::run).
    ///
    /// # Errors
    ///
    /// Returns one line that says why the keeper could not begin: an address on which it cannot
    /// listen, a program that it cannot start, a pid file that another keeper has
    /// ([`io::ErrorKind::AlreadyExists`]), or settings that make no sense
    /// ([`io::ErrorKind::InvalidInput`]). Returns [`io::ErrorKind::TimedOut`] if the first process
    /// was not ready in time, and [`io::ErrorKind::Unsupported`] on other systems than Linux. A
    /// first process that ends before it is ready is not an error, and the keeper ends with the
    /// exit code of that process.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use smol_graceful::{Keeper, KeeperExit};
    ///
    /// fn main() -> std::io::Result<KeeperExit> {
    ///     Keeper::new(["python3", "server.py"]).listen(":8082".parse()?).run()
    /// }
    /// ```
    pub fn run(self) -> io::Result<KeeperExit> {
        #[cfg(target_os = "linux")]
        return start::run(self);
        #[cfg(not(target_os = "linux"))]
        return Err(unsupported());
    }
}

#[cfg(not(target_os = "linux"))]
fn unsupported() -> io::Error {
    let message = "a keeper needs Linux; run the program without one, and let the service manager \
                   restart it";
    io::Error::new(io::ErrorKind::Unsupported, message)
}
