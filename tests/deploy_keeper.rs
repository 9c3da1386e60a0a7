//! The files in `deploy/` that start the keeper. Each test runs a file with only the address and
//! paths replaced, by supervisord, systemd's protocol, s6, runit, a shell, and as process 1 of a
//! container.
//!
//! Each launcher restarts the server ten times by USR2 under `smol-graceful check`, and no client
//! may notice. The process that the launcher supervises stays the same. Tests with launchers that
//! are not on every machine, and tests that need the whole machine, are ignored by default.

#![cfg(target_os = "linux")]

mod common;
#[path = "deploy/files.rs"]
mod files;
#[path = "deploy/launchers.rs"]
mod launchers;
#[path = "deploy/shell.rs"]
mod shell;
#[path = "deploy/supervisord.rs"]
mod supervisord;
#[path = "deploy/systemd.rs"]
mod systemd;

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::{Client, PATIENCE, SERVER, install, is_refused, output_within, text, wait_until};
use files::Deployment;
use launchers::{Container, Runit, S6};
use rustix::process::Signal;
use shell::Shell;
use supervisord::Supervisord;
use systemd::Systemd;

/// The words of the keeper's log for a restart that is over, and for one that has failed.
const OVER: &str = " takes over from process ";
const FAILED: &str = "keeper: no restart: ";

// Ten restarts that no client notices

/// A plain `[program]` is restarted by `supervisorctl signal USR2`.
#[test]
#[ignore = "needs supervisord (supervisor), and all of the machine"]
fn nobody_notices_a_restart_under_supervisord() {
    let supervisord = Supervisord::start("program.conf");
    let pid = supervisord.ctl(&["pid", "app"]);
    let signal = format!("{:?}", supervisord.ctl_command(&["signal", "USR2", "app"]));
    assert_nobody_notices(&supervisord.deployment, &signal);
    assert_eq!(supervisord.ctl(&["pid", "app"]), pid);
    assert!(supervisord.ctl(&["stop", "app"]).contains("app: stopped"));
    let log = supervisord.log();
    assert!(log.contains("stopped: app (exit status 0)"), "{log}");
    assert_all_drained(&supervisord.deployment, 10);
}

/// The unit is reloaded by its own command.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn nobody_notices_a_reload_under_systemd() {
    let mut systemd = Systemd::start(false);
    assert_nobody_notices(&systemd.deployment, &systemd.reload_command());
    assert!(systemd.is_active());
    assert_eq!(systemd.stop(), Some(0));
    assert_no_word_of_another_main_process(&systemd);
    assert_all_drained(&systemd.deployment, 10);
}

/// The keeper is process 1.
#[test]
#[ignore = "needs root (unshare), and all of the machine"]
fn nobody_notices_a_restart_in_a_container() {
    let mut container = Container::start();
    assert_nobody_notices(&container.deployment, &container.restart_command());
    assert!(container.first.is_running());
    assert_eq!(container.stop(), Some(0));
    assert_all_drained(&container.deployment, 10);
}

#[test]
#[ignore = "needs s6-supervise (s6), and all of the machine"]
fn nobody_notices_a_restart_under_s6() {
    let s6 = S6::start();
    let process = s6.process();
    assert_nobody_notices(s6.deployment(), &s6.restart_command());
    assert_eq!(s6.process(), process);
    assert_eq!(s6.stop(), "0 -1");
    assert_all_drained(s6.deployment(), 10);
}

#[test]
#[ignore = "needs runsv (runit), and all of the machine"]
fn nobody_notices_a_restart_under_runit() {
    let runit = Runit::start();
    let process = runit.process();
    assert_nobody_notices(runit.deployment(), &runit.restart_command());
    assert_eq!(runit.process(), process);
    let said = runit.stop();
    assert!(said.starts_with("ok: down: "), "{said}");
    assert_all_drained(runit.deployment(), 10);
}

/// The script itself waits until the restart is over.
#[test]
#[ignore = "needs all of the machine for ten seconds"]
fn nobody_notices_a_restart_from_a_shell() {
    let shell = Shell::new();
    assert_eq!(shell.run("start").code, 0);
    let process = shell.process();
    assert_nobody_notices(&shell.deployment, &shell.command_line("restart"));
    assert_eq!(shell.process(), process);
    assert_eq!(shell.run("stop").code, 0);
    assert_all_drained(&shell.deployment, 10);
}

// Other properties of each launcher

/// supervisord stops the program by its section, and the children stop, too.
#[test]
#[ignore = "needs supervisord (supervisor)"]
fn supervisord_stops_what_is_in_flight_at_its_end() {
    let supervisord = Supervisord::start("program.conf");
    let mut client = Client::connect(supervisord.deployment.addr);
    client.send("GET /work?for=500ms HTTP/1.1\r\nHost: x\r\n\r\n");
    // When this is answered, the server has read the first request.
    Client::connect(supervisord.deployment.addr).get("/livez").response();
    assert!(supervisord.ctl(&["restart", "app"]).contains("app: started"));
    assert_eq!(client.response().text(), "okay");
    wait_until("the server listens again", || !is_refused(supervisord.deployment.addr));
}

/// The server serves the address of the unit, with the socket unit and without.
#[test]
fn systemd_reloads_by_a_signal_to_the_main_process() {
    for socket_is_enabled in [false, true] {
        let mut systemd = Systemd::start(socket_is_enabled);
        let mut client = Client::connect(systemd.deployment.addr);
        assert_eq!(client.get("/livez").response().status, 200);
        for restart in 1..=2 {
            systemd.reload();
            systemd.deployment.wait_for_log(OVER, restart);
            assert_eq!(client.get("/livez").response().status, 200);
        }
        assert_eq!(systemd.stop(), Some(0), "{}", systemd.deployment.logged());
        assert!(systemd.heard.iter().any(|line| line == "STOPPING=1"), "{:?}", systemd.heard);
        assert_no_word_of_another_main_process(&systemd);
        assert_all_drained(&systemd.deployment, 2);
    }
}

/// A failed reload is reported as over, too, and the service goes on.
#[test]
fn systemd_hears_of_a_reload_that_fails() {
    let mut systemd = Systemd::start_replaceable();
    install(&systemd.deployment.binary, b"#!/bin/sh\nexit 3\n");
    systemd.reload();
    systemd.deployment.wait_for_log(FAILED, 1);
    systemd.wait_for_line(|line| line.starts_with("STATUS=") && line.contains("exit status: 3"));
    assert_eq!(Client::connect(systemd.deployment.addr).get("/livez").response().status, 200);
    assert_eq!(systemd.stop(), Some(0), "{}", systemd.deployment.logged());
}

/// `start`, `restart` and `stop` return when the step is done, and report a failure.
#[test]
fn the_shell_script_waits_and_tells_the_truth() {
    let shell = Shell::new();
    assert_eq!(shell.run("restart").code, 1, "nothing runs yet");
    let started = shell.run("start");
    assert_eq!(started.code, 0, "{}", started.output);
    let mut client = Client::connect(shell.deployment.addr);
    assert_eq!(client.get("/livez").response().status, 200);
    let process = shell.process();

    let restarted = shell.run("restart");
    assert_eq!(restarted.code, 0, "{}", restarted.output);
    assert!(restarted.output.contains(OVER), "{}", restarted.output);
    assert_eq!(client.get("/livez").response().status, 200);

    install(&shell.deployment.binary, b"#!/bin/sh\nexit 3\n");
    let failed = shell.run("restart");
    assert_eq!(failed.code, 1, "{}", failed.output);
    assert!(failed.output.contains(FAILED), "{}", failed.output);
    assert_eq!(client.get("/livez").response().status, 200);
    assert_eq!(shell.process(), process);

    assert_eq!(shell.run("stop").code, 0);
    assert!(is_refused(shell.deployment.addr));
    assert_eq!(shell.run("stop").code, 0, "nothing runs any more");
    assert_all_drained(&shell.deployment, 1);
    assert_eq!(shell.run("start").code, 3, "the code of the program");
    assert_eq!(shell.run("").code, 2);
}

/// A second `start` harms nothing.
#[test]
fn the_shell_script_starts_one_keeper() {
    let shell = Shell::new();
    assert_eq!(shell.run("start").code, 0);
    let process = shell.process();
    let second = shell.run("start");
    assert_eq!(second.code, 1, "{}", second.output);
    assert!(second.output.contains(&format!(" {process}")), "{}", second.output);
    assert_eq!(Client::connect(shell.deployment.addr).get("/livez").response().status, 200);
    assert_eq!(shell.process(), process);
    assert_eq!(shell.run("stop").code, 0);
}

/// `docker kill -s USR2`, a server that dies, and `docker stop` with a request in flight.
#[test]
#[ignore = "needs root (unshare)"]
fn a_container_outlives_its_server() {
    let mut container = Container::start();
    let addr = container.deployment.addr;
    let mut client = Client::connect(addr);
    assert_eq!(client.get("/livez").response().status, 200);
    container.first.signal(Signal::USR2);
    container.deployment.wait_for_log(OVER, 1);
    assert_eq!(client.get("/livez").response().status, 200);

    let server = container.server();
    server.signal(Signal::KILL);
    // The client waits in the queue of the socket.
    assert_eq!(Client::connect(addr).get("/livez").response().status, 200);
    container.deployment.wait_for_log(" has died: signal: 9", 1);

    let mut client = Client::connect(addr);
    client.send("GET /work?for=500ms HTTP/1.1\r\nHost: x\r\n\r\n");
    Client::connect(addr).get("/livez").response();
    assert_eq!(container.stop(), Some(0), "{}", container.deployment.logged());
    assert_eq!(client.response().text(), "okay");
}

// The tools of the tests above.

/// Runs ten restarts under load, and waits for the end of each in the log. `signal` is the shell's
/// command for a restart.
fn assert_nobody_notices(deployment: &Deployment, signal: &str) {
    // Only one load runs at a time, because each needs the whole machine.
    static MACHINE: Mutex<()> = Mutex::new(());
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let log = deployment.log().display().to_string();
    let script = format!(
        "before=$(grep -c '{OVER}' {log}); {signal} || exit; \
         until [ \"$(grep -c '{OVER}' {log})\" -gt \"$before\" ]; do \
         if grep -q '{FAILED}' {log}; then exit 1; fi; sleep 0.01; done"
    );
    let flags = "--seamless --idle 2000 --blind --clients 32 --gap 0s --work 5ms --pause 300ms";
    let mut check = Command::new(SERVER);
    check.arg("check").args(flags.split(' ')).arg(deployment.addr.to_string());
    check.args(["--", "sh", "-c", &script]);
    let output = output_within(&mut check, b"", 4 * PATIENCE);
    let report = text(&output.stdout);
    let said = || format!("{report}{}{}", text(&output.stderr), deployment.logged());
    assert!(output.status.success(), "{}", said());
    assert!(report.contains("\n10 restarts, the longest took "), "{}", said());
    assert!(report.contains(": no client has noticed anything\n"), "{}", said());
    assert_eq!(deployment.logged().matches(OVER).count(), 10, "{}", said());
}

/// Asserts that each process that has served has ended without cutting anything.
fn assert_all_drained(deployment: &Deployment, restarts: usize) {
    let (log, admin) = (deployment.logged(), deployment.admin.to_string());
    let has_drained = |line: &&str| line.contains("drained in ") && !line.contains(&admin);
    assert_eq!(log.lines().filter(has_drained).count(), restarts + 1, "{log}");
    assert!(!log.contains("timed out after "), "{log}");
}

/// Asserts that no notification names another main process, because systemd 252 does not wait for
/// one that is not its child.
fn assert_no_word_of_another_main_process(systemd: &Systemd) {
    let is_another = |line: &&String| line.starts_with("MAINPID=");
    assert_eq!(systemd.heard.iter().find(is_another), None);
}
