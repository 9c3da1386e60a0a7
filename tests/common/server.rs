//! A server in this process, on a thread of its own.
//!
//! [`Running`] is the server, and [`Pipes`] gives it connections in memory. The files that test the
//! running of a server (`accept.rs`, `runtimes.rs`) have threads and executors of their own.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use futures_lite::{FutureExt, future};
use smol::channel;
use smol_graceful::{
    Address, Connection, Limits, Listen, Listener, Outcome, Request, Response, ServeError, Server,
    Shutdown,
};
use socket2::{Domain, Socket, Type};

use super::{Client, PATIENCE, PipeClient, wait_until};

/// A server on a thread of its own.
pub struct Running {
    pub addresses: Vec<Address>,
    pub shutdown: Shutdown,
    drop: Option<channel::Sender<()>>,
    ended: Receiver<Result<Outcome, ServeError>>,
}

impl Running {
    /// Serves `handler` with the default limits.
    pub fn new<H, F, R>(handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response> + 'static,
    {
        Self::of(Server::new(handler))
    }

    pub fn with<H, F, R>(limits: Limits, handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response> + 'static,
    {
        Self::of(Server::new(handler).limits(limits))
    }

    /// Serves `handler` until `shutdown` stops the server.
    pub fn stopped_by<H, F, R>(shutdown: &Shutdown, handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response> + 'static,
    {
        Self::of(Server::new(handler).stopped_by(shutdown))
    }

    /// Serves with a server that was made elsewhere, on a port of the kernel's choice.
    pub fn of(server: impl Into<Stoppable>) -> Self {
        Self::on(server, [tcp()])
    }

    pub fn on<const N: usize>(server: impl Into<Stoppable>, listeners: [Listener; N]) -> Self {
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        Self::start(server, addresses, listeners)
    }

    /// Serves on listeners of any type, which have these addresses.
    pub fn start<L: Listen + Send + 'static, const N: usize>(
        server: impl Into<Stoppable>,
        addresses: Vec<Address>,
        listeners: [L; N],
    ) -> Self {
        let Stoppable { server, shutdown } = server.into();
        let (drop, dropped) = channel::bounded::<()>(1);
        let (send, ended) = mpsc::channel();
        thread::spawn(move || {
            let serve = async { Some(server.serve(listeners).await) };
            let dropped = async {
                let _ = dropped.recv().await;
                None
            };
            // A bare `block_on` is enough, because the server needs no runtime.
            if let Some(ended) = future::block_on(serve.or(dropped)) {
                let _ = send.send(ended);
            }
        });
        Self { addresses, shutdown, drop: Some(drop), ended }
    }

    /// Returns the first address, which has to be a TCP address.
    pub fn addr(&self) -> SocketAddr {
        let Address::Tcp(addr) = self.addresses[0] else { panic!("{:?}", self.addresses) };
        addr
    }

    pub fn connect(&self) -> Client {
        Client::connect_to(&self.addresses[0])
    }

    /// Drops the server while it runs.
    pub fn drop_server(&mut self) {
        self.drop = None;
    }

    /// Returns `true` if the server has not ended.
    pub fn is_serving(&self) -> bool {
        self.ended.try_recv().is_err()
    }

    /// Waits for the server's end without stopping it, and returns the result of `serve`.
    pub fn ended(&self) -> Result<Outcome, ServeError> {
        self.ended.recv_timeout(PATIENCE).expect("the server did not end")
    }

    /// Waits for the server's end without stopping it, and returns the outcome. Panics if `serve`
    /// failed.
    pub fn outcome(&self) -> Outcome {
        self.ended().unwrap()
    }

    /// Stops the server and waits for its end.
    pub fn stop(&self) -> Outcome {
        self.shutdown.stop();
        self.outcome()
    }
}

/// A server, and the handle that stops it.
pub struct Stoppable {
    pub server: Server,
    pub shutdown: Shutdown,
}

impl From<Server> for Stoppable {
    /// Takes a server that has no handle yet.
    fn from(server: Server) -> Self {
        server.stopped_by(&Shutdown::new())
    }
}

/// Gives a server its handle.
pub trait StoppedBy {
    fn stopped_by(self, shutdown: &Shutdown) -> Stoppable;
}

impl StoppedBy for Server {
    fn stopped_by(self, shutdown: &Shutdown) -> Stoppable {
        Stoppable { server: self.shutdown(shutdown), shutdown: shutdown.clone() }
    }
}

/// Waits until nothing is in flight, stops the server, and asserts that it drains.
pub fn assert_drains(server: &Running) {
    wait_until("every connection has ended", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// The clients' side of a source of connections in memory.
pub struct Pipes {
    pub send: channel::Sender<io::Result<Connection>>,
}

impl Pipes {
    /// Starts a server whose connections come through a channel.
    pub fn open(server: impl Into<Stoppable>) -> (Self, Running) {
        let (pipes, listener) = Self::listener();
        (pipes, Running::on(server, [listener]))
    }

    pub fn listener() -> (Self, Listener) {
        let (send, connections) = channel::unbounded();
        (Self { send }, Listener::from_stream(connections))
    }

    pub fn connect(&self) -> PipeClient {
        self.end().into()
    }

    /// Returns a client's end of a new pipe.
    pub fn end(&self) -> Connection {
        let (client, connection) = Connection::pair();
        self.send.try_send(Ok(connection)).expect("the server has closed");
        client
    }

    pub fn fail(&self, error: io::Error) {
        self.send.try_send(Err(error)).expect("the server has closed");
    }

    /// Returns `true` if the server takes no more connections.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed()
    }

    /// Returns the number of connections that wait.
    pub fn queued(&self) -> usize {
        self.send.len()
    }
}

/// Binds a port of the kernel's choice.
pub fn tcp() -> Listener {
    Listener::bind("127.0.0.1:0").unwrap()
}

pub fn address_of(listener: &Listener) -> SocketAddr {
    let Address::Tcp(addr) = *listener.address() else { panic!("{listener:?}") };
    addr
}

/// Returns a free port, which the kernel gives to no other process while this one runs. A program
/// can listen on the port if it sets SO_REUSEADDR, as servers do.
pub fn free_port() -> SocketAddr {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    HELD.lock().unwrap().push(socket);
    addr
}

/// Returns `true` if no process listens on the address. Other errors do not mean that, because a
/// full queue does not answer either.
pub fn is_refused(addr: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(&addr, PATIENCE);
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Waits until no process listens on the address.
pub fn wait_for_close(addr: SocketAddr) {
    wait_until("the close", || is_refused(addr));
}

/// Returns a handle whose grace and linger are longer than the test.
pub fn long_grace() -> Shutdown {
    Shutdown::new().linger(2 * PATIENCE).grace(2 * PATIENCE)
}

/// Returns a handle with a short linger, and a grace that is longer than the test.
pub fn short_linger() -> Shutdown {
    long_grace().linger(Duration::from_millis(20))
}
