//! The accept loop: the server serves clients in the kernel's queue, also at the stop and without
//! descriptors.

mod common;

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use common::{Client, Directory, End, PATIENCE, Running, address_of, is_refused, tcp, wait_until};
use futures_lite::future::{block_on, poll_once};
use smol::Executor;
use smol::channel::{Sender, bounded};
use smol_graceful::{Address, Limits, Listener, Outcome, Request, Server, Shutdown};

/// A server that the test holds back. At first it takes no connection off the queue, and later it
/// serves none.
struct PausedServer {
    addresses: Vec<Address>,
    shutdown: Shutdown,
    outcome: Receiver<Outcome>,
    /// The drop lets the server accept.
    taking: Option<Sender<()>>,
    /// The drop lets the server serve.
    serving: Option<Sender<()>>,
    /// The drop ends the executor of the server.
    _end: Sender<()>,
}

impl PausedServer {
    fn new(addresses: &[Address]) -> Self {
        let executor = Arc::new(Executor::new());
        let listeners: Vec<_> = addresses.iter().map(|at| Listener::bind(at).unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let shutdown = Shutdown::new();
        let server =
            Server::new(|_| async { Ok("okay") }).executor(executor.clone()).shutdown(&shutdown);
        let [(taking, take), (serving, serve), (end, ended)] = [(); 3].map(|()| bounded::<()>(1));
        let (send, outcome) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        thread::spawn(move || {
            let mut server = std::pin::pin!(server.serve(listeners));
            assert!(block_on(poll_once(server.as_mut())).is_none());
            begin.send(()).unwrap();
            let _ = take.recv_blocking();
            let _ = send.send(block_on(server).unwrap());
        });
        thread::spawn(move || {
            let _ = serve.recv_blocking();
            let _ = block_on(executor.run(ended.recv()));
        });
        // A stop before the server has begun is tested elsewhere (tests/shutdown.rs).
        begun.recv_timeout(PATIENCE).unwrap();
        Self {
            addresses,
            shutdown,
            outcome,
            taking: Some(taking),
            serving: Some(serving),
            _end: end,
        }
    }

    fn start_accepting(&mut self) {
        self.taking = None;
    }

    fn start_serving(&mut self) {
        self.serving = None;
    }

    fn outcome(&self) -> Outcome {
        self.outcome.recv_timeout(PATIENCE).expect("the server did not end")
    }
}

/// Asserts that the next response is good, says `close`, and is the last one.
fn assert_last(client: &mut Client) {
    let response = client.response();
    assert_eq!(response.status, 200);
    assert!(response.says_close(), "{:?}", response.lines);
    assert_eq!(client.end(), End::Eof);
}

/// Returns `true` if no process listens on the address.
fn is_shut(address: &Address) -> bool {
    match address {
        Address::Tcp(addr) => is_refused(*addr),
        Address::Unix(path) => UnixStream::connect(path).is_err(),
        other => panic!("{other}"),
    }
}

/// Connects a client, and sends one request.
fn client_with_request(address: &Address) -> Client {
    let mut client = Client::connect_to(address);
    client.get("/");
    client
}

fn any_port() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// Returns an address of every kind that this machine has.
fn all(directory: &Directory) -> Vec<Address> {
    let mut addresses = vec![any_port(), directory.socket("all")];
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    if std::net::TcpListener::bind(v6).is_ok() {
        addresses.push(Address::Tcp(v6));
    }
    addresses
}

// Rule S4: the queue at the stop.

fn assert_queue_is_served(mut server: PausedServer, clients: usize) {
    let addresses = server.addresses.clone();
    // No process takes these connections, so only the kernel has their requests.
    let mut askers: Vec<_> =
        addresses.iter().cycle().take(clients).map(client_with_request).collect();
    assert_eq!(server.shutdown.in_flight(), 0);
    server.shutdown.stop();
    server.start_accepting();
    // S1: all connections are counted before the first one is served.
    wait_until("the queue is taken", || server.shutdown.in_flight() == clients);
    wait_until("the door is shut", || addresses.iter().all(is_shut));
    server.start_serving();
    askers.iter_mut().for_each(assert_last);
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert!(addresses.iter().all(is_shut));
}

#[test]
fn the_queue_of_a_tcp_socket_is_served() {
    assert_queue_is_served(PausedServer::new(&[any_port()]), 100);
}

#[test]
fn the_queue_of_a_unix_socket_is_served() {
    let directory = Directory::new();
    assert_queue_is_served(PausedServer::new(&[directory.socket("queue")]), 100);
    assert!(!directory.join("queue").exists());
}

#[test]
fn the_queues_of_all_sockets_are_served() {
    let directory = Directory::new();
    assert_queue_is_served(PausedServer::new(&all(&directory)), 99);
    assert!(!directory.join("all").exists());
}

// Several listeners.

#[test]
fn all_listeners_are_served_and_closed() {
    let directory = Directory::new();
    let mut server = PausedServer::new(&all(&directory));
    server.start_accepting();
    server.start_serving();
    let addresses = server.addresses.clone();
    let mut askers: Vec<_> = addresses.iter().map(client_with_request).collect();
    for client in &mut askers {
        assert_eq!(client.response().text(), "okay");
    }
    assert_eq!(server.shutdown.in_flight(), addresses.len());
    server.shutdown.stop();
    // Idle connections end with a FIN (rule S6).
    for mut client in askers {
        assert_eq!(client.end(), End::Eof);
    }
    assert!(server.outcome().is_drained());
    assert!(addresses.iter().all(is_shut));
    assert!(!directory.join("all").exists());
}

/// If one of several addresses cannot be bound, the server serves none.
#[test]
fn one_bad_address_refuses_the_start() {
    let (taken, directory) = (tcp(), Directory::new());
    let free = directory.socket("unstarted");
    let server = Server::new(|_| async { Ok("okay") });
    let serving = server.serve([free, taken.address().clone()]);
    let error = block_on(serving).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(!directory.join("unstarted").exists());
}

// The limit of connections.

/// Rule S24: if all places are taken, clients wait in the kernel's queue.
#[test]
fn a_connection_beyond_the_limit_waits_for_its_turn() {
    let (release, released) = bounded::<()>(1);
    let limits = Limits::default().connections(2);
    let server = Running::with(limits, move |_| {
        let released = released.clone();
        async move {
            released.recv().await?;
            Ok("okay")
        }
    });
    // All connections are at work, so none gives way.
    let mut inside: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut inside {
        client.get("/");
    }
    for _ in 0..3 {
        let mut waiting = server.connect();
        waiting.get("/");
        waiting.assert_silent();
        assert_eq!(server.shutdown.in_flight(), 2);
        release.send_blocking(()).unwrap();
        // Either of the two may be answered first.
        let mut answered = None;
        wait_until("one is answered", || {
            let has_come = |client: &Client| {
                client.stream.set_nonblocking(true).unwrap();
                let has_come = client.stream.peek(&mut [0]).is_ok();
                client.stream.set_nonblocking(false).unwrap();
                has_come
            };
            answered = inside.iter().position(has_come);
            answered.is_some()
        });
        let mut done = inside.remove(answered.unwrap());
        assert_eq!(done.response().text(), "okay");
        drop(done);
        inside.push(waiting);
    }
    for _ in &inside {
        release.send_blocking(()).unwrap();
    }
    for client in &mut inside {
        assert_eq!(client.response().text(), "okay");
    }
    drop(inside);
    wait_until("all have gone", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// All listeners share one limit, and a listener without clients uses up no part of it.
#[test]
fn a_listener_where_nobody_comes_takes_no_part_of_the_limit() {
    for (connections, addresses) in [(1, 2), (2, 3)] {
        let listeners: Vec<_> = (0..addresses).map(|_| tcp()).collect();
        let addresses: Vec<_> = listeners.iter().map(address_of).collect();
        let limits = Limits::default().connections(connections);
        let shutdown = Shutdown::new();
        let server = Server::new(|_| async { Ok("okay") }).limits(limits).shutdown(&shutdown);
        let serving = thread::spawn(move || block_on(server.serve(listeners)).unwrap());
        for addr in [&addresses[..], &addresses[..]].concat() {
            let mut clients: Vec<_> = (0..connections).map(|_| Client::connect(addr)).collect();
            for client in &mut clients {
                assert_eq!(client.get("/").response().text(), "okay");
            }
        }
        shutdown.stop();
        assert!(serving.join().unwrap().is_drained());
    }
}

/// Rule S4 has no limit: clients in the queue at the stop are served although all places are taken.
#[test]
fn a_connection_beyond_the_limit_is_served_at_the_stop() {
    let limits = Limits::default().connections(2);
    let (release, released) = bounded::<()>(2);
    let (entered, entries) = mpsc::channel();
    let server = Running::with(limits, move |request: Request| {
        let (released, entered) = (released.clone(), entered.clone());
        async move {
            if request.url().path() == "/slow" {
                entered.send(())?;
                released.recv().await?;
            }
            Ok("okay")
        }
    });
    let mut slow: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.get("/slow");
        entries.recv_timeout(PATIENCE).unwrap();
    }
    let mut waiting: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.get("/");
    }
    waiting[0].assert_silent();
    server.shutdown.stop();
    waiting.iter_mut().for_each(assert_last);
    assert!(server.is_serving());
    for _ in &slow {
        release.try_send(()).unwrap();
    }
    slow.iter_mut().for_each(assert_last);
    assert!(server.outcome().is_drained());
    assert!(is_refused(server.addr()));
}

// Rule S18: no descriptors left.

#[cfg(target_os = "linux")]
mod exhaustion {
    use super::*;

    use std::fs;

    use common::{Program, sockets_of};
    use rustix::process::{Resource, Rlimit, Signal, prlimit};

    /// The number of descriptors that the program may still open.
    const SPARE: usize = 5;

    /// The real binary, which has descriptors for a few connections only, and does not know that.
    struct FewDescriptors {
        program: Program,
        /// The number of its sockets without any connection.
        sockets: usize,
    }

    impl FewDescriptors {
        fn new(args: &[&str]) -> Self {
            let program = Program::server(args);
            let scarce = Self { sockets: sockets_of(program.pid()), program };
            // Descriptors that the server opens late are open after this.
            scarce.program.connect().get("/livez").response();
            scarce.wait_until_alone();
            // The limit is on the numbers of descriptors, and inherited ones may be high.
            let pid = scarce.program.pid();
            let is_free = |fd: &u64| !Path::new(&format!("/proc/{pid}/fd/{fd}")).exists();
            let limit = (0..).filter(is_free).nth(SPARE);
            prlimit(
                Some(scarce.program.process().0),
                Resource::Nofile,
                Rlimit { current: limit, maximum: limit },
            )
            .unwrap();
            scarce
        }

        /// Connects four times as many clients as there is room for, each with a request for
        /// `path`.
        fn crowd(&mut self, path: &str) -> Vec<Client> {
            let mut clients: Vec<_> = (0..4 * SPARE).map(|_| self.program.connect()).collect();
            for client in &mut clients {
                client.get(path);
            }
            self.program.wait_for("cannot accept");
            assert_eq!(sockets_of(self.program.pid()) - self.sockets, SPARE);
            clients
        }

        fn wait_until_alone(&self) {
            wait_until("all have gone", || sockets_of(self.program.pid()) == self.sockets);
        }
    }

    /// Returns the processor time used so far, in hundredths of a second.
    fn ticks(program: &Program) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap();
        // The fields begin after the name, which ends with the last parenthesis. utime is the 14th.
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn the_server_waits_for_descriptors_and_goes_on() {
        let mut scarce = FewDescriptors::new(&[]);
        let mut clients = scarce.crowd("/livez");
        assert_eq!(clients[0].response().status, 200);
        clients[4 * SPARE - 1].assert_silent();

        // The server does not spin. A second of spinning would be a hundred ticks, or some dozen on
        // a busy machine.
        let before = ticks(&scarce.program);
        // The test is about the time that passes.
        thread::sleep(Duration::from_secs(1));
        let used = ticks(&scarce.program) - before;
        assert!(used <= 10, "{used} hundredths of a second");
        // Connected clients are served.
        assert_eq!(clients[0].get("/livez").response().status, 200);

        // When clients leave, others are served, in the order in which they came.
        let first = clients.remove(0);
        first.reset();
        for mut client in clients {
            assert_eq!(client.response().status, 200);
            client.reset();
        }
        scarce.wait_until_alone();
        assert_eq!(scarce.program.connect().get("/livez").response().status, 200);
        scarce.program.stop();
        // The log says this once, because the queue was never empty meanwhile.
        let log = scarce.program.log();
        assert_eq!(log.matches("cannot accept").count(), 1, "{log}");
    }

    /// Rule S4 without descriptors: the queue needs those of idle connections.
    #[test]
    fn the_queue_is_served_at_the_stop() {
        let mut scarce = FewDescriptors::new(&[]);
        let mut clients = scarce.crowd("/livez");
        let mut idle: Vec<_> = clients.drain(..SPARE).collect();
        for client in &mut idle {
            assert_eq!(client.response().status, 200);
        }
        scarce.program.signal(Signal::TERM);
        clients.iter_mut().for_each(assert_last);
        for mut client in idle {
            assert_eq!(client.end(), End::Eof);
        }
        assert_eq!(scarce.program.exit_code(), 0);
    }

    /// Rules S13 and S14 hold without descriptors: the drain ends.
    #[test]
    fn the_deadline_holds() {
        let mut scarce = FewDescriptors::new(&["--grace", "300ms"]);
        let clients = scarce.crowd("/work?for=1h");
        scarce.program.signal(Signal::TERM);
        assert_eq!(scarce.program.exit_code(), 1);
        drop(clients);
    }

    #[test]
    fn a_second_signal_ends_it() {
        let mut scarce = FewDescriptors::new(&[]);
        let clients = scarce.crowd("/work?for=1h");
        scarce.program.signal(Signal::TERM);
        scarce.program.wait_for("stopping");
        common::pass_repeat_window();
        scarce.program.signal(Signal::TERM);
        assert_eq!(scarce.program.exit_code(), 1);
        drop(clients);
    }

    /// The binary takes its limit of connections from the number of files that it may open, and
    /// from the number that are open already. Idle clients take all places, and then give way.
    #[test]
    fn a_low_limit_of_files_is_no_error() {
        for limit in [20, 25, 40] {
            let mut command = std::process::Command::new("sh");
            let script = format!("ulimit -n {limit}; exec \"$0\" --listen 127.0.0.1:0");
            command.args(["-c", &script]).arg(common::SERVER);
            let mut program = Program::start(command);
            let mut clients: Vec<_> = (0..2 * limit).map(|_| program.connect()).collect();
            for client in &mut clients {
                client.get("/livez");
            }
            for client in &mut clients {
                assert_eq!(client.response().status, 200, "{limit}");
            }
            program.stop();
            let log = program.log();
            assert!(!log.contains("cannot accept"), "{limit}: {log}");
            drop(clients);
        }
    }
}
