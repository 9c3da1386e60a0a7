//! [`ServerExecutor`]: what runs the connections of a server.
//!
//! Invariant: the task of a connection is put into a box only for a function of the program's own,
//! because an idle connection has to stay small (rule W12). Knows nothing of connections, and
//! starts no thread, apart from those of smol's global executor.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use smol::Executor;

/// An executor for the connections of a server: see [`Server::executor`](crate::Server::executor).
///
/// # Examples
///
/// The three kinds of executors that smol programs have:
///
/// ```
/// use smol_graceful::{Server, ServerExecutor};
/// use std::sync::Arc;
///
/// static EXECUTOR: smol::Executor<'static> = smol::Executor::new();
///
/// let server = || Server::new(|_request| async { Ok("okay") });
/// let shared = server().executor(Arc::new(smol::Executor::new()));
/// let by_reference = server().executor(&EXECUTOR);
/// let global = server().executor(ServerExecutor::global());
/// # drop((shared, by_reference, global));
/// ```
#[derive(Clone)]
pub struct ServerExecutor(Kind);

#[derive(Clone)]
enum Kind {
    Shared(Arc<Executor<'static>>),
    Static(&'static Executor<'static>),
    Global,
    Function(Arc<Spawn>),
}

/// A function that spawns a future.
type Spawn = dyn Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync;

impl ServerExecutor {
    /// Returns smol's global executor, on which `smol::spawn` runs tasks.
    ///
    /// smol starts the executor's threads, one of them unless the environment variable
    /// `SMOL_THREADS` asks for more.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Server, ServerExecutor};
    ///
    /// let server = Server::new(|_request| async { Ok("okay") })
    ///     .executor(ServerExecutor::global());
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn global() -> Self {
        Self(Kind::Global)
    }

    /// Makes an executor of a function that spawns a future, for example on another runtime.
    ///
    /// The function must let the future run to its end. If the function drops a future or panics,
    /// that connection is closed. The server calls the function once for each connection, on the
    /// thread that polls [`Server::serve`](crate::Server::serve), so the function must not block.
    /// Each future is in a box, which the other executors do without.
    ///
    /// # Examples
    ///
    /// On the threads of tokio:
    ///
    /// ```
    /// use smol_graceful::{Server, ServerExecutor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let handle = runtime.handle().clone();
    /// let executor = ServerExecutor::from_fn(move |connection| drop(handle.spawn(connection)));
    /// let server = Server::new(|_request| async { Ok("okay") }).executor(executor);
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn from_fn(
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Function(Arc::new(spawn)))
    }

    /// Spawns `future`, which then runs to its end.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        match &self.0 {
            Kind::Shared(executor) => executor.spawn(future).detach(),
            Kind::Static(executor) => executor.spawn(future).detach(),
            Kind::Global => smol::spawn(future).detach(),
            Kind::Function(spawn) => {
                // Rule S17: a panic of the program's function closes this connection, and ends
                // nothing else. The panic hook has said where the panic was.
                let spawned = AssertUnwindSafe(|| spawn(Box::pin(future)));
                if catch_unwind(spawned).is_err() {
                    log::error!("the executor of the program has panicked at a connection");
                }
            }
        }
    }
}

impl From<Arc<Executor<'static>>> for ServerExecutor {
    fn from(executor: Arc<Executor<'static>>) -> Self {
        Self(Kind::Shared(executor))
    }
}

impl From<&'static Executor<'static>> for ServerExecutor {
    fn from(executor: &'static Executor<'static>) -> Self {
        Self(Kind::Static(executor))
    }
}

impl fmt::Debug for ServerExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Shared(_) => "ServerExecutor::Shared",
            Kind::Static(_) => "ServerExecutor::Static",
            Kind::Global => "ServerExecutor::Global",
            Kind::Function(_) => "ServerExecutor::Function",
        })
    }
}
