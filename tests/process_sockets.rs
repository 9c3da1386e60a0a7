//! The sockets of several servers of one process: an admin port that moves at a restart by a
//! keeper, and sockets that the process was started with.
//!
//! The tests use the real binary with `--admin`, or a program with `Process` (the last test of this
//! file) if they need the names of sockets, or a program that is its own keeper.

#![cfg(target_os = "linux")]

mod common;

use std::env;
use std::fs;
use std::io;
use std::iter;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{self, Command};

use common::{
    Client, Directory, End, KeeperProcess, Program, SERVER, activated, free_port, install,
    is_refused, keep, wait_until,
};
use rustix::process::Signal;
use smol_graceful::{Kept, Listener, Outcome, Process, Server};

// An admin port that moves.

/// The program of a keeper: the real binary, whose admin port a test may move.
struct KeptBinary {
    directory: Directory,
    public: SocketAddr,
    /// The keeper listens on the public address, and the program does not name it.
    is_keepers: bool,
}

impl KeptBinary {
    fn new(is_keepers: bool) -> Self {
        Self { directory: Directory::new(), public: free_port(), is_keepers }
    }

    /// Lets all later processes listen on `admin` for operators.
    fn put(&self, admin: Option<SocketAddr>) {
        let listen = if self.is_keepers { String::new() } else { self.listen() };
        let admin = admin.map_or(String::new(), |addr| format!("--admin {addr}"));
        let line = format!("#!/bin/sh\nexec {SERVER} --work 0s {listen} {admin}\n");
        install(&self.program(), line.as_bytes());
    }

    fn listen(&self) -> String {
        format!("--listen={}", self.public)
    }

    fn start(&self) -> KeeperProcess {
        let listen = self.listen();
        let flags: &[&str] = if self.is_keepers { &[&listen] } else { &[] };
        KeeperProcess::of(keep(flags, &Command::new(self.program())))
    }

    fn program(&self) -> std::path::PathBuf {
        self.directory.join("app")
    }
}

/// Rule K10. The successor listens on another address for operators, or on none. The predecessor
/// answers clients that had reached the old address, and nothing listens there afterwards. A public
/// server that takes the keeper's sockets does not take the old admin port. The connections of the
/// public server go on meanwhile.
#[test]
fn an_admin_port_moves_at_a_restart() {
    let [first, second] = [(); 2].map(|()| free_port());
    for is_keepers in [false, true] {
        move_admin_port(is_keepers, Some(first), Some(second));
        move_admin_port(is_keepers, Some(second), None);
        move_admin_port(is_keepers, None, Some(first));
    }
}

fn move_admin_port(is_keepers: bool, before: Option<SocketAddr>, after: Option<SocketAddr>) {
    let place = KeptBinary::new(is_keepers);
    place.put(before);
    let mut servers = place.start();
    let mut kept = Client::connect(place.public);
    assert_eq!(kept.get("/livez").response().status, 200);
    let mut operators = before.map(AdminClients::at);

    place.put(after);
    let predecessor = servers.serving;
    if let Some(operators) = &mut operators {
        // The predecessor is suspended, so the client below stays in the queue.
        predecessor.signal(Signal::STOP);
        wait_until("the predecessor is suspended", || predecessor.is_suspended());
        operators.queue();
    }
    servers.restart();
    predecessor.signal(Signal::CONT);
    if let Some(operators) = operators {
        operators.assert_all_served();
    }
    assert_eq!(servers.exit_code(predecessor), 0, "{}", servers.program);
    if let Some(before) = before {
        assert!(is_refused(before), "{}", servers.program);
    }
    if let Some(after) = after {
        assert_eq!(Client::connect(after).get("/readyz").response().status, 200);
    }
    let response = kept.get("/livez").response();
    assert_eq!((response.status, response.says_close()), (200, false));
    // The next process can bind the old address, because no process has kept the socket.
    place.put(before);
    servers.restart();
    if let Some(before) = before {
        assert_eq!(Client::connect(before).get("/readyz").response().status, 200);
    }
    servers.signal(Signal::TERM);
    let log = servers.program.log();
    assert_eq!(servers.program.exit_code(), 0, "{log}");
    let is_said = |address| {
        let said = format!(" does not listen on {address}, which is closed now");
        log.contains(&said)
    };
    assert!(before.is_none_or(is_said) && after.is_none_or(is_said), "{log}");
}

/// Rule K10. A program takes its inherited sockets, or binds an address if there are none. At a
/// restart, it continues with this address, and does not take the old admin port instead. This also
/// holds under a keeper that has bound the address, and for a program that is its own keeper.
#[test]
fn a_program_inherits_what_the_keeper_was_given() {
    for (kind, is_keepers) in [("inherits", false), ("inherits", true), ("own keeper", false)] {
        let directory = Directory::new();
        let [public, first, second] = [(); 3].map(|()| free_port());
        let put = |admin: SocketAddr| {
            fs::write(directory.join("admin"), admin.to_string()).unwrap();
        };
        let mut child = program(kind);
        child.env(ADDRESS, public.to_string()).env(DIRECTORY, directory.path());
        put(first);
        let listen = format!("--listen={public}");
        let flags: &[&str] = if is_keepers { &[&listen] } else { &[] };
        let is_own_keeper = kind == "own keeper";
        let keeper = if is_own_keeper { child } else { keep(flags, &child) };
        let mut servers = KeeperProcess::of(keeper);
        let mut kept = Client::connect(public);
        for (before, after) in [(first, second), (second, first)] {
            let web = kept.get("/").response();
            assert_eq!(web.text(), format!("web of {}", servers.serving));
            assert!(!web.says_close(), "{}", servers.program);
            put(after);
            let predecessor = servers.restart();
            assert_eq!(servers.exit_code(predecessor), 0, "{}", servers.program);
            if is_own_keeper {
                // The facts about the sockets are passed on through the exec.
                let words = format!("continues with process {} as the new", servers.serving);
                servers.program.line_where(&words, |line| line.contains(&words));
            }
            assert!(is_refused(before), "{kind}: {}", servers.program);
            let admin = Client::connect(after).get("/").response();
            assert_eq!(admin.text(), format!("admin of {}", servers.serving));
        }
        let web = kept.get("/").response();
        assert_eq!(web.text(), format!("web of {}", servers.serving));
        servers.signal(Signal::TERM);
        assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
    }
}

/// With port 0 the first process chooses, and its successors take the same ports, each for the same
/// server.
#[test]
fn ports_of_the_kernels_choice_stay_at_a_restart() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--work", "0s"]);
    let mut servers = KeeperProcess::start(&command);
    let admin = servers.program.addr;
    let line = servers.program.line_where("public address", |line| {
        line.contains("listening on ") && !line.contains(&admin.to_string())
    });
    let public = line.rsplit(' ').next().unwrap().parse().unwrap();
    for _ in 0..3 {
        assert_eq!(Client::connect(admin).get("/metrics").response().status, 200);
        assert_eq!(Client::connect(public).get("/").response().text(), "okay");
        let predecessor = servers.restart();
        assert_eq!(servers.exit_code(predecessor), 0);
    }
    servers.signal(Signal::TERM);
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
}

/// Clients of an admin port in each state at a restart.
struct AdminClients {
    addr: SocketAddr,
    idle: Client,
    half: Client,
    queued: Option<Client>,
}

impl AdminClients {
    fn at(addr: SocketAddr) -> Self {
        let [mut idle, mut half] = [(); 2].map(|()| Client::connect(addr));
        assert_eq!(idle.get("/readyz").response().status, 200);
        // Half a request comes after a whole one, so the server has read the half, too.
        half.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHo");
        assert_eq!(half.response().status, 200);
        Self { addr, idle, half, queued: None }
    }

    fn queue(&mut self) {
        let mut client = Client::connect(self.addr);
        client.get("/livez");
        self.queued = Some(client);
    }

    fn assert_all_served(mut self) {
        // The predecessor may have accepted this client before it knew of the successor.
        let mut queued = self.queued.unwrap();
        assert_eq!(queued.response().status, 200);
        assert_eq!(queued.end(), End::Eof);
        assert_eq!(self.idle.end(), End::Eof);
        let answered = self.half.send("st: x\r\n\r\n").response();
        assert_eq!((answered.status, answered.says_close()), (200, true));
        assert_eq!(self.half.end(), End::Eof);
    }
}

// Sockets that the process was started with.

/// The admin server takes its socket by address or descriptor, and the public server takes the
/// rest, for any order in which they were passed.
#[test]
fn both_servers_inherit_their_sockets() {
    for (is_admin_first, by_descriptor) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let [public, admin] = sockets();
        let [public_addr, admin_addr] = [&public, &admin].map(address_of);
        let (fds, names, fd) = match is_admin_first {
            true => ([&admin, &public], "admin:web", "fd:3".to_owned()),
            false => ([&public, &admin], "web:admin", "fd:4".to_owned()),
        };
        let asked = if by_descriptor { fd } else { admin_addr.to_string() };
        let args = ["--work", "0s", "--admin", &asked];
        let mut server = Program::start(activated_by_name(fds, names, &args));
        server.wait_for(&format!("listening on {public_addr} (inherited)"));
        assert_eq!(Client::connect(admin_addr).get("/readyz").response().text(), "ready\n");
        assert_eq!(Client::connect(public_addr).get("/").response().text(), "okay");
        assert_eq!(Client::connect(public_addr).get("/metrics").response().status, 404);
        server.stop();
        let log = server.log();
        assert!(log.contains(&format!("listening on {admin_addr} (inherited)")), "{log}");
        assert_eq!(log.matches("listening on ").count(), 2, "{log}");
    }
}

/// If the address of an admin server was not passed, the server binds it, and takes no socket of
/// the public server.
#[test]
fn an_admin_server_leaves_the_sockets_of_others() {
    let [one, two] = sockets();
    let addresses = [&one, &two].map(address_of);
    let admin = free_port();
    let args = ["--work", "0s", "--admin", &admin.to_string()];
    let mut server = Program::start(activated_by_name([&one, &two], "web:admin", &args));
    assert_eq!(Client::connect(admin).get("/readyz").response().text(), "ready\n");
    for addr in addresses {
        server.line_where("public socket", |line| {
            line.ends_with(&format!("listening on {addr} (inherited)"))
        });
        assert_eq!(Client::connect(addr).get("/").response().text(), "okay");
    }
    server.stop();
}

/// A program divides its passed sockets by their names. A restart by a keeper that was passed the
/// sockets itself closes no connection of either server.
#[test]
fn sockets_go_to_servers_by_their_names() {
    for names in ["admin:web", "web:admin"] {
        let sockets = sockets();
        let [public, admin] = match names {
            "web:admin" => [&sockets[0], &sockets[1]],
            _ => [&sockets[1], &sockets[0]],
        }
        .map(address_of);
        let mut child = program("by name");
        child.env("LISTEN_FDNAMES", names);
        let keeper = keep(&[], &child);
        let args: Vec<_> = keeper.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let fds = sockets.iter().map(copy).collect();
        let mut activated = activated("$$", "exec", fds, &args);
        for (name, value) in keeper.get_envs() {
            activated.env(name, value.unwrap());
        }
        let mut servers = KeeperProcess::of(activated);
        let mut clients = [public, admin].map(Client::connect);
        for _ in 0..2 {
            for (client, name) in clients.iter_mut().zip(["web", "admin"]) {
                let response = client.get("/").response();
                let said = format!("{name} of {}", servers.serving);
                assert_eq!((response.text(), response.says_close()), (said, false));
            }
            let predecessor = servers.restart();
            assert_eq!(servers.exit_code(predecessor), 0);
        }
        servers.signal(Signal::TERM);
        assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
    }
}

fn sockets() -> [TcpListener; 2] {
    [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap())
}

fn address_of(socket: &TcpListener) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn copy(socket: &TcpListener) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

/// Returns a command for the server with two sockets from descriptor 3 on, and their names.
fn activated_by_name(sockets: [&TcpListener; 2], names: &str, args: &[&str]) -> Command {
    let mut command = activated("$$", "exec", sockets.map(copy).into(), args);
    command.env("LISTEN_FDNAMES", names);
    command
}

// The program of these tests.

/// The variables for the kind of program that this process is, its address, and the directory of the
/// file with the admin address.
const KIND: &str = "SG_TEST_KIND";
const ADDRESS: &str = "SG_TEST_ADDRESS";
const DIRECTORY: &str = "SG_TEST_DIRECTORY";

fn program(kind: &str) -> Command {
    let mut program = Command::new(env::current_exe().unwrap());
    program.args(["--exact", "the_program_of_these_tests", "--nocapture", "--test-threads=1"]);
    program.env(KIND, kind);
    program
}

#[test]
#[expect(clippy::exit, reason = "the exit code of a keeper is its child's")]
fn the_program_of_these_tests() {
    let Ok(kind) = env::var(KIND) else { return };
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let outcome = match &*kind {
        "by name" => run_by_name(),
        "inherits" => run_inherits(|process, server, web| process.run(server, web).unwrap()),
        "own keeper" => run_inherits(|process, server, web| {
            match process.keep(|process| process.run(server, web)).unwrap() {
                Kept::Child(outcome) => outcome,
                Kept::Keeper(exit) => process::exit(exit.code().into()),
            }
        }),
        kind => panic!("unknown: {kind}"),
    };
    assert!(outcome.is_drained(), "{outcome}");
}

/// Serves `web` and `admin` on the sockets with these names.
fn run_by_name() -> Outcome {
    let inherited = Listener::inherited().unwrap();
    let is_admin = |listener: &Listener| listener.name() == Some("admin");
    let (admin, web): (Vec<_>, Vec<_>) = inherited.into_iter().partition(is_admin);
    let process = Process::default().admin(named("admin"), admin);
    process.run(named("web"), web).unwrap()
}

/// Serves `admin` on the address in its file, and `web` on the inherited sockets of this process,
/// or on its own address if there are none.
fn run_inherits(run: impl FnOnce(Process, Server, Listeners) -> Outcome) -> Outcome {
    let admin = || fs::read_to_string(Path::new(&env::var(DIRECTORY).unwrap()).join("admin"));
    let web = || match Listener::inherited().unwrap() {
        inherited if inherited.is_empty() => vec![Listener::bind(&*env::var(ADDRESS).unwrap())],
        inherited => inherited.into_iter().map(Ok).collect(),
    };
    // The socket is bound only after signals are handled, and never in a keeper.
    let admin = iter::once_with(move || Listener::bind(&*admin()?));
    let process = Process::default().admin(named("admin"), admin);
    run(process, named("web"), Box::new(iter::once_with(web).flatten()))
}

type Listeners = Box<dyn Iterator<Item = io::Result<Listener>> + Send>;

/// Returns a server whose response has its name and its process id.
fn named(name: &'static str) -> Server {
    Server::new(move |_| async move { Ok(format!("{name} of {}", process::id())) })
}
