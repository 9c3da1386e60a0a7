//! A manager that treats the server like systemd 252. The manager reads the unit, starts
//! `ExecStart` with NOTIFY_SOCKET and WATCHDOG_USEC, reads the notifications, reloads by
//! `ExecReload`, and stops by TERM to the main process.
//!
//! So the test machine does not have to run systemd. Another test checks the unit by
//! `systemd-analyze verify`.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;

use super::common::{PATIENCE, ProcessId, next_message, service_manager, wait_at_most};
use super::files::Deployment;

/// One service, started from its unit.
pub struct Systemd {
    pub deployment: Deployment,
    settings: BTreeMap<String, String>,
    notifications: UnixDatagram,
    main: Child,
    /// All notifications so far, line by line.
    pub heard: Vec<String>,
}

impl Systemd {
    /// Starts the service, with the socket of the socket unit if `socket_is_enabled`, and waits
    /// until it is active.
    pub fn start(socket_is_enabled: bool) -> Self {
        Self::start_in(Deployment::new(), socket_is_enabled)
    }

    /// Starts the service without the socket unit and with a binary that the test may replace.
    pub fn start_replaceable() -> Self {
        Self::start_in(Deployment::replaceable(), false)
    }

    fn start_in(deployment: Deployment, socket_is_enabled: bool) -> Self {
        let settings = section(&deployment.adapt("systemd/smol-graceful.service"), "Service");
        let notifications = service_manager(&deployment.directory);
        let seconds: u64 = settings["WatchdogSec"].parse().unwrap();
        let mut command = Command::new("sh");
        // LISTEN_PID names the process that the shell becomes.
        let script = if socket_is_enabled { "LISTEN_PID=$$ exec \"$@\"" } else { "exec \"$@\"" };
        command.args(["-c", script, "sh"]).args(settings["ExecStart"].split(' '));
        command.env("NOTIFY_SOCKET", deployment.directory.join("manager"));
        command.env("WATCHDOG_USEC", (1_000_000 * seconds).to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(deployment.log()).unwrap());
        if socket_is_enabled {
            let socket = section(&deployment.adapt("systemd/smol-graceful.socket"), "Socket");
            assert_eq!(socket["ListenStream"], deployment.addr.to_string());
            let parent_fd: OwnedFd = TcpListener::bind(&socket["ListenStream"]).unwrap().into();
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", &socket["FileDescriptorName"]);
            command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).unwrap();
        }
        let main = command.spawn().unwrap();
        let mut systemd = Self { deployment, settings, notifications, main, heard: Vec::new() };
        systemd.wait_for("READY=1");
        systemd
    }

    /// Returns the main process of the service.
    pub fn main(&self) -> ProcessId {
        ProcessId::of(&self.main)
    }

    pub fn is_active(&mut self) -> bool {
        self.main.try_wait().unwrap().is_none()
    }

    /// Waits for a new notification with this line.
    pub fn wait_for(&mut self, line: &str) {
        self.wait_for_line(|heard| heard == line);
    }

    /// Waits for a new notification with a line for which `is_it` returns `true`.
    pub fn wait_for_line(&mut self, is_it: impl Fn(&str) -> bool) {
        while !self.next_lines().iter().any(|heard| is_it(heard)) {}
    }

    /// Returns the lines of the next notification.
    fn next_lines(&mut self) -> Vec<String> {
        let lines: Vec<_> = next_message(&self.notifications).lines().map(str::to_owned).collect();
        self.heard.extend(lines.iter().cloned());
        lines
    }

    /// Returns the command line by which `systemctl reload` reloads the service.
    pub fn reload_command(&self) -> String {
        self.settings["ExecReload"].replace("$MAINPID", &self.main().to_string())
    }

    /// Reloads the service, and waits for the notifications of a whole reload, which a unit with
    /// `Type=notify-reload` needs.
    pub fn reload(&mut self) {
        let status = Command::new("sh").arg("-c").arg(self.reload_command()).status().unwrap();
        assert!(status.success());
        loop {
            let lines = self.next_lines();
            if lines.iter().any(|line| line == "RELOADING=1") {
                assert!(lines.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{lines:?}");
                break;
            }
        }
        self.wait_for("READY=1");
    }

    /// Stops the service, and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        assert_eq!(self.settings["KillMode"], "mixed", "TERM is for the main process alone");
        self.main().signal(Signal::TERM);
        let ended = wait_at_most(&mut self.main, PATIENCE);
        let status = ended.unwrap_or_else(|| panic!("no end: {}", self.deployment.logged()));
        self.notifications.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        while let Ok(length) = self.notifications.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            self.heard.extend(text.lines().map(str::to_owned));
        }
        status.code()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.main.kill();
        let _ = self.main.wait();
    }
}

/// Returns the settings in a section of a unit.
fn section(unit: &str, name: &str) -> BTreeMap<String, String> {
    let head = format!("[{name}]");
    let lines = unit.lines().skip_while(|line| **line != head).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let settings = lines.filter(|line| !line.starts_with('#')).filter_map(|l| l.split_once('='));
    settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
