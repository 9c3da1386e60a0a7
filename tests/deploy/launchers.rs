//! Launchers that run the keeper from a file in `deploy/`: s6, runit, and a container.
//!
//! The drop of a value ends the launcher and the server.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use super::common::{
    PATIENCE, ProcessId, installed, is_refused, run_ok, terminate, text, wait_at_most, wait_until,
};
use super::files::{Deployment, text_of};

/// A service directory with the run script of `deploy/`.
struct RunScript {
    deployment: Deployment,
    directory: PathBuf,
}

impl RunScript {
    fn new() -> Self {
        let deployment = Deployment::new();
        let directory = deployment.directory.join("app");
        fs::create_dir(&directory).unwrap();
        let run = directory.join("run");
        fs::write(&run, deployment.adapt("s6-runit/run")).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        Self { deployment, directory }
    }

    /// Starts the program that supervises the directory, and waits until the server answers.
    fn supervise(&self, mut supervisor: Command) -> Child {
        supervisor.arg(&self.directory).stdin(Stdio::null());
        supervisor.stdout(File::create(self.deployment.log()).unwrap()).stderr(Stdio::null());
        let child = supervisor.spawn().unwrap();
        wait_until("the server listens", || !is_refused(self.deployment.addr));
        child
    }
}

/// s6-supervise with the run script.
pub struct S6 {
    service: RunScript,
    supervisor: Child,
}

impl S6 {
    pub fn start() -> Self {
        let service = RunScript::new();
        let supervisor = service.supervise(installed("s6-supervise", "s6"));
        Self { service, supervisor }
    }

    pub fn deployment(&self) -> &Deployment {
        &self.service.deployment
    }

    /// Returns the process that s6 supervises.
    pub fn process(&self) -> String {
        self.state("pid")
    }

    pub fn restart_command(&self) -> String {
        format!("s6-svc -2 {}", self.service.directory.display())
    }

    /// Stops the server, and returns its exit code and the signal that has killed it, or -1.
    pub fn stop(&self) -> String {
        let mut svc = installed("s6-svc", "s6");
        svc.args(["-wD", "-T", "30000", "-d"]).arg(&self.service.directory);
        run_ok(&mut svc, b"");
        self.state("exitcode,signum")
    }

    fn state(&self, fields: &str) -> String {
        let mut stat = installed("s6-svstat", "s6");
        stat.args(["-o", fields]).arg(&self.service.directory);
        text(&run_ok(&mut stat, b"")).trim().to_owned()
    }
}

impl Drop for S6 {
    /// s6-supervise ends the server before it ends itself.
    fn drop(&mut self) {
        terminate(&mut self.supervisor);
    }
}

/// runsv with the run script.
pub struct Runit {
    service: RunScript,
    supervisor: Child,
}

impl Runit {
    pub fn start() -> Self {
        let service = RunScript::new();
        let supervisor = service.supervise(installed("runsv", "runit"));
        Self { service, supervisor }
    }

    pub fn deployment(&self) -> &Deployment {
        &self.service.deployment
    }

    /// Returns the process that runit supervises.
    pub fn process(&self) -> String {
        fs::read_to_string(self.service.directory.join("supervise/pid")).unwrap().trim().to_owned()
    }

    pub fn restart_command(&self) -> String {
        format!("sv 2 {}", self.service.directory.display())
    }

    /// Stops the server, and returns the output of `sv`.
    pub fn stop(&self) -> String {
        let mut sv = installed("sv", "runit");
        sv.args(["-w", "35", "down"]).arg(&self.service.directory);
        text(&run_ok(&mut sv, b""))
    }
}

impl Drop for Runit {
    /// runsv ends the server before it ends itself.
    fn drop(&mut self) {
        terminate(&mut self.supervisor);
    }
}

/// The server with the command of the Dockerfile, as process 1 of a namespace of process ids.
pub struct Container {
    pub deployment: Deployment,
    stop_signal: Signal,
    unshare: Child,
    /// Process 1, by its number outside of the namespace.
    pub first: ProcessId,
}

impl Container {
    /// Starts the container. This needs root, like Docker.
    pub fn start() -> Self {
        let deployment = Deployment::new();
        let dockerfile = deployment.adapt_text(&text_of("docker/Dockerfile"));
        let instruction = |name: &str| -> String {
            let mut lines = dockerfile.lines().filter_map(|line| line.strip_prefix(name));
            lines.next_back().unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
        };
        // The entry point is an array of strings without escapes.
        let entry_point = instruction("ENTRYPOINT");
        let words: Vec<_> = entry_point.split('"').skip(1).step_by(2).collect();
        assert!(entry_point.starts_with('[') && words.len() > 1, "{entry_point}");
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]).args(words);
        for variable in instruction("ENV").split(' ') {
            let (name, value) = variable.split_once('=').unwrap();
            // A real container has a network of its own, and this one shares the test's, so the
            // address is replaced.
            let addr = deployment.addr.to_string();
            unshare.env(name, if value == ":8082" { &addr } else { value });
        }
        let stop_signal = match &*instruction("STOPSIGNAL") {
            "SIGTERM" => Signal::TERM,
            other => panic!("{other} is not among the signals that the test knows"),
        };
        unshare.stdin(Stdio::null()).stdout(Stdio::null());
        unshare.stderr(File::create(deployment.log()).unwrap());
        let mut unshare = unshare.spawn().unwrap();
        wait_until("the server listens", || {
            let has_ended = unshare.try_wait().unwrap().is_some();
            assert!(!has_ended, "it has ended: {}", deployment.logged());
            !is_refused(deployment.addr)
        });
        let id = unshare.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let first = ProcessId(Pid::from_raw(children.trim().parse().unwrap()).unwrap());
        Self { deployment, stop_signal, unshare, first }
    }

    /// Returns the last server that the keeper has started.
    pub fn server(&self) -> ProcessId {
        let id = self.first;
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let last = children.split_whitespace().last().unwrap();
        ProcessId(Pid::from_raw(last.parse().unwrap()).unwrap())
    }

    /// Returns the command that replaces `docker kill -s USR2`.
    pub fn restart_command(&self) -> String {
        format!("kill -USR2 {}", self.first)
    }

    /// Stops the container as `docker stop` does, and returns the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.first.signal(self.stop_signal);
        let ended = wait_at_most(&mut self.unshare, PATIENCE);
        ended.unwrap_or_else(|| panic!("no end: {}", self.deployment.logged())).code()
    }
}

impl Drop for Container {
    /// The kernel ends the other processes of a namespace with its process 1.
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
