//! A keeper whose server hands its connections over to its successors.
//!
//! [`Handover`] is the keeper and its children, over TCP or over a Unix socket. Their program is
//! the real binary, or [`serve`], whose handlers wait for a test and answer with their process.
//! Linux only, because `/proc` shows which process has a connection.

use std::env;
use std::fs;
use std::io::IoSliceMut;
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use futures_lite::FutureExt;
use http_types::Method;
use rustix::cmsg_space;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recv, recvmsg,
};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, WaitOptions, getrlimit,
    kill_process, pidfd_getfd, pidfd_open, set_child_subreaper, setrlimit, waitpid,
};
use smol::Timer;
use smol_graceful::{
    Address, Body, Kept, Limits, Listener, Peer, Process, Request, Response, Server, Shutdown,
    StatusCode, ready, signals,
};

use super::program::install;
use super::{Client, Directory, KeeperProcess, PATIENCE, ProcessId, SERVER, wait_until};

/// The kind of socket to which clients connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    Tcp,
    Unix,
}

/// Runs a scenario over TCP and over a Unix socket, at the same time.
pub fn over_tcp_and_unix(scenario: impl Fn(SocketKind) + Sync) {
    super::for_each([SocketKind::Tcp, SocketKind::Unix], |over| {
        super::case(&format!("{over:?}"), || scenario(over));
    });
}

/// A keeper and its children.
pub struct Handover {
    pub servers: KeeperProcess,
    pub over: SocketKind,
    /// The address to which clients connect.
    pub address: Address,
    pub directory: Directory,
    executable: PathBuf,
}

impl Handover {
    /// Starts a keeper whose children run the real binary.
    pub fn server(over: SocketKind, args: &[&str]) -> Self {
        let executable = Path::new(SERVER).to_owned();
        Self::start(over, executable, |command, listen| {
            command.args(["--listen", listen]).args(args);
        })
    }

    /// Starts a keeper whose children run [`serve`]. The calling file must have the test
    /// [`PROGRAM`], which calls `serve`.
    pub fn held(over: SocketKind) -> Self {
        Self::held_with(over, |_| {})
    }

    /// Starts a keeper as [`Handover::held`] does. `configure` completes its environment.
    pub fn held_with(over: SocketKind, configure: impl FnOnce(&mut Command)) -> Self {
        Self::start(over, env::current_exe().unwrap(), |command, listen| {
            command.args(["--exact", PROGRAM, "--nocapture", "--test-threads=1"]);
            command.env(LISTEN, listen);
            configure(command);
        })
    }

    /// Starts a keeper of a program. `configure` completes the command with words for the program's
    /// address.
    pub fn start(
        over: SocketKind,
        executable: PathBuf,
        configure: impl FnOnce(&mut Command, &str),
    ) -> Self {
        Self::start_with_keeper(Path::new(SERVER), over, executable, configure)
    }

    /// Starts a keeper with this patience, whose children run the real binary.
    pub fn with_patience(over: SocketKind, patience: &str) -> Self {
        Self::start(over, SERVER.into(), |command, listen| {
            command.env("SMOL_GRACEFUL_KEEP_PATIENCE", patience).args(["--listen", listen]);
        })
    }

    /// Starts a keeper as [`Handover::start`] does, from another copy of the real binary.
    pub fn start_with_keeper(
        keeper: &Path,
        over: SocketKind,
        executable: PathBuf,
        configure: impl FnOnce(&mut Command, &str),
    ) -> Self {
        Self::start_as(over, executable, |app, listen| {
            let mut command = Command::new(keeper);
            command.args(["keep", "--listen", listen, "--"]).arg(app);
            configure(&mut command, listen);
            command
        })
    }

    /// Starts [`serve`] as its own keeper.
    pub fn own_keeper(over: SocketKind, configure: impl FnOnce(&mut Command)) -> Self {
        Self::start_as(over, env::current_exe().unwrap(), |app, listen| {
            let mut command = Command::new(app);
            command.args(["--exact", PROGRAM, "--nocapture", "--test-threads=1"]);
            command.env(LISTEN, listen).env(KEEP, "yes");
            configure(&mut command);
            command
        })
    }

    /// Starts the command that `command` returns for the program's path and address.
    fn start_as(
        over: SocketKind,
        executable: PathBuf,
        command: impl FnOnce(&Path, &str) -> Command,
    ) -> Self {
        prepare();
        let directory = Directory::new();
        let listen = match over {
            SocketKind::Tcp => "127.0.0.1:0".into(),
            SocketKind::Unix => directory.socket("socket").to_string(),
        };
        let app = directory.join("app");
        symlink(&executable, &app).unwrap();
        let mut command = command(&app, &listen);
        command.env(DIRECTORY, directory.path());
        let servers = KeeperProcess::of(command);
        let address = match over {
            SocketKind::Tcp => Address::Tcp(servers.program.addr),
            SocketKind::Unix => directory.socket("socket"),
        };
        Self { servers, over, address, directory, executable }
    }

    /// Returns the process of the keeper.
    pub fn keeper(&self) -> ProcessId {
        self.servers.keeper()
    }

    /// Returns the process that serves.
    pub fn serving(&self) -> ProcessId {
        self.servers.serving
    }

    pub fn connect(&self) -> Client {
        Client::connect_to(&self.address)
    }

    /// Connects a client that has had an answer.
    pub fn idle(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(client.get("/livez").response().text(), "live\n");
        client
    }

    /// Waits until the server has accepted every connected client. Clients are accepted in turn.
    pub fn wait_until_accepted(&self) {
        self.connect().send("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").rest();
    }

    /// Sends `GET /livez` and `GET path` in one write, and returns after the first response. The
    /// handler of `path` then runs, because the server sends the first response when it has to wait
    /// for the second (rule W10).
    pub fn in_flight(&self, path: &str) -> Client {
        let request = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut client = self.connect();
        client.send(request("/livez") + &request(path));
        assert_eq!(client.response().status, 200);
        client
    }

    /// Lets the next successors run these lines of a shell before the program. The lines may change
    /// the words of the program: `set -- "$@" --grace 1s`.
    pub fn successors_run(&self, lines: &str) {
        let program = self.executable.display();
        let script = format!("#!/bin/sh\n{lines}\nexec {program} \"$@\"\n");
        install(&self.directory.join("app"), script.as_bytes());
    }

    /// Lets a successor take over, and returns its predecessor, which accepts no more clients.
    pub fn restart(&mut self) -> ProcessId {
        let predecessor = self.take_over();
        self.wait_until_stopping(predecessor);
        predecessor
    }

    /// Waits until `process` has closed its listener, which happens after the line of its log and
    /// after the begin of its stop.
    pub fn wait_until_stopping(&self, process: ProcessId) {
        wait_until("the process has closed its listener", || {
            let listening = self.sockets(true);
            !open_sockets(process).iter().any(|(_, inode)| listening.contains(inode))
        });
    }

    /// Lets a successor take over, and returns its predecessor, which may still accept clients that
    /// are in the queue.
    pub fn take_over(&mut self) -> ProcessId {
        self.servers.restart()
    }

    /// Lets a successor take over, and waits until its predecessor has handed over `count`
    /// connections and has ended.
    pub fn hand_over(&mut self, count: u64) {
        let predecessor = self.restart();
        self.assert_handed_over(predecessor, count);
    }

    /// Waits until a successor of the process that serves has taken over.
    pub fn wait_for_successor(&mut self) {
        self.servers.wait_for_successor();
    }

    /// Lets a successor take over that was suspended right after it said that it was ready, so that
    /// the successor answers nothing. Returns the predecessor.
    pub fn suspend_successor(&mut self) -> ProcessId {
        let successor = self.ready_successor("");
        suspend(successor);
        self.resume_keeper(successor)
    }

    /// Starts a successor that runs these lines of a shell first. Suspends the keeper before the
    /// successor says that it is ready. Returns the successor.
    pub fn ready_successor(&mut self, lines: &str) -> ProcessId {
        let go = self.directory.join("go");
        // The successor waits, so that the keeper is suspended before the successor is ready.
        self.successors_run(&format!(
            "{lines}\nn=0; until [ -e {} ] || [ $n = 3000 ]; do n=$((n + 1)); sleep 0.01; done",
            go.display()
        ));
        self.servers.signal(Signal::USR2);
        let successor = self.servers.wait_for_start();
        suspend(self.keeper());
        fs::write(&go, "").unwrap();
        wait_until("the successor has said that it is ready", || self.has_unheard_ready());
        fs::remove_file(&go).unwrap();
        self.successors_run("");
        successor
    }

    /// Returns `true` if a child has said READY to a keeper that is suspended.
    fn has_unheard_ready(&self) -> bool {
        channels_of(self.keeper()).any(|channel| {
            let mut kind = [0];
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            recv(&channel, &mut kind, peek).is_ok() && kind == *b"R"
        })
    }

    /// Resumes the keeper, which then knows that the successor of [`Handover::ready_successor`] is
    /// ready, and waits until the successor has taken over. Returns the predecessor.
    pub fn resume_keeper(&mut self, successor: ProcessId) -> ProcessId {
        let predecessor = self.serving();
        self.keeper().signal(Signal::CONT);
        self.wait_for_successor();
        assert_eq!(self.serving(), successor);
        predecessor
    }

    /// Suspends the successor as [`Handover::suspend_successor`] does, with all `count` idle
    /// connections in one batch. Returns the predecessor.
    pub fn suspend_batch(&mut self, count: usize) -> ProcessId {
        for _ in 0..20 {
            let predecessor = self.suspend_successor();
            if self.wait_for_batch() == count {
                return predecessor;
            }
            self.serving().signal(Signal::CONT);
            self.assert_handed_over(predecessor, count as u64);
        }
        panic!("never {count} connections in one batch: {}", self.servers.program);
    }

    /// Waits until a batch for a suspended successor is in the passage, and returns the number of
    /// its connections. On a busy machine, the batch may not hold every connection that leaves. The
    /// next batch comes only after the successor goes on (rule H3).
    pub fn wait_for_batch(&self) -> usize {
        let mut batch = None;
        wait_until("a batch is in the passage", || {
            batch = channels_of(self.serving()).find_map(|channel| unread_batch(&channel));
            batch.is_some()
        });
        batch.unwrap()
    }

    /// Returns the inodes of the connections that `process` has open.
    pub fn connections_of(&self, process: ProcessId) -> Vec<u64> {
        let all = self.sockets(false);
        let open = open_sockets(process).into_iter().map(|(_, inode)| inode);
        open.filter(|inode| all.contains(inode)).collect()
    }

    /// Returns copies of the connections that `process` has open, so that a test can look at their
    /// options. The test must be allowed to trace the process.
    pub fn copies_of(&self, process: ProcessId) -> Vec<OwnedFd> {
        let all = self.sockets(false);
        let sockets = open_sockets(process).into_iter().filter(|(_, inode)| all.contains(inode));
        sockets.map(|(fd, _)| copy_of(process, fd).unwrap()).collect()
    }

    /// Returns the inodes of the sockets that listen on the address.
    pub fn listeners(&self) -> Vec<u64> {
        self.sockets(true)
    }

    /// Returns the inode of the listening socket.
    pub fn listener(&self) -> u64 {
        self.sockets(true)[0]
    }

    /// Returns the inodes of the sockets with the server's address: the listeners if `that_listen`,
    /// otherwise the accepted connections.
    fn sockets(&self, that_listen: bool) -> Vec<u64> {
        let path = self.directory.join("socket");
        let (table, inode) = match self.over {
            SocketKind::Tcp => ("/proc/net/tcp", 9),
            SocketKind::Unix => ("/proc/net/unix", 6),
        };
        let mark = match self.address {
            Address::Tcp(addr) => format!(":{:04X}", addr.port()),
            _ => path.display().to_string(),
        };
        let table = fs::read_to_string(table).unwrap();
        // The table may have ten thousand lines of other servers.
        let lines = table.lines().filter(|line| line.contains(&mark));
        let ours = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = ours.filter(|columns| {
            let (is_ours, is_listening) = match self.address {
                Address::Tcp(_) => (columns[1].ends_with(&mark), columns[3] == "0A"),
                // An accepted connection has the path of its listener, and only a listener has the
                // flag.
                _ => {
                    let is_ours = columns.get(7).is_some_and(|file| Path::new(file) == path);
                    (is_ours, columns[3] == "00010000")
                }
            };
            is_ours && is_listening == that_listen
        });
        ours.map(|columns| columns[inode].parse().unwrap()).collect()
    }

    /// Waits for a line that `process` has logged and that holds `text`. The line may be an old
    /// one.
    pub fn line_of(&mut self, process: ProcessId, text: &str) -> String {
        let pid = process.to_string();
        self.servers.program.line_where(&format!("{text:?} of process {pid}"), |line| {
            line.contains(text) && line.split(' ').nth(1) == Some(&pid)
        })
    }

    /// Waits until `process` has ended with exit code 0, and asserts the number of connections that
    /// its outcome counts as handed over.
    pub fn assert_handed_over(&mut self, process: ProcessId, count: u64) {
        assert_eq!(self.handed_over(process), count, "{}", self.servers.program);
    }

    /// Waits until `process` has ended with exit code 0, and returns the number of connections that
    /// its outcome counts as handed over.
    pub fn handed_over(&mut self, process: ProcessId) -> u64 {
        assert_eq!(self.exit_code(process), 0, "{}", self.servers.program);
        let outcome = self.line_of(process, "drained in ");
        number_before(&outcome, " connection")
    }

    /// Waits until a child has ended by itself, and returns its exit code.
    pub fn exit_code(&mut self, process: ProcessId) -> i32 {
        self.servers.exit_code(process)
    }

    /// Waits until the child that serves has ended by itself, and returns its exit code. The keeper
    /// was killed before, so the child has become a child of this process.
    pub fn exit_code_without_keeper(&mut self) -> i32 {
        let process = self.serving();
        let mut status = None;
        wait_until("the process has ended", || {
            // As long as the keeper runs, the process is not a child of this one.
            let ended = waitpid(Some(process.0), WaitOptions::NOHANG).unwrap_or_default();
            status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
            status.is_some()
        });
        let code = status.unwrap().code();
        code.unwrap_or_else(|| panic!("{process} was killed: {}", self.servers.program))
    }

    /// Lets the handlers that wait for this name go on, now and later.
    pub fn release(&self, name: &str) {
        fs::write(self.directory.join(&format!("released-{name}")), "").unwrap();
    }

    /// Returns the processes that have this server's directory in their environment. These are all
    /// of the server's processes, also unknown ones.
    pub fn processes(&self) -> impl Iterator<Item = ProcessId> {
        let own = format!("{DIRECTORY}={}", self.directory.path().display());
        let numbers = fs::read_dir("/proc").unwrap();
        let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter_map(Pid::from_raw).map(ProcessId).filter(move |process| {
            let variables = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes())
        })
    }

    /// Stops the keeper, asserts that each child has drained, and returns the log of all.
    pub fn end(mut self) -> String {
        self.servers.end()
    }

    /// Stops the keeper after an earlier child was killed or has cut work, and asserts that the
    /// remaining children drain. Returns the log of all.
    pub fn stop(self) -> String {
        self.servers.signal(Signal::TERM);
        self.ended()
    }

    /// Stops the keeper as [`Handover::stop`] does, after another child has replaced one that has
    /// died.
    pub fn stop_after_death(mut self, dead: ProcessId) -> String {
        self.servers.wait_for_another(dead);
        self.stop()
    }

    /// Waits for the end of a keeper that is stopping, and asserts that its children have drained.
    /// Returns the log of all.
    pub fn ended(mut self) -> String {
        let log = self.servers.program.log();
        assert_eq!(self.servers.program.exit_code(), 0, "{log}");
        assert_eq!(self.processes().next(), None, "{log}");
        log
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if thread::panicking() {
            for process in self.processes() {
                let _ = kill_process(process.0, Signal::KILL);
            }
        }
    }
}

/// Prepares this process for children and clients.
pub fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // A child whose keeper has ended becomes a child of this process, which reaps it.
        set_child_subreaper(Some(ProcessId::own().0)).unwrap();
        // Some tests have many clients, and the tests of a file run at the same time.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    });
}

/// Returns a copy of a descriptor of another process, which the test must be allowed to trace.
/// Returns `None` if the other process has closed the descriptor.
pub fn copy_of(process: ProcessId, fd: RawFd) -> Option<OwnedFd> {
    let pidfd = pidfd_open(process.0, PidfdFlags::empty()).unwrap();
    pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok()
}

/// Returns copies of the ends of parent channels and passages that a process has.
fn channels_of(process: ProcessId) -> impl Iterator<Item = OwnedFd> {
    let sockets = open_sockets(process).into_iter();
    let sockets = sockets.filter_map(move |(fd, _)| copy_of(process, fd));
    sockets.filter(|socket| socket_type(socket).is_ok_and(|kind| kind == SocketType::SEQPACKET))
}

/// Peeks at a passage, or at a parent channel whose next message is PASS, and returns the number of
/// connections in the unread batch.
fn unread_batch(channel: &OwnedFd) -> Option<usize> {
    let mut head = [0; 7];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut head)];
    // A look takes copies of the descriptors, and leaves the message in the channel.
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(channel, &mut pieces, &mut ancillary, peek).ok()?;
    let ends = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(ends) => Some(ends),
        _ => None,
    });
    let end = ends.flatten().next();
    match head {
        [b'C', _, _, _, _, high, low] => Some(u16::from_be_bytes([high, low]).into()),
        [b'P', ..] => unread_batch(&end?),
        _ => None,
    }
}

/// Asserts that the connection serves a request, and goes on.
pub fn assert_live(client: &mut Client) {
    let response = client.get("/livez").response();
    assert_eq!((&*response.text(), response.says_close()), ("live\n", false));
}

/// Suspends a process.
pub fn suspend(process: ProcessId) {
    process.signal(Signal::STOP);
    wait_until("the process is suspended", || process.is_suspended());
}

/// Returns the number before `words`, which may have commas, or 0 if they are not in the line.
pub fn number_before(line: &str, words: &str) -> u64 {
    let Some(end) = line.find(words) else { return 0 };
    let number = line[..end].rsplit(' ').next().unwrap().replace(',', "");
    number.parse().unwrap_or_else(|_| panic!("no number before {words:?}: {line}"))
}

/// Returns the number of descriptors that a process has open.
pub fn descriptors_of(process: ProcessId) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Returns the descriptor and the inode of each socket that a process has open.
pub fn open_sockets(process: ProcessId) -> Vec<(RawFd, u64)> {
    let inode =
        |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    links_of(process).filter_map(|(fd, link)| Some((fd, inode(link)?))).collect()
}

/// Returns a process's descriptors with their links.
fn links_of(process: ProcessId) -> impl Iterator<Item = (RawFd, PathBuf)> {
    // A process that has ended has no descriptors, and a descriptor that is closed meanwhile has no
    // link.
    let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
    open.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, fs::read_link(entry.path()).ok()?))
    })
}

// The program whose handlers wait for the test.

/// The test that has to call [`serve`] in each file that starts this program.
pub const PROGRAM: &str = "the_program_of_these_tests";

/// The variable of the program's address.
const LISTEN: &str = "HANDOVER_LISTEN";
/// The variable of the directory with the files that release the program's handlers.
const DIRECTORY: &str = "HANDOVER_DIRECTORY";
/// The variable of the number of the program's workers.
pub const THREADS: &str = "HANDOVER_THREADS";
/// The variable of the idle timeout, in seconds.
pub const IDLE_TIMEOUT: &str = "HANDOVER_IDLE_TIMEOUT";
/// If this variable is set, the program calls `serve` and `ready` instead of `run`.
pub const SERVE: &str = "HANDOVER_SERVE";
/// If this variable is set, the program is its own keeper.
const KEEP: &str = "HANDOVER_KEEP";
/// The variable of the path of the keeper's pid file.
pub const PID_FILE: &str = "HANDOVER_PID_FILE";

/// The length of the response to `/big`, in bytes.
pub const BIG_BODY: usize = 8 * 1024 * 1024;

/// Serves if a test has started this process for that. Otherwise returns at once.
///
/// `/pid` answers with the process, and `/peer` with the client. `/wait/NAME` logs `waiting for
/// NAME`, and answers with the process after the test has released the name. `/block/NAME` also
/// blocks its thread. `/big` has [`BIG_BODY`] bytes. A POST logs `handled PATH`, reads the body,
/// and answers with the path and the body.
pub fn serve() {
    serve_with(|_| Vec::new());
}

/// Serves as [`serve`] does, with further listeners, which `more` makes after signals are handled.
#[expect(clippy::exit, reason = "the exit code of a keeper is its child's")]
pub fn serve_with(more: impl FnOnce(&Path) -> Vec<Listener>) {
    let Ok(listen) = env::var(LISTEN) else { return };
    log_like_the_binary();
    let mut limits = Limits::default();
    if let Ok(seconds) = env::var(IDLE_TIMEOUT) {
        limits = limits.idle_timeout(Duration::from_secs(seconds.parse().unwrap()));
    }
    let shutdown = Shutdown::new().grace(PATIENCE);
    let server = Server::new(answer).limits(limits).shutdown(&shutdown);
    if env::var_os(SERVE).is_some() {
        let outcome = smol::block_on(async {
            let signals = signals().unwrap();
            let listener = Listener::bind(&*listen).unwrap();
            let serve = server.serve([listener.clone()]);
            ready(&[listener]).unwrap();
            shutdown.obey(signals, serve).await
        });
        return assert!(outcome.unwrap().is_drained());
    }
    let mut process = Process::default();
    if let Ok(threads) = env::var(THREADS) {
        process = process.threads(threads.parse().unwrap());
    }
    let listen = iter::once_with(|| Listener::bind(&*listen));
    let more = iter::once_with(|| more(&directory())).flatten().map(Ok);
    let run = |process: Process| process.run(server, listen.chain(more));
    if env::var_os(KEEP).is_none() {
        return assert!(run(process).unwrap().is_drained());
    }
    if let Some(path) = env::var_os(PID_FILE) {
        process = process.pid_file(path);
    }
    match process.keep(run).unwrap() {
        Kept::Child(outcome) => assert!(outcome.is_drained()),
        Kept::Keeper(exit) => process::exit(exit.code().into()),
    }
}

/// Logs in the form of the binary, in which each line has its process.
fn log_like_the_binary() {
    let pid = process::id();
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Info).target(env_logger::Target::Stderr);
    builder.format(move |line, record| {
        use std::io::Write;
        let (time, level) = (line.timestamp_millis(), record.level());
        writeln!(line, "[{time} {pid} {level:<5} {}] {}", record.target(), record.args())
    });
    builder.init();
}

async fn answer(mut request: Request) -> http_types::Result<Response> {
    let path = request.url().path().to_owned();
    let pid = process::id();
    if request.method() == Method::Post {
        log::info!("handled {path}");
        let body = request.body_string().await?;
        return Ok(format!("{path} {body}").into());
    }
    let mut words = path[1..].split('/');
    Ok(match (words.next().unwrap_or_default(), words.next()) {
        ("livez", None) => "live\n".into(),
        ("pid", None) => pid.to_string().into(),
        ("peer", None) => Peer::of(&request).to_string().into(),
        ("big", None) => Body::from(super::pattern(BIG_BODY)).into(),
        ("wait", Some(name)) => {
            log::info!("waiting for {name}");
            while !is_released(name) {
                Timer::after(POLL).await;
            }
            pid.to_string().into()
        }
        ("block", Some(name)) => {
            log::info!("waiting for {name}");
            iter::repeat_with(|| thread::sleep(POLL)).take_while(|()| !is_released(name)).count();
            pid.to_string().into()
        }
        _ => Response::new(StatusCode::NotFound),
    })
}

/// The pause of a handler before it checks again whether another process has released it.
const POLL: Duration = Duration::from_millis(2);

fn is_released(name: &str) -> bool {
    directory().join(format!("released-{name}")).exists()
}

fn directory() -> PathBuf {
    env::var_os(DIRECTORY).unwrap().into()
}
