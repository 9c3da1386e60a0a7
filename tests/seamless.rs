//! Restarts by the keeper that no client notices, under `smol-graceful check` as an operator runs
//! it.

#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Directory, KeeperProcess, PATIENCE, SERVER, keep, output_within, text, wait_until};

/// Ten restarts in a row, over TCP, lose and refuse no request, and close no connection. The
/// clients do not look before they send.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn no_client_notices_ten_restarts() {
    let directory = Directory::new();
    assert_seamless(&directory, "127.0.0.1:0");
}

/// No request is lost over a Unix socket either.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn no_client_of_a_unix_socket_notices_ten_restarts() {
    let directory = Directory::new();
    assert_seamless(&directory, &directory.socket("app.sock").to_string());
}

fn assert_seamless(directory: &Directory, listen: &str) {
    let file = directory.join("keeper.pid");
    let mut server = Command::new(SERVER);
    server.args(["--listen", listen]);
    let mut keeper = KeeperProcess::of(keep(&["--pid-file", file.to_str().unwrap()], &server));
    let address = match listen {
        "127.0.0.1:0" => keeper.program.addr.to_string(),
        _ => listen.to_owned(),
    };
    wait_until("the keeper is named", || file.exists());

    let flags = "--seamless --idle 2000 --blind --clients 32 --gap 0s --work 5ms --pause 300ms";
    let mut check = Command::new(SERVER);
    let restart = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/restart/keeper");
    check.args(["check", &address]).args(flags.split(' ')).arg("--").arg(restart).arg(&file);
    let output = output_within(&mut check, b"", 4 * PATIENCE);

    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    assert!(report.contains("\n10 restarts, the longest took "), "{report}");
    assert!(
        report.ends_with(" with 32 clients and 2000 idle ones: no client has noticed anything\n"),
        "{report}"
    );
    let log = keeper.end();
    assert_eq!(log.matches(" takes over from process ").count(), 10, "{log}");
}
