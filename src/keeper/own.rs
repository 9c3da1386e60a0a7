//! [`Process::keep`]: a program that becomes its own keeper.
//!
//! Invariant: the program itself runs only in children of the keeper. This file knows whether this
//! process is the keeper or a child, and leaves the rest to the keeper.

use std::io;
use std::process::{ExitCode, Termination};

use crate::keeper::exit::KeeperExit;
use crate::process::Process;

/// The end of a program that keeps itself: either a child's, or the keeper's. If `main` returns
/// this value, it becomes the exit code of the process.
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
    /// The end of the keeper.
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
    /// Makes this process the [`Keeper`](crate::Keeper) of its own program. The keeper starts the
    /// same executable with the same arguments as its child, and only the child calls `program`.
    ///
    /// When the keeper gets USR2, it starts the executable that then has the program's name. When
    /// its process is ready, the one before it hands over its connections and ends. The keeper then
    /// replaces itself by that executable (`exec`), so no old code stays. Its process id and its
    /// children remain.
    ///
    /// [`Process::patience`], [`Process::restart_on`], [`Process::signals`] and
    /// [`Process::pid_file`] are the keeper's settings. The child gets this [`Process`], too,
    /// without the pid file.
    ///
    /// Send USR2 to the keeper alone. [`Process::pid_file`] writes the keeper's process id to a
    /// file. The children have the same name as the keeper. A child with
    /// [`Server::serve`](crate::Server::serve) dies of that signal, unless the child takes its
    /// signals from [`signals`](crate::signals). If a restart fails, the keeper logs the reason
    /// through the program's logger.
    ///
    /// Call this at the beginning of `main`, because the code in front of this call runs in the
    /// keeper, too. Start other threads later, because a signal that another thread takes in the
    /// moment of the `exec` could be lost. If a keeper has started this process already, the
    /// process is a child of that keeper.
    ///
    /// # Errors
    ///
    /// Returns the errors of `program` in a child, and those of [`Keeper::run`](crate::Keeper::run)
    /// in the keeper. Returns [`io::ErrorKind::Unsupported`] on other systems than Linux.
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

    /// Returns an error, because a keeper needs Linux.
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
