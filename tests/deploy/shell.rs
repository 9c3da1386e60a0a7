//! The shell script in `deploy/shell`, and the server that it has started.
//!
//! The server is not a child of the test. The drop of [`Shell`] stops the server by the script.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::common::{PATIENCE, handle_ignored_signals, wait_at_most};
use super::files::Deployment;

pub struct Shell {
    pub deployment: Deployment,
    script: PathBuf,
}

/// The result of a call of the script.
pub struct ScriptResult {
    pub code: i32,
    /// The output, with standard error.
    pub output: String,
}

impl Shell {
    /// Puts the script and the binary in place, and starts nothing.
    pub fn new() -> Self {
        let deployment = Deployment::replaceable();
        let script = deployment.directory.join("app");
        fs::write(&script, deployment.adapt("shell/app")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        Self { deployment, script }
    }

    /// Returns the shell's command for `verb`.
    pub fn command_line(&self, verb: &str) -> String {
        format!("{} {verb}", self.script.display())
    }

    /// Runs the script until it ends, and returns its result.
    pub fn run(&self, verb: &str) -> ScriptResult {
        handle_ignored_signals();
        // The output is a file and not a pipe, because a server that inherited a pipe would keep it
        // open.
        let output = self.deployment.directory.join("output");
        let file = fs::File::create(&output).unwrap();
        let mut command = Command::new(&self.script);
        command.args(verb.split_whitespace()).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut child = command.spawn().unwrap();
        let ended = wait_at_most(&mut child, PATIENCE);
        let output = fs::read_to_string(&output).unwrap();
        if ended.is_none() {
            let _ = child.kill();
        }
        let status =
            ended.unwrap_or_else(|| panic!("{verb}: {output}{}", self.deployment.logged()));
        ScriptResult { code: status.code().unwrap(), output }
    }

    /// Returns the process in the pid file.
    pub fn process(&self) -> i32 {
        let file = self.deployment.directory.join("smol-graceful.pid");
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let file = self.deployment.directory.join("smol-graceful.pid");
        let process = fs::read_to_string(file).unwrap_or_default();
        // A keeper that has stopped has removed the file.
        if let Some(process) = process.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(
                process,
                if thread::panicking() { Signal::KILL } else { Signal::TERM },
            );
        }
    }
}
