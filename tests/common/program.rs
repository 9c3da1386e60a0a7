//! Programs as processes: the real binary, an example, or what they are used with.
//!
//! [`Program`] is a server that says in its log where it listens. [`Generations`] is a keeper and
//! its children, [`Proxy`] a proxy in front of servers, [`ProcessId`] any process, by its number.
//! A process that a test has started ends with the value that stands for it.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use async_signal::{Signal as Ignorable, Signals};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

use super::{Client, Directory, PATIENCE, free_port, is_refused, text, wait_until};

/// The binary under test.
pub const SERVER: &str = env!("CARGO_BIN_EXE_smol-graceful");

/// The signals that stop a server, and how the log calls them.
pub const STOP_SIGNALS: [(Signal, &str); 4] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::TERM, "SIGTERM"),
    (Signal::QUIT, "SIGQUIT"),
];

/// The binary under test, or an example, as a process of its own.
pub struct Program {
    child: Child,
    pub addr: SocketAddr,
    log: LogLines,
}

impl Program {
    /// Starts the server itself, on a port of the kernel's choice.
    pub fn server(args: &[&str]) -> Self {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        Self::start(command)
    }

    /// Starts an example; `cargo test` builds them.
    pub fn example(name: &str, args: &[&str]) -> Self {
        Self::start(Self::example_command(name, args))
    }

    pub fn example_command(name: &str, args: &[&str]) -> Command {
        let path = Path::new(SERVER).parent().unwrap().join("examples").join(name);
        assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
        let mut command = Command::new(path);
        command.args(args);
        command
    }

    /// Starts `command` and waits until its log says where it listens.
    pub fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Starts `command` with something on its standard input, and waits until its log says where
    /// it listens.
    pub fn start_with(mut command: Command, stdin: impl Into<Stdio>) -> Self {
        command.stdin(stdin).stdout(Stdio::null());
        Self::of(command)
    }

    /// Starts `command` with a standard output, and waits until its log says where it listens. The
    /// lines of a pipe are taken for lines of the log.
    pub fn start_onto(mut command: Command, stdout: impl Into<Stdio>) -> Self {
        command.stdin(Stdio::null()).stdout(stdout);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        handle_ignored_signals();
        command.stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = LogLines::of(&mut child);
        let line = log.wait_for(&["listening on "]);
        let addr = line.rsplit("listening on ").next().unwrap();
        let addr = addr.split(' ').next().unwrap().parse().ok();
        Self { child, addr: addr.unwrap_or(([0, 0, 0, 0], 0).into()), log }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn process(&self) -> ProcessId {
        ProcessId::of(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits for a line of the log that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_any(&[text])
    }

    /// Waits for a line of the log that holds one of `texts`.
    pub fn wait_for_any(&mut self, texts: &[&str]) -> String {
        self.log.wait_for(texts)
    }

    /// Waits for a line of the log for which `is_it` returns `true`. The line may be an old one.
    pub fn line_where(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.log.line_where(what, is_it)
    }

    /// Returns the whole log, once the program has ended.
    pub fn log(&mut self) -> String {
        self.log.rest().join("\n")
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = end_of(&mut self.child, PATIENCE);
        ended.unwrap_or_else(|| panic!("the program did not end: {self}"))
    }

    /// Waits for the end by itself, not by a signal, and returns its exit code.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        assert_eq!(status.signal(), None, "killed by a signal: {self}");
        status.code().unwrap()
    }

    /// Stops a server that drains.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.exit_code(), 0, "{self}");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log.seen.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a process writes to its standard error and output, as far as they are pipes.
struct LogLines {
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl LogLines {
    fn of(child: &mut Child) -> Self {
        let (send, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            pass_lines(stdout, send.clone());
        }
        pass_lines(child.stderr.take().unwrap(), send);
        Self { lines, seen: Vec::new() }
    }

    /// Waits for a line that holds one of `texts`.
    fn wait_for(&mut self, texts: &[&str]) -> String {
        let holds_one = |line: &str| texts.iter().any(|text| line.contains(text));
        self.next_where(&format!("{texts:?}"), holds_one)
    }

    /// Returns the first line for which `is_it` returns `true`, and waits for one if need be.
    fn line_where(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        match self.seen.iter().find(|line| is_it(line)) {
            Some(line) => line.clone(),
            None => self.next_where(what, is_it),
        }
    }

    /// Waits for a new line for which `is_it` returns `true`.
    fn next_where(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {what} in the log: {}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if is_it(&line) {
                return line;
            }
        }
    }

    /// Returns all lines, once the process has ended.
    fn rest(&mut self) -> &[String] {
        self.seen.extend(self.lines.iter());
        &self.seen
    }
}

fn pass_lines(from: impl Read + Send + 'static, send: mpsc::Sender<String>) {
    let lines = BufReader::new(from).lines().map_while(Result::ok);
    thread::spawn(move || lines.map(|line| send.send(line)).take_while(Result::is_ok).count());
}

/// Any process, a child or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId(pub Pid);

impl ProcessId {
    pub fn of(child: &Child) -> Self {
        Self(Pid::from_child(child))
    }

    /// Returns the process that runs this test.
    pub fn own() -> Self {
        Self(rustix::process::getpid())
    }

    /// Returns the process whose number stands behind `words`.
    pub fn named(line: &str, words: &str) -> Self {
        Self(Pid::from_raw(number_behind(line, words)).unwrap())
    }

    pub fn number(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    pub fn signal(self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }

    /// Returns `false` for a process that has ended and is not waited for, too.
    pub fn is_running(self) -> bool {
        test_kill_process(self.0).is_ok() && !self.stat().contains(") Z ")
    }

    /// Returns `true` if a signal has suspended the process.
    pub fn is_suspended(self) -> bool {
        self.stat().contains(") T ")
    }

    /// Returns how long the process has kept a processor busy.
    pub fn processor_time(self) -> Duration {
        let stat = self.stat();
        let fields = stat.rsplit(") ").next().unwrap().split(' ');
        // In user mode and in the kernel, in hundredths of a second.
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Returns the exit status of a process that has ended and for which its parent has not waited.
    pub fn status_of_zombie(self) -> Option<ExitStatus> {
        let stat = self.stat();
        let fields = stat.rsplit(") ").next().unwrap();
        let status = fields.strip_prefix("Z ")?.trim_end().rsplit(' ').next().unwrap();
        Some(ExitStatus::from_raw(status.parse().unwrap()))
    }

    /// Returns the kernel's words on the process, or nothing if the process is gone.
    fn stat(self) -> String {
        fs::read_to_string(format!("/proc/{}/stat", self.number())).unwrap_or_default()
    }

    pub fn wait(self) {
        wait_until("the process has ended", || !self.is_running());
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// Returns the number behind `words`, where they stand last.
pub fn number_behind(line: &str, words: &str) -> i32 {
    let begin = line.rfind(words).unwrap() + words.len();
    line[begin..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// Returns a command for the real binary on a port of the kernel's choice, which it binds itself.
pub fn server_command(args: &[&str]) -> Command {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).args(args).stdin(Stdio::null());
    command
}

/// Returns a command for a keeper with these flags, whose children are started as `child` says.
pub fn keep(flags: &[&str], child: &Command) -> Command {
    let mut command = Command::new(SERVER);
    command.arg("keep").args(flags).arg("--").arg(child.get_program()).args(child.get_args());
    for (name, value) in child.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(child.get_current_dir().unwrap_or(Path::new(".")));
    command
}

/// A keeper and its children, which share the log.
pub struct Generations {
    /// The keeper.
    pub program: Program,
    /// The child that serves.
    pub serving: ProcessId,
}

impl Generations {
    /// Starts a keeper without flags. Its children bind their sockets themselves.
    pub fn start(child: &Command) -> Self {
        Self::of(keep(&[], child))
    }

    /// Starts a keeper and waits until its first child is ready.
    pub fn of(keeper: Command) -> Self {
        Self::start_with(keeper, Stdio::null())
    }

    /// Starts a keeper with something on its standard input, and waits until its first child is
    /// ready.
    pub fn start_with(keeper: Command, stdin: impl Into<Stdio>) -> Self {
        let mut program = Program::start_with(keeper, stdin);
        let ready = program.line_where("ready child", |line| line.contains(" is ready after "));
        Self { serving: ProcessId::named(&ready, "keeper: process "), program }
    }

    /// Returns the keeper's process.
    pub fn keeper(&self) -> ProcessId {
        self.program.process()
    }

    /// Sends a signal to the keeper.
    pub fn signal(&self, signal: Signal) {
        self.program.signal(signal);
    }

    /// Lets a successor take over, and returns its predecessor.
    pub fn restart(&mut self) -> ProcessId {
        let predecessor = self.serving;
        self.signal(Signal::USR2);
        self.wait_for_successor();
        predecessor
    }

    /// Waits until a successor has taken over.
    pub fn wait_for_successor(&mut self) {
        let words = format!(" takes over from process {}", self.serving);
        let told = self.program.line_where(&words, |line| line.ends_with(&words));
        self.serving = ProcessId::named(&told, "keeper: process ");
    }

    /// Waits until the keeper has started the next child, and returns it.
    pub fn wait_for_start(&mut self) -> ProcessId {
        let told = self.program.wait_for("keeper: started process ");
        ProcessId::named(&told, "keeper: started process ")
    }

    /// Waits until the keeper calls this child ready, and takes it for the one that serves.
    pub fn wait_for_ready(&mut self, process: ProcessId) {
        let words = format!("keeper: process {process} is ready after ");
        self.program.line_where(&words, |line| line.contains(&words));
        self.serving = process;
    }

    /// Waits for the keeper's line on the end of a child.
    pub fn line_of_end(&mut self, process: ProcessId) -> String {
        let words = [" has ended: ", " has died: ", " was ready and has ended: "]
            .map(|words| format!("keeper: process {process}{words}"));
        self.program.line_where(&words[0], |line| words.iter().any(|words| line.contains(words)))
    }

    /// Waits until another child is ready in place of one that has died.
    pub fn wait_for_another(&mut self, dead: ProcessId) {
        let end = self.line_of_end(dead);
        let is_dead = Cell::new(false);
        self.program.line_where("another child", |line| {
            is_dead.set(is_dead.get() || line == end);
            is_dead.get() && line.contains(" is ready after ")
        });
    }

    /// Waits until a child has ended by itself, and returns its exit code.
    pub fn exit_code(&mut self, process: ProcessId) -> i32 {
        let line = self.line_of_end(process);
        assert!(line.contains(": exit status: "), "{line}: {}", self.program);
        number_behind(&line, ": exit status: ")
    }

    /// Stops the keeper, asserts that each child has drained, and returns the log of all. The log
    /// ends when no process is left that writes to it.
    pub fn end(&mut self) -> String {
        self.signal(Signal::TERM);
        let log = self.program.log();
        assert_eq!(self.program.exit_code(), 0, "{log}");
        let restarts = log.matches(" takes over from process ").count();
        assert_eq!(log.matches("drained in ").count(), 1 + restarts, "{log}");
        log
    }
}

/// A proxy, on a free port, with a directory of its own.
pub struct Proxy {
    child: Child,
    pub addr: SocketAddr,
    /// Where the proxy tells its figures, if its configuration says so.
    pub stats: SocketAddr,
    log: LogLines,
    _directory: Directory,
}

impl Proxy {
    pub fn nginx(configure: impl Fn(&Path, SocketAddr, SocketAddr) -> String) -> Self {
        Self::start(configure, |config| {
            let mut nginx = installed("nginx", "nginx");
            nginx.arg("-p").arg(config.parent().unwrap());
            nginx.arg("-c").arg(config).args(["-e", "stderr", "-g", "daemon off;"]);
            nginx
        })
    }

    pub fn haproxy(configure: impl Fn(&Path, SocketAddr, SocketAddr) -> String) -> Self {
        Self::start(configure, |config| {
            let mut haproxy = installed("haproxy", "haproxy");
            haproxy.arg("-db").arg("-f").arg(config);
            haproxy
        })
    }

    /// Starts a proxy and waits until it listens. `configure` returns the configuration for a
    /// directory, an address to listen on, and one for figures. If another process takes a port
    /// that was free, the proxy gets another one.
    fn start(
        configure: impl Fn(&Path, SocketAddr, SocketAddr) -> String,
        command: impl Fn(&Path) -> Command,
    ) -> Self {
        for _ in 0..5 {
            let directory = Directory::new();
            let (addr, stats) = (free_port(), free_port());
            let config = directory.join("config");
            fs::write(&config, configure(directory.path(), addr, stats)).unwrap();
            let mut command = command(&config);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let log = LogLines::of(&mut child);
            let mut proxy = Self { child, addr, stats, log, _directory: directory };
            let mut has_ended = false;
            wait_until("the proxy listens", || {
                has_ended = proxy.child.try_wait().unwrap().is_some();
                has_ended || !is_refused(addr)
            });
            if !has_ended {
                return proxy;
            }
        }
        panic!("the proxy does not start")
    }

    /// Waits for a line of its log.
    pub fn wait_for(&mut self, text: &str) {
        self.log.wait_for(&[text]);
    }

    /// Ends the proxy and returns its log.
    pub fn end(&mut self) -> Vec<String> {
        terminate(&mut self.child);
        self.log.rest().to_vec()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

/// Ends a program by TERM, so that it can end the programs that it has started itself, and by force
/// if it does not end.
pub fn terminate(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    if end_of(child, PATIENCE).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the end of a process, but not longer than this.
pub fn end_of(child: &mut Child, longest: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a command for a program that a package has, also where only root looks.
pub fn installed(name: &str, package: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: install {package}")))
}

/// Returns a command for a Chromium that stays on this machine. It leads a process group, because
/// its children must not outlive a test that fails.
pub fn chromium(profile: &Directory) -> Command {
    let mut chromium = installed("chromium", "chromium");
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display())).process_group(0);
    chromium
}

/// Returns a command for the server with `fds` from descriptor 3 on, which are meant for the
/// process `pid` of the shell that starts the server: `$$` is the shell's own. With `exec` for
/// `how`, the shell becomes the server.
pub fn activated(pid: &str, how: &str, fds: Vec<OwnedFd>, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    // With a last command that is not the server, no shell becomes the server by itself.
    let script = format!("export LISTEN_PID={pid}; {how} \"$@\"; exit $?");
    command.args(["-c", &script, "sh", SERVER]).args(args);
    command.env("LISTEN_FDS", fds.len().to_string());
    let mappings = (3..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

/// Puts a file with these bytes in the place of a program, as a deployment does.
pub fn install(program: &Path, bytes: &[u8]) {
    let (text, new) = (program.with_extension("text"), program.with_extension("new"));
    fs::write(&text, bytes).unwrap();
    copy_file(&text, &new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, program).unwrap();
}

/// Copies by a process of its own. A child that another test starts would have this process's
/// descriptor for a moment, and the kernel would refuse to run the file ("Text file busy").
pub fn copy_file(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
}

/// Binds the socket of a service manager in `directory`.
pub fn service_manager(directory: &Directory) -> UnixDatagram {
    let manager = UnixDatagram::bind(directory.join("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    manager
}

/// Returns the next message to the manager.
pub fn hear(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let n = manager.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

/// Runs `command`, whose standard input is its own affair, until it ends by itself.
pub fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    handle_ignored_signals();
    collect(command, PATIENCE, b"")
}

/// Runs `command` with `input` on its standard input; the command must succeed. Returns its
/// standard output.
pub fn run_ok(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let output = output_within(command, input, PATIENCE);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output.stdout
}

/// Runs `command` with `input` on its standard input until it ends by itself.
pub fn output_within(command: &mut Command, input: &[u8], longest: Duration) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    collect(command, longest, input)
}

fn collect(command: &mut Command, longest: Duration, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // A program that does not read its input to the end has its reasons.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let [stdout, stderr] =
            [Box::new(stdout) as Box<dyn Read + Send>, Box::new(stderr)].map(|mut from| {
                scope.spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = from.read_to_end(&mut bytes);
                    bytes
                })
            });
        let status = end_of(&mut child, longest);
        if status.is_none() {
            // Its children too, if it leads a group, because they hold its output open.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.kill();
            let _ = child.wait();
        }
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let status = status.unwrap_or_else(|| {
            panic!("{command:?} did not end: {}\n{}", text(&stdout), text(&stderr))
        });
        Output { status, stdout, stderr }
    })
}

/// Returns how many sockets a process has open (Linux).
pub fn sockets_of(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // A descriptor that is closed meanwhile has no link any more.
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
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

/// Waits until a further signal counts as a second one. Only the server's clock says when this is,
/// and its window is 100 ms (rule S14).
pub fn pass_repeat_window() {
    thread::sleep(Duration::from_millis(150));
}
