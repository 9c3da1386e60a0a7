//! A supervisord of its own, with one of the files in `deploy/supervisord`.
//!
//! The drop of [`Supervisord`] ends supervisord and its programs.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::common::{installed, terminate, text, wait_until};
use super::files::Deployment;

pub struct Supervisord {
    child: Child,
    config: PathBuf,
    pub deployment: Deployment,
}

impl Supervisord {
    /// Starts supervisord, and waits until its programs run.
    pub fn start(file: &str) -> Self {
        let deployment = Deployment::new();
        let dir = deployment.directory.path().display();
        let config = deployment.directory.join("supervisord.conf");
        let ours = deployment.adapt(&format!("supervisord/{file}"));
        let whole = format!(
            "[unix_http_server]\nfile={dir}/ctl\n\
             [supervisord]\nnodaemon=true\nlogfile={dir}/log\npidfile={dir}/pid\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{dir}/ctl\n{ours}"
        );
        fs::write(&config, whole).unwrap();
        let mut command = installed("supervisord", "supervisor");
        command.arg("-c").arg(&config).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let supervisord = Self { child, config, deployment };
        wait_until("the servers run", || {
            let output = supervisord.ctl_command(&["status"]).output().unwrap();
            let status = text(&output.stdout);
            status.contains("RUNNING") && !status.contains("STARTING")
        });
        supervisord
    }

    /// Runs supervisorctl, and returns its output.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.ctl_command(args).output().unwrap();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}{}", self.log());
        said
    }

    pub fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = installed("supervisorctl", "supervisor");
        command.arg("-c").arg(&self.config).args(args);
        command
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.deployment.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Supervisord {
    /// supervisord ends its programs before it ends itself.
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}
