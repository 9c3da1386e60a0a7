//! [`Listener`]: accepts connections, and closes without losing a client.
//!
//! Invariant: a listener is closed only after every connection in the kernel's queue was taken
//! (rule S4), unless a successor accepts from its socket (rule S5). Accepting never fails for good,
//! because this file classes errors, backs off and logs (rule S18). It does not know what a
//! connection is used for.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::{AsyncRead, AsyncWrite, Stream, future};
use socket2::SockRef;

use crate::address::Address;
use crate::error::reason;
use crate::listen::bound::{Bound, is_of_no_listener, is_of_one_connection};
use crate::listen::ownership::Ownership;
use crate::listen::passing::Passed;
use crate::listen::source::{Accepted, Source};
use crate::listen::wrapper::{Handshakes, Wrapper};
use crate::lock::lock;
use crate::restart::message::Brought;
use crate::restart::parent::Parent;
use crate::stream::connection::Connection;

/// A socket to which clients connect, or another source of connections.
///
/// All clones are the same listener, and a close closes all of them. One server at a time accepts from a
/// listener. A clone is useful for [`ready`](crate::ready), and for the count of
/// [`Listener::failed_handshakes`].
///
/// # Examples
///
/// ```
/// use smol_graceful::{Address, Listener};
///
/// let listener = Listener::bind("127.0.0.1:0")?;
/// assert!(matches!(listener.address(), Address::Tcp(addr) if addr.port() != 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    /// Turns an accepted connection into the stream that the server serves.
    wrapper: Option<Arc<Wrapper>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", self.address())
            .field("is_wrapped", &self.wrapper.is_some())
            .finish_non_exhaustive()
    }
}

/// The state that clones of a listener share.
struct Shared {
    address: Address,
    /// The facts about a passed socket, or `None` if this program has bound the socket.
    passed: Option<Passed>,
    /// The keeper's number of a listener that this process has bound itself.
    number: OnceLock<u32>,
    bound: Mutex<Bound>,
    ownership: Mutex<Ownership>,
    /// The SYN filter holds handshakes back before the close.
    syn_filter: bool,
    handshakes: Arc<Handshakes>,
    /// The log has reported exhaustion, and the queue has not been empty since.
    is_exhausted: AtomicBool,
}

impl Listener {
    pub(crate) fn new(
        address: Address,
        bound: Bound,
        passed: Option<Passed>,
        syn_filter: bool,
    ) -> Self {
        let ownership = match &passed {
            None => Ownership::Own,
            Some(passed) if passed.is_own => Ownership::Keepers,
            Some(_) => Ownership::Foreign,
        };
        let shared = Shared {
            handshakes: Arc::new(Handshakes::of(address.clone())),
            address,
            passed,
            number: OnceLock::new(),
            bound: Mutex::new(bound),
            ownership: Mutex::new(ownership),
            syn_filter,
            is_exhausted: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), wrapper: None }
    }

    /// Takes connections from a source of the program's own, such as a pipe in a test.
    ///
    /// When the stream ends, no further connection comes, but the server goes on until it is
    /// stopped. The server treats errors of the stream like those of `accept`. It skips the error
    /// of a single connection, and after any other error it tries again later, from 5 ms up to 1 s.
    ///
    /// The stream should return each connection as soon as it is there, so that a stop loses no
    /// client. Slow work for each connection (a handshake, the head of the PROXY protocol) belongs
    /// in [`Listener::wrap`], because the server counts a connection only when the stream has
    /// returned it, and does not know of connections on which the stream still works. At the stop
    /// the server polls the stream until it returns `Pending`, and then drops it with everything in
    /// it.
    ///
    /// A source has no queue that the server could look at. If all of [`Limits::connections`] are
    /// taken, the source's clients wait until a connection has ended, even if some are idle. The
    /// program sets the options of its sockets, such as keep-alive probes, itself.
    ///
    /// If the stream panics, the server closes its listener, logs the panic, and stops, as by
    /// [`Shutdown::stop`]. [`Server::serve`] and [`run`] finish the requests in flight, and then
    /// return an error that names the panic and the line that has called this function.
    ///
    /// [`Limits::connections`]: crate::Limits::connections
    /// [`Shutdown::stop`]: crate::Shutdown::stop
    /// [`Server::serve`]: crate::Server::serve
    /// [`run`]: crate::run
    ///
    /// # Examples
    ///
    /// An accept loop of the program's own:
    ///
    /// ```
    /// use futures_lite::{StreamExt, stream};
    /// use smol::Async;
    /// use smol_graceful::{Connection, Listener};
    /// use std::net::TcpListener;
    ///
    /// # smol::block_on(async {
    /// let socket = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
    /// let connections = stream::unfold(socket, |socket| async {
    ///     let accepted = socket.accept().await.map(|(stream, _)| Connection::from(stream));
    ///     Some((accepted, socket))
    /// });
    /// let listener = Listener::from_stream(connections);
    /// # drop(listener);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    ///
    /// A pipe:
    ///
    /// ```
    /// use futures_lite::stream;
    /// use smol_graceful::{Connection, Listener};
    ///
    /// let (client, connection) = Connection::pair();
    /// let listener = Listener::from_stream(stream::once(Ok(connection)));
    /// # drop((client, listener));
    /// ```
    #[track_caller]
    pub fn from_stream(
        connections: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    ) -> Self {
        Self::new(Address::Other, Bound::Source(Source::new(connections)), None, false)
    }

    /// Lets `wrap` turn each accepted connection into the stream on which the server speaks HTTP,
    /// above all for TLS.
    ///
    /// `wrap` runs in the connection's own task, begins with the client's first byte, and has 10 s,
    /// or [`Limits::head_timeout`] if that is shorter. The server has counted the connection
    /// before, so a stop waits for `wrap`, and an abort names a connection that it cuts in `wrap`.
    /// A second call of this method replaces the first.
    ///
    /// If `wrap` fails, panics or takes too long, the server ends the connection.
    /// [`Listener::failed_handshakes`] counts such connections. The server logs each of them at the
    /// level `debug`. At the level `info`, the server logs their number and the last of them, at
    /// most once a second.
    ///
    /// If `wrap` returns the [`Connection`] that it was given, the server serves the plain socket,
    /// without any cost. `wrap` may also set the address of the client by
    /// [`Connection::from_peer`], if a proxy in front has sent that address. Requests, the log and
    /// the outcome then name that peer. `examples/proxy_protocol.rs` does both. Only a
    /// [`Connection`] that `wrap` returns names a peer. With TLS behind such a proxy, return
    /// `Connection::new(tls_stream).from_peer(peer)`.
    ///
    /// Connections of a listener with a wrapper do not go to a successor, so a restart ends them
    /// like any stop.
    ///
    /// [`Limits::head_timeout`]: crate::Limits::head_timeout
    ///
    /// # Examples
    ///
    /// `examples/tls.rs` uses rustls. In short:
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// # struct Acceptor;
    /// # impl Acceptor { async fn accept<T>(&self, stream: T) -> std::io::Result<T> { Ok(stream) } }
    /// # let acceptor = std::sync::Arc::new(Acceptor);
    /// let listener = Listener::bind("127.0.0.1:0")?.wrap(move |connection| {
    ///     let acceptor = acceptor.clone();
    ///     async move { acceptor.accept(connection).await }
    /// });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn wrap<W, F, C>(mut self, wrap: W) -> Self
    where
        W: Fn(Connection) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.wrapper = Some(Arc::new(Wrapper::new(wrap, self.shared.handshakes.clone())));
        self
    }

    /// Returns the number of connections on which [`Listener::wrap`] has failed, because it
    /// returned an error, panicked, or took too long. Clones of a listener share one count.
    ///
    /// A client that leaves before it has sent a byte does not count.
    ///
    /// # Examples
    ///
    /// For a gauge of the program's own:
    ///
    /// ```
    /// use smol_graceful::{Listener, Server};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # async fn handshake<T>(stream: T) -> std::io::Result<T> { Ok(stream) }
    /// let listener = Listener::bind("127.0.0.1:0")?.wrap(handshake);
    /// let gauge = listener.clone();
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// smol::block_on(server.serve([listener]))?;
    /// println!("{} handshakes have failed", gauge.failed_handshakes());
    /// # assert_eq!(gauge.failed_handshakes(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.handshakes.failed()
    }

    /// Returns `true` if both are clones of one listener.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns `true` if connections of this listener can come from a predecessor and go to a
    /// successor. With a wrapper they cannot, because it would begin anew in the middle of a
    /// stream.
    pub(crate) fn can_move_connections(&self) -> bool {
        self.wrapper.is_none()
    }

    /// Returns the keeper's number of the listener, if the keeper knows it.
    pub(crate) fn number(&self) -> Option<u32> {
        let offered = self.shared.passed.as_ref().and_then(|passed| passed.number);
        offered.or_else(|| self.shared.number.get().copied())
    }

    /// Gives the listener the number by which the keeper will know it.
    pub(crate) fn set_number(&self, number: u32) {
        let _ = self.shared.number.set(number);
    }

    /// Returns the wrapper that [`Listener::wrap`] has set.
    pub(crate) fn wrapper(&self) -> Option<&Arc<Wrapper>> {
        self.wrapper.as_ref()
    }

    /// Returns the address of the listener. The port 0 is replaced by the kernel's choice, and
    /// `:8082` and `fd:0` by the socket's own address.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listen;
    ///
    /// let listener = "127.0.0.1:0".listen()?;
    /// let address = listener.address().to_string();
    /// assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Returns the name of an inherited socket in LISTEN_FDNAMES (systemd's `FileDescriptorName=`),
    /// or `None` for a socket without a name or one that this process has bound itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// let inherited = Listener::inherited()?;
    /// let admin = inherited.into_iter().find(|listener| listener.name() == Some("admin"));
    /// // When started by hand, the program binds a socket of its own, which has no name.
    /// let admin = admin.map_or_else(|| Listener::bind("127.0.0.1:0"), Ok)?;
    /// assert_eq!(admin.name(), None);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.shared.passed.as_ref()?.name.as_deref()
    }

    /// Returns `true` if this process was started with the socket, and `false` if it has bound the
    /// socket itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// for listener in Listener::inherited()? {
    ///     assert!(listener.is_inherited());
    /// }
    /// let own = Listener::bind("127.0.0.1:0")?;
    /// assert!(!own.is_inherited());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn is_inherited(&self) -> bool {
        self.shared.passed.is_some()
    }

    /// Returns the reason for the close, if the source of the listener has panicked.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.bound().failure().map(io::Error::other)
    }

    /// Returns `true` if a successor has taken over.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.ownership().is_handed_over()
    }

    /// Passes the next connection to `take`. Returns `false` if the listener is closed, and then
    /// [`Listener::failure`] may have the reason.
    ///
    /// If no client is there, drops `take`, and returns when there may be one.
    ///
    /// `take` runs before the listener can be closed, so it can count every connection (rule S1).
    /// This method never fails for good (rule S18). It skips the error of one connection. If the
    /// process lacks descriptors or memory, it tries again after 5 ms up to 1 s, and logs that once
    /// an episode.
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    pub(crate) async fn accept(&self, take: impl FnOnce(Accepted)) -> bool {
        let mut take = Some(take);
        let mut pause = Duration::ZERO;
        loop {
            match poll_fn(|cx| self.poll_accept(cx, &mut take)).await {
                Ok(is_open) => return is_open,
                Err(error) => pause = self.wait(pause, &error).await,
            }
            // A source that returns only errors must not keep other tasks from their turn.
            future::yield_now().await;
        }
    }

    /// Waits until a client is in the queue, and leaves the client there. Without a socket, the
    /// future stays pending, because only a socket has a queue.
    pub(crate) async fn has_client(&self) {
        poll_fn(|cx| self.bound().poll_queue(cx)).await;
    }

    /// Takes every connection in the kernel's queue, and closes (rule S4). If a successor accepts
    /// from the socket, leaves the queue to it (rule S5).
    ///
    /// If no descriptors are left, waits for some, because the queue would be lost otherwise. Does
    /// not wake a task that waits in [`Listener::accept`].
    pub(crate) async fn close(&self, mut take: impl FnMut(Accepted)) {
        self.remove_file();
        // If another process has the socket, the filter would hold back its handshakes for good.
        if self.shared.syn_filter && self.is_alone() && self.hold_back_handshakes() {
            Timer::after(HANDSHAKES).await;
        }
        let mut pause = Duration::ZERO;
        while let Err(error) = self.empty_queue(&mut take) {
            pause = self.wait(pause, &error).await;
        }
        self.let_go();
    }

    /// Takes the queued connections for the last time, and closes. Does nothing if the listener is
    /// closed.
    ///
    /// # Errors
    ///
    /// Returns the reason why clients are left in the queue, and so are lost.
    pub(crate) fn close_at_once(&self, take: impl FnMut(Accepted)) -> io::Result<()> {
        let emptied = self.empty_queue(take);
        let has_queue = self.bound().socket().is_some();
        self.let_go();
        // An error of a source does not mean that a client is lost.
        if has_queue { emptied } else { Ok(()) }
    }

    /// Closes without a look at the queue.
    pub(crate) fn let_go(&self) {
        self.remove_file();
        self.bound().close();
    }

    /// Removes the file of a Unix socket that no other process has, so that no client joins the
    /// queue any more. The file of any other socket is checked after the close, and removed if it
    /// is stale.
    fn remove_file(&self) {
        if self.is_alone() {
            if let Some(file) = self.bound().file() {
                file.remove();
            }
        }
    }

    fn is_alone(&self) -> bool {
        let has_let_go = || Parent::of_this_process().is_none_or(Parent::read_whether_let_go);
        self.ownership().is_alone(has_let_go)
    }

    /// Lets no further handshake begin. Handshakes under way go on, and a client that is held back
    /// tries again in a second. Returns `false` if the kernel has refused the filter.
    #[cfg(target_os = "linux")]
    fn hold_back_handshakes(&self) -> bool {
        use socket2::SockFilter;
        /// A packet filter that drops TCP segments with SYN and without ACK.
        const NO_SYN: [SockFilter; 5] = [
            SockFilter::new(0x30, 0, 0, 13),       // load the byte of the flags
            SockFilter::new(0x54, 0, 0, 0x12),     // keep SYN and ACK
            SockFilter::new(0x15, 0, 1, 0x02),     // SYN alone?
            SockFilter::new(0x06, 0, 0, 0),        // drop
            SockFilter::new(0x06, 0, 0, u32::MAX), // pass
        ];
        let bound = self.bound();
        let Some(socket) = bound.socket() else { return false };
        let attached = SockRef::from(&socket).attach_filter(&NO_SYN);
        if let Err(error) = &attached {
            log::warn!("no SYN filter on {}: {}", self.address(), reason(error));
        }
        attached.is_ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn hold_back_handshakes(&self) -> bool {
        false
    }

    /// Takes every connection in the kernel's queue, unless a successor does (rule S5). Ends even
    /// under a flood of new clients.
    ///
    /// # Errors
    ///
    /// Returns the error that has kept this process from taking all connections.
    pub(crate) fn empty_queue(&self, mut take: impl FnMut(Accepted)) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < FLOOD && !self.is_handed_over() {
            let mut bound = self.bound();
            match bound.poll_accept(&mut Context::from_waker(Waker::noop())) {
                // The lock is held during `take`, as in `accept`.
                Poll::Ready(Some(Ok(accepted))) => take(accepted),
                Poll::Pending | Poll::Ready(None) => return Ok(()),
                Poll::Ready(Some(Err(error))) if is_of_one_connection(&error) => {}
                Poll::Ready(Some(Err(error))) if is_of_no_listener(&error) => return Ok(()),
                Poll::Ready(Some(Err(error))) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes the next connection to `take`. Returns `false` if the listener is closed. Drops
    /// `take` together with `Pending`, and so is ready at the next call.
    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        take: &mut Option<impl FnOnce(Accepted)>,
    ) -> Poll<io::Result<bool>> {
        let Some(taker) = take.take() else { return Poll::Ready(Ok(true)) };
        let mut bound = self.bound();
        Poll::Ready(match bound.poll_accept(cx) {
            Poll::Pending => {
                self.shared.is_exhausted.store(false, Ordering::Relaxed);
                return Poll::Pending;
            }
            Poll::Ready(None) => Ok(false),
            Poll::Ready(Some(Ok(accepted))) => {
                taker(accepted);
                Ok(true)
            }
            Poll::Ready(Some(Err(error))) => {
                *take = Some(taker);
                Err(error)
            }
        })
    }

    /// Waits for longer than `pause` if `error` of `accept` concerns the listener, and returns that
    /// time. Does not wait if `error` concerns one connection.
    async fn wait(&self, pause: Duration, error: &io::Error) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_secs(1);
        if is_of_one_connection(error) {
            return pause;
        }
        if !self.shared.is_exhausted.swap(true, Ordering::Relaxed) {
            let reason = if is_of_no_listener(error) {
                "another process has shut the socket down".into()
            } else {
                reason(error)
            };
            log::error!("cannot accept on {}, trying again: {reason}", self.address());
        }
        let pause = (pause * 2).clamp(SHORTEST, LONGEST);
        Timer::after(pause).await;
        pause
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        lock(&self.shared.bound)
    }

    /// Locks and returns the state of which processes have the socket.
    pub(crate) fn ownership(&self) -> MutexGuard<'_, Ownership> {
        lock(&self.shared.ownership)
    }
}

/// The part of a listener that a keeper needs.
impl Listener {
    /// Returns a copy of the socket for the keeper, with the facts that the keeper needs. Returns
    /// `None` if the listener has no socket, or is closed.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no descriptors left.
    pub(crate) fn bring(&self) -> io::Result<Option<(OwnedFd, Brought)>> {
        let bound = self.bound();
        let Some(socket) = bound.socket() else { return Ok(None) };
        let file = bound.file().map(|file| file.path().to_owned());
        let brought = Brought { is_own: self.ownership().is_own(), file };
        Ok(Some((socket.try_clone_to_owned()?, brought)))
    }
}

/// The time for handshakes under way, between the SYN filter and the close.
const HANDSHAKES: Duration = Duration::from_millis(50);

/// The longest time for which the queue is emptied before the close, if clients keep refilling it.
const FLOOD: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use crate::address::Address;
    use crate::listen::Listen;
    use futures_lite::future::block_on;
    use std::net::TcpStream;

    /// Rule S4: the listener is closed only after the queued connections were taken.
    #[test]
    fn close_takes_the_queue() {
        let listener = "127.0.0.1:0".listen().unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let mut taken = 0;
        block_on(listener.close(|_| taken += 1));
        assert_eq!(taken, clients.len());
        assert!(TcpStream::connect(addr).is_err());
        assert!(!block_on(listener.accept(|_| unreachable!())));
    }
}
