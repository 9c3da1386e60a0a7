//! The files in `deploy/`, adapted to a test: with the binary under test, a free port, and one
//! directory for pid files and logs.
//!
//! Only addresses and paths are replaced. Nothing here starts a process.

#![allow(dead_code, unreachable_pub, reason = "each scenario file uses its own part of this")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::common::{Directory, SERVER, copy_file, free_port, wait_until};

/// The path of the binary in the files of `deploy/`.
pub const INSTALLED: &str = "/usr/local/bin/smol-graceful";

/// The addresses in the files that start one server.
const LISTEN: &str = "127.0.0.1:8082";
const ADMIN: &str = "127.0.0.1:9082";

/// Returns the path of a file in `deploy/`.
pub fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// Returns the text of a file in `deploy/`.
pub fn text_of(file: &str) -> String {
    fs::read_to_string(deploy(file)).unwrap()
}

/// A server to deploy: its addresses, a binary, and a directory for its files.
pub struct Deployment {
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    /// The binary that is deployed.
    pub binary: PathBuf,
    pub directory: Directory,
}

impl Deployment {
    pub fn new() -> Self {
        let [addr, admin] = [(); 2].map(|()| free_port());
        Self { addr, admin, binary: SERVER.into(), directory: Directory::new() }
    }

    /// Returns a deployment whose binary is a copy.
    pub fn replaceable() -> Self {
        let mut deployment = Self::new();
        deployment.binary = deployment.directory.join("server");
        copy_file(SERVER.as_ref(), &deployment.binary);
        deployment
    }

    /// Returns the text of a file in `deploy/`, adapted to this deployment.
    pub fn adapt(&self, file: &str) -> String {
        self.adapt_text(&text_of(file))
    }

    pub fn adapt_text(&self, text: &str) -> String {
        let directory = self.directory.path().to_str().unwrap();
        text.replace(LISTEN, &self.addr.to_string())
            .replace(ADMIN, &self.admin.to_string())
            .replace(INSTALLED, self.binary.to_str().unwrap())
            .replace("/var/log", directory)
            .replace("/run/smol-graceful.pid", &format!("{directory}/smol-graceful.pid"))
    }

    /// Returns the path of the log that every launcher here writes.
    pub fn log(&self) -> PathBuf {
        self.directory.join("smol-graceful.log")
    }

    /// Waits until the log contains these words `number` times. A thread writes the log, so a line
    /// may come later than the message to the manager.
    pub fn wait_for_log(&self, words: &str, number: usize) {
        wait_until(words, || self.logged().matches(words).count() == number);
    }

    /// Returns the log so far.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}
