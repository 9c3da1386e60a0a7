//! What the scenario files share: a server in this process, the real binary, a raw client.
//!
//! Nothing here sleeps to make a test pass. Every wait has a generous limit ([`PATIENCE`]), so
//! that what hangs fails instead.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::fmt;
use std::fs;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use async_signal::{Signal as Ignorable, Signals};
use rustix::process::{Pid, Signal, kill_process};
use smol::channel;
use smol_graceful::{Address, Limits, Listener, Outcome, Request, Response, Server, Shutdown};

/// How long anything may take before the test fails: far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server on a thread of its own, on a port of the kernel's choice.
pub struct Running {
    pub addr: SocketAddr,
    pub shutdown: Shutdown,
    outcome: Receiver<Outcome>,
}

impl Running {
    /// Serves `handler` with the default limits.
    pub fn new<H, F, R>(handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response> + 'static,
    {
        Self::with(Limits::default(), handler)
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
        Self::of(Server::new(handler).shutdown(shutdown))
    }

    /// Serves with a server that was made elsewhere, on a port of the kernel's choice.
    pub fn of(server: Server) -> Self {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let shutdown = server.handle();
        let (send, outcome) = mpsc::channel();
        thread::spawn(move || {
            // A bare `block_on`: the server needs no runtime.
            let outcome = futures_lite::future::block_on(server.serve([listener])).unwrap();
            let _ = send.send(outcome);
        });
        Self { addr, shutdown, outcome }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Whether the server has ended by now.
    pub fn try_outcome(&self) -> Option<Outcome> {
        self.outcome.try_recv().ok()
    }

    /// Waits for the server's end; does not stop it.
    pub fn outcome(&self) -> Outcome {
        self.outcome.recv_timeout(PATIENCE).expect("the server did not end")
    }

    /// Stops the server and waits for its end.
    pub fn stop(&self) -> Outcome {
        self.shutdown.stop();
        self.outcome()
    }
}

/// A raw client: bytes out, bytes in.
pub struct Client {
    pub stream: TcpStream,
    /// Read from the stream and not yet consumed.
    buffer: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Eof,
    Reset,
}

/// A response as it came over the wire.
#[derive(Debug, Clone)]
pub struct Received {
    pub status: u16,
    /// The status line and the header fields, without line ends.
    pub lines: Vec<String>,
    pub body: Vec<u8>,
}

impl Received {
    /// The value of a field; several lines are joined by `, `.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self
            .lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        TcpStream::connect_timeout(&addr, PATIENCE).unwrap().into()
    }

    /// Connects to a TCP or Unix socket. The standard library's TCP stream reads and writes either.
    pub fn connect_to(address: &Address) -> Self {
        let stream = match address {
            Address::Tcp(addr) => return Self::connect(*addr),
            Address::Unix(path) => UnixStream::connect(path),
            #[cfg(target_os = "linux")]
            Address::Abstract(name) => {
                use std::os::linux::net::SocketAddrExt;
                let name =
                    std::os::unix::net::SocketAddr::from_abstract_name(name.as_encoded_bytes());
                UnixStream::connect_addr(&name.unwrap())
            }
            _ => panic!("nobody can connect to {address}"),
        };
        Self::of(OwnedFd::from(stream.unwrap()).into())
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// `GET path`, keep-alive.
    pub fn get(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) -> &mut Self {
        self.stream.shutdown(Half::Write).unwrap();
        self
    }

    /// Closes with a reset instead of a FIN.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The next response to a request that was not HEAD.
    pub fn response(&mut self) -> Received {
        self.try_response(false).expect("the connection ended before a whole response")
    }

    /// The next response to HEAD: framing fields, no body.
    pub fn response_to_head(&mut self) -> Received {
        self.try_response(true).expect("the connection ended before a whole response")
    }

    /// The next response, or how the connection ended before there was a whole one.
    pub fn try_response(&mut self, to_head: bool) -> Result<Received, End> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            self.fill()?;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let lines: Vec<_> = head.trim_end().split("\r\n").map(str::to_owned).collect();
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let mut received = Received { status, lines, body: Vec::new() };
        let no_body = to_head || status < 200 || status == 204 || status == 304;
        if no_body {
            return Ok(received);
        }
        if received.header("transfer-encoding").is_some() {
            received.body = self.chunks()?;
        } else if let Some(length) = received.header("content-length") {
            received.body = self.take(length.parse().unwrap())?;
        } else {
            let (body, end) = self.rest();
            if end == End::Reset {
                return Err(end);
            }
            received.body = body;
        }
        Ok(received)
    }

    /// Everything that still comes, and how it ended.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            match self.fill() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }

    /// How the connection ends; nothing more may come before.
    pub fn end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&rest));
        end
    }

    /// Waits until at least `n` bytes have come, and consumes exactly `n`.
    pub fn take(&mut self, n: usize) -> Result<Vec<u8>, End> {
        while self.buffer.len() < n {
            self.fill()?;
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> Result<String, End> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                break end;
            }
            self.fill()?;
        };
        let line = self.buffer.drain(..end + 2).collect::<Vec<_>>();
        Ok(String::from_utf8(line[..end].to_vec()).unwrap())
    }

    fn chunks(&mut self) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        loop {
            let size = self.line()?;
            let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size)?);
            assert_eq!(self.take(2)?, b"\r\n");
        }
    }

    fn fill(&mut self) -> Result<(), End> {
        let mut bytes = [0; 16 * 1024];
        loop {
            return match self.stream.read(&mut bytes) {
                Ok(0) => Err(End::Eof),
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Reset),
                Err(error) => panic!("waited in vain for the server: {error}"),
            };
        }
    }
}

/// The binary under test, or an example, as a process of its own.
pub struct Program {
    child: Child,
    pub addr: SocketAddr,
    log: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    /// The server itself, on a port of the kernel's choice.
    pub fn server(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smol-graceful"));
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        Self::start(command)
    }

    /// An example; `cargo test` builds them.
    pub fn example(name: &str, args: &[&str]) -> Self {
        Self::start(Self::example_command(name, args))
    }

    pub fn example_command(name: &str, args: &[&str]) -> Command {
        let bin = std::path::Path::new(env!("CARGO_BIN_EXE_smol-graceful"));
        let path = bin.parent().unwrap().join("examples").join(name);
        assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
        let mut command = Command::new(path);
        command.args(args);
        command
    }

    /// Starts `command` and waits until its log says where it listens.
    pub fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// The same with something on its standard input.
    pub fn start_with(mut command: Command, stdin: Stdio) -> Self {
        handle_ignored_signals();
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, log) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let addr = ([0, 0, 0, 0], 0).into();
        let mut program = Self { child, addr, log, seen: Vec::new() };
        let line = program.wait_for("listening on ");
        let addr = line.rsplit("listening on ").next().unwrap();
        let addr = addr.split(' ').next().unwrap();
        if let Ok(addr) = addr.parse() {
            program.addr = addr;
        }
        program
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for a line of the log that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_any(&[text])
    }

    /// Waits for a line of the log that holds one of `texts`.
    pub fn wait_for_any(&mut self, texts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if texts.iter().any(|text| line.contains(text)) {
                        return line;
                    }
                }
                Err(_) => panic!("no {texts:?} in the log: {self}"),
            }
        }
    }

    /// The whole log, once the program has ended.
    pub fn log(&mut self) -> String {
        self.seen.extend(self.log.iter());
        self.seen.join("\n")
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program did not end: {self}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end by itself, not by a signal, and gives its exit code.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        assert_eq!(status.signal(), None, "killed by a signal: {self}");
        status.code().unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// Handles HUP, INT and QUIT if this process ignores them, as under `nohup` or in a script's
/// background: its children would go on to ignore them, but not to handle them.
pub fn handle_ignored_signals() {
    static HANDLED: OnceLock<Option<Signals>> = OnceLock::new();
    HANDLED.get_or_init(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        let ignored = u64::from_str_radix(ignored.trim(), 16).ok()?;
        let ones = [Ignorable::Hup, Ignorable::Int, Ignorable::Quit];
        let ones = ones.into_iter().filter(|one| ignored & (1 << (*one as i32 - 1)) != 0);
        Signals::new(ones.collect::<Vec<_>>()).ok()
    });
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.seen.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Knows where a test's handlers are, and lets them go on.
pub struct Stagehand {
    entered: Receiver<String>,
    gate: Mutex<Option<channel::Sender<()>>>,
}

impl Stagehand {
    /// With what handlers need: they say by the first with which path they were called, and wait at
    /// the second, on which nothing is ever sent: it is opened by being closed.
    pub fn new() -> (Self, mpsc::Sender<String>, channel::Receiver<()>) {
        let (enter, entered) = mpsc::channel();
        let (open, gate) = channel::bounded(1);
        (Self { entered, gate: Mutex::new(Some(open)) }, enter, gate)
    }

    /// Waits until a handler has been called with this path.
    pub fn entered(&self, path: &str) {
        assert_eq!(self.entered.recv_timeout(PATIENCE).expect("no handler was called"), path);
    }

    /// Lets all handlers go on, now and later.
    pub fn open(&self) {
        self.gate.lock().unwrap().take();
    }
}

/// A directory that is removed with this.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: the paths of sockets are.
        let path = std::env::temp_dir().join(format!("sg-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes as text, for messages and comparisons.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes of which no two neighbours are the same.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// Runs one case of a table, and names the case if it fails.
pub fn case(name: &str, run: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_ok(), "failed: {name:?}");
}

/// Waits until nothing is in flight, and asserts that the server drains.
pub fn settle(server: &Running) {
    wait_until("every connection has ended", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// Waits until a further signal counts as a second one: the first one was heard before this.
pub fn pass_repeat_window() {
    thread::sleep(Duration::from_millis(150));
}

/// Waits until `done`, which something else will make true.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl From<TcpStream> for Client {
    /// For those who look at how connecting ends.
    fn from(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::of(stream)
    }
}

/// A port that nobody has; someone else may take it, which a test that fails then says.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A program that a package has, also where only root looks.
pub fn program(name: &str, package: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found =
        path.split(':').map(|dir| std::path::Path::new(dir).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: install {package}")))
}

/// Connects `count` clients, each with a request. The kernel queues them while the server is suspended.
pub fn queued(addr: SocketAddr, count: usize) -> Vec<Client> {
    let client = |_| {
        let mut client = Client::connect(addr);
        client.get("/work?for=0s");
        client
    };
    (0..count).map(client).collect()
}

/// Asserts that each client gets its answer.
pub fn assert_all_okay(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.response().text(), "okay");
    }
}

/// The signals that stop a server, and how the log calls them.
pub const STOP_SIGNALS: [(Signal, &str); 4] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::TERM, "SIGTERM"),
    (Signal::QUIT, "SIGQUIT"),
];
