//! [`Process::keep`]: a program that becomes its own keeper.
//!
//! Invariant: the program itself runs in children of the keeper alone. Knows which of the two this
//! process is, and leaves the rest to the keeper.

use std::io;
use std::process::{ExitCode, Termination};

use crate::keeper::exit::KeeperExit;
use crate::process::Process;

/// The end of a program that keeps itself: either a child's, or the keeper's. Returned from `main`,
/// it is the exit code.
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Kept, Outcome, Process, ServeError, Server};
///
/// fn main() -> Result<Kept<Outcome>, ServeError> {
///     Process::default().keep(|process| {
///         process.run(Server::new(|_request| async { Ok("okay") }), [":8082"])
///     })
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept<T> {
    /// The program's own result, in a child.
    Child(T),
    /// How the keeper has ended.
    Keeper(KeeperExit),
}

impl<T: Termination> Termination for Kept<T> {
    fn report(self) -> ExitCode {
        match self {
            Self::Child(result) => result.report(),
            Self::Keeper(exit) => exit.report(),
        }
    }
}

impl Process {
    /// Makes this process the [`Keeper`](crate::Keeper) of its own program: the same executable is
    /// started again as its child, with the same arguments, and `program` is called there alone.
    ///
    /// USR2, sent to the keeper, starts the executable that has the program's name by then. When
    /// its process is ready, the one before it hands over its connections and ends. The keeper then
    /// replaces itself by that executable (`exec`), so no old code stays. Its process id and its
    /// children remain.
    ///
    /// [`Process::patience`], [`Process::restart_on`], [`Process::signals`] and
    /// [`Process::pid_file`] are the keeper's settings. The child gets this value, too, without the
    /// pid file.
    ///
    /// Send USR2 to the keeper alone, whose process id [`Process::pid_file`] writes. Its children
    /// have the same name, and a child with [`Server::serve`](crate::Server::serve) dies of that
    /// signal. The keeper says through the logger of the program why a restart has failed.
    ///
    /// Call this at the beginning of `main`, before other threads are started, because what comes
    /// before runs in the keeper, too. A signal that another thread takes in the moment of the
    /// `exec` could be lost. A program that is started by a keeper already is its child.
    ///
    /// # Errors
    ///
    /// Returns the errors of `program` in a child, and those of [`Keeper::run`](crate::Keeper::run)
    /// in the keeper. [`io::ErrorKind::Unsupported`] on other systems than Linux.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use smol_graceful::{Kept, Outcome, Process, ServeError, Server};
    ///
    /// fn main() -> Result<Kept<Outcome>, ServeError> {
    ///     Process::default().pid_file("/run/app.pid").keep(|process| {
    ///         process.run(Server::new(|_request| async { Ok("okay") }), [":8082"])
    ///     })
    /// }
    /// ```
    #[cfg(target_os = "linux")]
    pub fn keep<T, E: From<io::Error>>(
        mut self,
        program: impl FnOnce(Self) -> Result<T, E>,
    ) -> Result<Kept<T>, E> {
        use crate::keeper::succession;

        if succession::is_child()? {
            self.pid_file = None;
            return program(self).map(Kept::Child);
        }
        Ok(Kept::Keeper(succession::keep(self)?))
    }

    /// Returns an error: a keeper needs Linux.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::Unsupported`].
    #[cfg(not(target_os = "linux"))]
    pub fn keep<T, E: From<io::Error>>(
        self,
        program: impl FnOnce(Self) -> Result<T, E>,
    ) -> Result<Kept<T>, E> {
        drop(program);
        Err(crate::keeper::unsupported().into())
    }
}
