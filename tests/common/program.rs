//! Programs as processes: the real binary, an example, or another program.
//!
//! [`Program`] is a server whose log has its address. [`KeeperProcess`] is a keeper and its
//! children, [`Proxy`] a proxy in front of servers, [`ProcessId`] any process, by its number. The
//! drop of a value ends its process.

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

/// The signals that stop a server, with their names in the log.
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

    /// Starts an example. `cargo test` builds the examples.
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

    /// Starts `command`, and waits until its log has its address.
    pub fn start(command: Command) -> Self {
        Self::start_with_stdin(command, Stdio::null())
    }

    /// Starts `command` with a standard input, and waits until its log has its address.
    pub fn start_with_stdin(mut command: Command, stdin: impl Into<Stdio>) -> Self {
        command.stdin(stdin).stdout(Stdio::null());
        Self::of(command)
    }

    /// Starts `command` with a standard output, and waits until its log has its address. The lines
    /// of a pipe count as lines of the log.
    pub fn start_with_stdout(mut command: Command, stdout: impl Into<Stdio>) -> Self {
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

    /// Waits for a line of the log that contains `text`. Lines that an earlier wait has passed do
    /// not count.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_any(&[text])
    }

    /// Waits for a line of the log that contains one of `texts`.
    pub fn wait_for_any(&mut self, texts: &[&str]) -> String {
        self.log.wait_for(texts)
    }

    /// Waits for a line of the log for which `is_it` returns `true`. The line may be an old one.
    pub fn line_where(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.log.line_where(what, is_it)
    }

    /// Waits for the end of the program, and returns the whole log.
    pub fn log(&mut self) -> String {
        self.log.rest().join("\n")
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = wait_at_most(&mut self.child, PATIENCE);
        ended.unwrap_or_else(|| panic!("the program did not end: {self}"))
    }

    /// Waits for the end of the program, and returns its exit code. Panics if a signal has ended
    /// it.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        assert_eq!(status.signal(), None, "killed by a signal: {self}");
        status.code().unwrap()
    }

    /// Stops a server, and asserts that it drains.
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

/// The lines that a process writes to its standard error and output, if these are pipes.
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

    /// Waits for a line that contains one of `texts`.
    fn wait_for(&mut self, texts: &[&str]) -> String {
        let holds_one = |line: &str| texts.iter().any(|text| line.contains(text));
        self.next_where(&format!("{texts:?}"), holds_one)
    }

    /// Returns the first line for which `is_it` returns `true`, and waits if there is none yet.
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

    /// Waits for the end of the process, and returns all lines.
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

    /// Returns the process whose number follows `words`.
    pub fn named(line: &str, words: &str) -> Self {
        Self(Pid::from_raw(number_behind(line, words)).unwrap())
    }

    pub fn number(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    pub fn signal(self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }

    /// Returns `true` if the process runs, and `false` if it is a zombie.
    pub fn is_running(self) -> bool {
        test_kill_process(self.0).is_ok() && !self.stat().contains(") Z ")
    }

    /// Returns `true` if a signal has suspended the process.
    pub fn is_suspended(self) -> bool {
        self.stat().contains(") T ")
    }

    /// Returns the processor time of the process.
    pub fn processor_time(self) -> Duration {
        let stat = self.stat();
        let fields = stat.rsplit(") ").next().unwrap().split(' ');
        // The fields have the times in user mode and in the kernel, in hundredths of a second.
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Returns the exit status of a zombie.
    pub fn status_of_zombie(self) -> Option<ExitStatus> {
        let stat = self.stat();
        let fields = stat.rsplit(") ").next().unwrap();
        let status = fields.strip_prefix("Z ")?.trim_end().rsplit(' ').next().unwrap();
        Some(ExitStatus::from_raw(status.parse().unwrap()))
    }

    /// Returns the process's line in `/proc`, or an empty text if the process is gone.
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

/// Returns the number that follows the last `words`.
pub fn number_behind(line: &str, words: &str) -> i32 {
    let begin = line.rfind(words).unwrap() + words.len();
    line[begin..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// Returns a command for the real binary, which binds a port of the kernel's choice.
pub fn server_command(args: &[&str]) -> Command {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).args(args).stdin(Stdio::null());
    command
}

/// Returns a command for a keeper with these flags, whose children run `child`.
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
pub struct KeeperProcess {
    /// The keeper.
    pub program: Program,
    /// The child that serves.
    pub serving: ProcessId,
}

impl KeeperProcess {
    /// Starts a keeper without flags. Its children bind their sockets themselves.
    pub fn start(child: &Command) -> Self {
        Self::of(keep(&[], child))
    }

    /// Starts a keeper and waits until its first child is ready.
    pub fn of(keeper: Command) -> Self {
        Self::start_with_stdin(keeper, Stdio::null())
    }

    /// Starts a keeper with a standard input, and waits until its first child is ready.
    pub fn start_with_stdin(keeper: Command, stdin: impl Into<Stdio>) -> Self {
        let mut program = Program::start_with_stdin(keeper, stdin);
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

    /// Waits until the keeper logs that this child is ready, and notes it as the child that serves.
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
    /// ends when the last process that writes to it has ended.
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
    /// The address of the proxy's figures, if its configuration has one.
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

/// Ends a program by TERM, so that it can end its own children, and by KILL if it does not end.
pub fn terminate(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    if wait_at_most(child, PATIENCE).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the end of a process, but not longer than `longest`.
pub fn wait_at_most(child: &mut Child, longest: Duration) -> Option<ExitStatus> {
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

/// Returns a command for a program of a Debian package, also in the directories for root.
pub fn installed(name: &str, package: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: install {package}")))
}

/// Returns a command for a Chromium that stays on this machine. Chromium leads a process group,
/// because its children must not outlive a test that fails.
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

/// Returns a command for the server with `fds` from descriptor 3 on and `LISTEN_PID` set to `pid`,
/// which may be `$$`, the shell's own id. If `how` is `exec`, the shell becomes the server.
pub fn activated(pid: &str, how: &str, fds: Vec<OwnedFd>, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    // The last command is not the server, because a shell may become its last command by itself.
    let script = format!("export LISTEN_PID={pid}; {how} \"$@\"; exit $?");
    command.args(["-c", &script, "sh", SERVER]).args(args);
    command.env("LISTEN_FDS", fds.len().to_string());
    let mappings = (3..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

/// Replaces a program by a file with these bytes, as a deployment does.
pub fn install(program: &Path, bytes: &[u8]) {
    let (text, new) = (program.with_extension("text"), program.with_extension("new"));
    fs::write(&text, bytes).unwrap();
    copy_file(&text, &new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, program).unwrap();
}

/// Copies a file by another process. If this process wrote the file, a child that another test
/// starts would have its descriptor for a moment, and the kernel would refuse to run the file
/// ("Text file busy").
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
pub fn next_message(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let n = manager.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

/// Runs `command` with its own standard input until it ends, and returns its output.
pub fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    handle_ignored_signals();
    collect(command, PATIENCE, b"")
}

/// Runs `command` with `input` on its standard input, and asserts that it succeeds. Returns its
/// standard output.
pub fn run_ok(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let output = output_within(command, input, PATIENCE);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output.stdout
}

/// Runs `command` with `input` on its standard input until it ends, and returns its output.
pub fn output_within(command: &mut Command, input: &[u8], longest: Duration) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    collect(command, longest, input)
}

fn collect(command: &mut Command, longest: Duration, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // A program may end without reading all of its input.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let [stdout, stderr] =
            [Box::new(stdout) as Box<dyn Read + Send>, Box::new(stderr)].map(|mut from| {
                scope.spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = from.read_to_end(&mut bytes);
                    bytes
                })
            });
        let status = wait_at_most(&mut child, longest);
        if status.is_none() {
            // If the program leads a group, its children are killed, too, because they hold its
            // output open.
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

/// Returns the number of sockets that a process has open (Linux).
pub fn sockets_of(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // A descriptor that is closed meanwhile has no link any more.
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Handles HUP, INT and QUIT if this process ignores them, as under `nohup` or in a script's
/// background. Its children would inherit an ignored signal, but not a handler.
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

/// Waits until the server counts the next signal as a second one, not as a repeat. Only the
/// server's clock decides this, and its window is 100 ms (rule S14).
pub fn pass_repeat_window() {
    thread::sleep(Duration::from_millis(150));
}
