//! [`Listener`]: accept with error classes, lossless close.
//!
//! Invariant: a listener is closed only after every connection that the kernel had queued was taken
//! (rule S4), unless a successor accepts from its socket (rule S5).
//! Accepting never fails for good: errors are classed, backed off and logged here (rule S18). Does
//! not know what becomes of a connection.

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

/// A socket that clients connect to. Clones are the same socket: closed for one, closed for all.
/// One server at a time takes connections from it; a clone is there to be handed to `ready`.
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
    /// How this process has got the socket; `None` if this program has bound it.
    passed: Option<Passed>,
    /// The keeper's number of a listener that this process has brought.
    number: OnceLock<u32>,
    bound: Mutex<Bound>,
    ownership: Mutex<Ownership>,
    /// Handshakes are held back before the close.
    syn_filter: bool,
    handshakes: Arc<Handshakes>,
    /// Exhaustion was logged, and the queue has not been empty since: the episode goes on.
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
    /// The stream should bring each connection as soon as it has it, so that a stop loses no
    /// client. Work for each connection that takes time (a handshake, the head of the PROXY
    /// protocol) belongs into [`Listener::wrap`], because the server counts a connection only when
    /// the stream has brought it, and does not know of connections on which the stream still works.
    /// At the stop the server polls the stream until it returns `Pending`, and then drops it with
    /// everything in it.
    ///
    /// A source has no queue that the server could look at. If the server serves
    /// [`Limits::connections`], the source's clients wait until one of those connections has ended,
    /// even if some are idle. The program sets the options of the sockets, such as keep-alive
    /// probes, itself.
    ///
    /// If the stream panics, the server closes its listener, logs the panic, and stops, as by
    /// [`Shutdown::stop`]. [`Server::serve`] and [`run`] finish what is in flight, and then return
    /// an error that names the panic and the line that has called this function.
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

    /// Lets `wrap` turn each accepted connection into the stream that the server speaks HTTP on,
    /// above all for TLS.
    ///
    /// `wrap` runs in the connection's own task, begins with the client's first byte, and has 10 s,
    /// or [`Limits::head_timeout`] if that is shorter. The server has counted the connection by
    /// then, so a stop waits for `wrap`, and an abort names the connection that it cuts there. A
    /// second call replaces the first.
    ///
    /// If `wrap` fails, panics or takes too long, the server ends the connection.
    /// [`Listener::failed_handshakes`] counts such connections. The server logs each of them at the
    /// level `debug`. At the level `info`, it logs once a second at most how many there have been,
    /// and the last of them.
    ///
    /// If `wrap` returns the [`Connection`] that it was given, the server serves a socket as a
    /// plain socket, without any cost. `wrap` may also set the address of the client by
    /// [`Connection::from_peer`], if a proxy in front tells it. Requests, the log and the outcome
    /// then name that peer. `examples/proxy_protocol.rs` does both. Only a [`Connection`] that
    /// `wrap` returns names a peer. With TLS behind such a proxy, return
    /// `Connection::new(tls_stream).from_peer(peer)`.
    ///
    /// Connections of a listener with a wrapper do not go to a successor: a restart ends them like
    /// any stop.
    ///
    /// [`Limits::head_timeout`]: crate::Limits::head_timeout
    ///
    /// # Examples
    ///
    /// `examples/tls.rs` does it with rustls, which comes down to:
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

    /// Returns on how many connections [`Listener::wrap`] has failed, because it returned an error,
    /// panicked, or took too long. Clones of a listener share one count.
    ///
    /// A client that leaves without having sent a byte does not count.
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

    /// Returns `true` if the two are clones of one listener.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns `true` if the server may take connections of this listener from a predecessor, and
    /// hand them over to a successor: a wrapper would begin anew in the middle of a stream.
    pub(crate) fn can_move_connections(&self) -> bool {
        self.wrapper.is_none()
    }

    /// Returns the keeper's number of the listener, if the keeper knows it.
    pub(crate) fn number(&self) -> Option<u32> {
        let offered = self.shared.passed.as_ref().and_then(|passed| passed.number);
        offered.or_else(|| self.shared.number.get().copied())
    }

    /// Gives the listener the number by which the keeper is to know it.
    pub(crate) fn set_number(&self, number: u32) {
        let _ = self.shared.number.set(number);
    }

    /// Returns what [`Listener::wrap`] has set.
    pub(crate) fn wrapper(&self) -> Option<&Arc<Wrapper>> {
        self.wrapper.as_ref()
    }

    /// Returns the address of the listener: with the kernel's choice where the port was 0, and what
    /// the socket itself says for `:8082` and `fd:0`.
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

    /// Returns what LISTEN_FDNAMES calls an inherited socket (systemd's `FileDescriptorName=`).
    /// Returns `None` for a socket that has no name there, or that this process has bound itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// let inherited = Listener::inherited()?;
    /// let admin = inherited.into_iter().find(|listener| listener.name() == Some("admin"));
    /// // Started by hand, it binds its own, which has no name.
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

    /// Returns the reason for closing the listener, if the server did not want that: its source has
    /// panicked.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.bound().failure().map(io::Error::other)
    }

    /// Returns `true` if a successor has taken over.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.ownership().is_handed_over()
    }

    /// Hands the next connection to `take`. Returns `false` once the listener is closed, and
    /// [`Listener::failure`] may then say why.
    ///
    /// Drops `take` if there is no client, and then returns when there may be one.
    ///
    /// `take` runs before the listener can be closed, so it can count every connection (rule S1).
    /// Never fails for good (rule S18). Skips the error of one connection. If the process lacks
    /// something, tries again later, from 5 ms up to 1 s, and logs that once an episode.
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
            // A source that brings nothing but errors must not keep others from their turn.
            future::yield_now().await;
        }
    }

    /// Waits until a client is in the queue, and leaves it there. Never ready for a listener
    /// without a socket, because it has no queue to look at.
    pub(crate) async fn has_client(&self) {
        poll_fn(|cx| self.bound().poll_queue(cx)).await;
    }

    /// Takes every connection that the kernel has queued and closes (rule S4). Only closes if a
    /// successor accepts from the socket (rule S5).
    ///
    /// Waits for descriptors when there are none left, because the queue is lost otherwise. Wakes
    /// no task that waits in [`Listener::accept`].
    pub(crate) async fn close(&self, mut take: impl FnMut(Accepted)) {
        self.remove_file();
        // If another process has the socket, its handshakes would be held back for good.
        if self.shared.syn_filter && self.is_alone() && self.hold_back_handshakes() {
            Timer::after(HANDSHAKES).await;
        }
        let mut pause = Duration::ZERO;
        while let Err(error) = self.empty_queue(&mut take) {
            pause = self.wait(pause, &error).await;
        }
        self.let_go();
    }

    /// Takes what is queued, for the last time, and closes. Does nothing if the listener is closed.
    ///
    /// # Errors
    ///
    /// Returns the reason for which clients are left in the queue, and so are lost.
    pub(crate) fn close_at_once(&self, take: impl FnMut(Accepted)) -> io::Result<()> {
        let emptied = self.empty_queue(take);
        let has_queue = self.bound().socket().is_some();
        self.let_go();
        // An error of a source tells of no client.
        if has_queue { emptied } else { Ok(()) }
    }

    /// Closes, whatever is queued.
    pub(crate) fn let_go(&self) {
        self.remove_file();
        self.bound().close();
    }

    /// Removes the file of a Unix socket that no other process has, so that no client joins the
    /// queue any more. The file of another socket is removed behind the close, if it is of no more
    /// use then.
    fn remove_file(&self) {
        if self.is_alone() {
            if let Some(file) = self.bound().file() {
                file.remove();
            }
        }
    }

    fn is_alone(&self) -> bool {
        let has_let_go = || Parent::of_this_process().is_none_or(Parent::has_let_go);
        self.ownership().is_alone(has_let_go)
    }

    /// Lets no further handshake begin. Those under way go on, and a client that is held back tries
    /// again in a second. Returns `false` if the kernel does not do that.
    #[cfg(target_os = "linux")]
    fn hold_back_handshakes(&self) -> bool {
        use socket2::SockFilter;
        /// A program for the kernel: of a TCP header, drop what has SYN and no ACK.
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

    /// Takes every connection that the kernel has queued, unless a successor does (rule S5). Ends
    /// even under a flood of new ones.
    ///
    /// # Errors
    ///
    /// Returns the error that has kept this process from taking all of them.
    pub(crate) fn empty_queue(&self, mut take: impl FnMut(Accepted)) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < FLOOD && !self.is_handed_over() {
            let mut bound = self.bound();
            match bound.poll_accept(&mut Context::from_waker(Waker::noop())) {
                // With the lock held, as in `accept`.
                Poll::Ready(Some(Ok(accepted))) => take(accepted),
                Poll::Pending | Poll::Ready(None) => return Ok(()),
                Poll::Ready(Some(Err(error))) if is_of_one_connection(&error) => {}
                Poll::Ready(Some(Err(error))) if is_of_no_listener(&error) => return Ok(()),
                Poll::Ready(Some(Err(error))) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hands the next connection to `take`. Returns `false` once the listener is closed. Drops
    /// `take` when it returns `Pending`, and is ready at the next call.
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

    /// Waits for longer than `pause` if `error` of `accept` concerns the listener, and returns how
    /// long. Does not wait if `error` concerns one connection.
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

    /// Returns which processes have the socket beside this one.
    pub(crate) fn ownership(&self) -> MutexGuard<'_, Ownership> {
        lock(&self.shared.ownership)
    }
}

/// The part of a listener that a keeper needs.
impl Listener {
    /// Returns a copy of the socket for the keeper, and what the keeper is to know of it. Returns
    /// `None` if there is no socket, or not any more.
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

/// How long a handshake that is under way may take until the close, with a SYN filter.
const HANDSHAKES: Duration = Duration::from_millis(50);

/// How long the kernel's queue is emptied before the close when clients keep refilling it.
const FLOOD: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use crate::address::Address;
    use crate::listen::Listen;
    use futures_lite::future::block_on;
    use std::net::TcpStream;

    /// Rule S4: what had been queued is taken, and only then the listener is closed.
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
