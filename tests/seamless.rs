//! Restarts in place that no client notices: `smol-graceful check` counts, as an operator runs it.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Directory, Generations, PATIENCE, ProcessId, SERVER, output_within, text};
use rustix::process::Pid;

/// Ten times in a row, over TCP: no request is lost or refused, and no connection is closed. The
/// clients send without a look.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn no_client_notices_ten_restarts() {
    let directory = Directory::new();
    assert_seamless(&directory, "127.0.0.1:0");
}

/// The same over a Unix socket.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn no_client_of_a_unix_socket_notices_ten_restarts() {
    let directory = Directory::new();
    assert_seamless(&directory, &directory.socket("app.sock").to_string());
}

fn assert_seamless(directory: &Directory, listen: &str) {
    let file = directory.join("app.pid");
    let mut command = Command::new(SERVER);
    command.args(["--listen", listen, "--pid-file"]).arg(&file);
    let mut servers = Generations::start(command);
    let address = match listen {
        "127.0.0.1:0" => servers.program.addr.to_string(),
        _ => listen.to_owned(),
    };

    let flags = "--seamless --idle 2000 --blind --clients 32 --gap 0s --work 5ms --pause 300ms";
    let mut check = Command::new(SERVER);
    let usr2 = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/restart/usr2");
    check.args(["check", &address]).args(flags.split(' ')).arg("--").arg(usr2).arg(&file);
    let output = output_within(&mut check, b"", 4 * PATIENCE);

    // The last one would outlive a test that fails below.
    servers.serving = named_in(&file);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    assert!(report.contains("\n10 restarts, the longest took "), "{report}");
    assert!(
        report.ends_with(" with 32 clients and 2000 idle ones: no client has noticed anything\n"),
        "{report}"
    );
    let log = servers.end();
    assert_eq!(log.matches(" has taken over").count(), 10, "{log}");
}

/// Returns the process that a pid file names.
fn named_in(file: &Path) -> ProcessId {
    let text = fs::read_to_string(file).unwrap();
    ProcessId(Pid::from_raw(text.trim_end().parse().unwrap()).unwrap())
}
